"""Which loss teaches best in a short budget? python benchmarks/distil_table.py --data-dir FOLDER [--threads 1 --shard 0/2]

Two students, five losses and KD from averaged views, three seeds; 6 epochs each, the teacher of configs/cifar10.yaml. For one seed,
initial weights, order of the images and their views are the same under every loss, so differences are taken in pairs. A row
(student:loss:seed) is written as soon as it is finished, and a finished row is not trained again: start the command again after an
interruption, or start two with --shard 0/2 and --shard 1/2 (the teacher's answers are shared on disk). --markdown prints the table of
the rows that there are.

Nothing is chosen here: the test split is scored once per row, for the report. Writes benchmarks/results/distil_table.json.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.distil_markdown import markdown
from benchmarks.rows import CACHE, ROOT, Ground, Table, build_parser, open_ground
from core.candidate import DistilPlan
from core.cli import run_main
from core.data.types import Images
from core.distil import distil
from core.hardware import device_facts
from core.students import STUDENTS
from core.teacher_logits import TeacherLogits
from core.train import predict_all
from core.views import ResidentViews, ViewedSet, viewed

RESULT = ROOT / "benchmarks" / "results" / "distil_table.json"
EPOCHS = 6.0
SEEDS = (0, 1, 2)
STUDENT_WIDTHS = {"resnet20": 1.0, "resnet8x4": 0.5}
TAU = 1.2
"""Of z-scored logits, which lie within (K - 1) / sqrt(K): at 2, published for 100 classes, a softened probability reaches 0.60 there
and 0.35 with 10 classes. At sqrt(10) / (5 - ln 99 + ln 9) = 1.2 it reaches 0.60 with 10 as well."""
PLANS: dict[str, DistilPlan] = {
    "ce": DistilPlan(loss="ce"),
    # Hinton's as in mdistiller
    "kd": DistilPlan(loss="kd", temperature=4.0, weight=0.9, ce_weight=0.1),
    # KD + LSKD as published, but for tau
    "lskd": DistilPlan(loss="lskd", temperature=TAU, weight=9.0, ce_weight=0.1),
    # SD-KD with scales 1 and 2; the 4 published beside them divides no map of 6 x 6, which `early_sizes` makes of 24 x 24 pixels
    "sdd": DistilPlan(loss="sdd", temperature=4.0, weight=0.9, ce_weight=0.1, grid=2),
    # the fusion: LSKD's weights in SDD's machinery
    "sdd_lskd": DistilPlan(loss="sdd_lskd", temperature=TAU, weight=9.0, ce_weight=0.1, grid=2),
    # KD from the mean of the teacher's logits over all views of an image
    "kd_averaged": DistilPlan(loss="kd", temperature=4.0, weight=0.9, ce_weight=0.1),
}
AVERAGED = {"kd_averaged"}
GRID = max(plan.grid for plan in PLANS.values())


@dataclass(frozen=True)
class Row:
    """One training."""

    student: str
    loss: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.student}:{self.loss}:{self.seed}"


ROWS = tuple(Row(student, loss, seed) for student, seed, loss in product(STUDENT_WIDTHS, SEEDS, PLANS))
"""A seed after the other: what is there after an interruption can be compared."""


@dataclass(frozen=True)
class Bench(Ground):
    """What every row shares."""

    views: ViewedSet
    logits: TeacherLogits
    averaged: TeacherLogits


def main(argv: Sequence[str] | None = None) -> int:
    """Train the rows that are missing, then print the summary."""
    parser = build_parser(__doc__, TABLE.form, RESULT)
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    return TABLE.run(parser.parse_args(argv))


@contextmanager
def open_bench(args: argparse.Namespace) -> Iterator[Bench]:
    """Data, teacher and views, and the teacher's answers to all of them."""
    ground = open_ground(args, {"parent.train.epochs": args.epochs})
    config, device = ground.config, ground.device
    views = viewed(ground.data.train, ground.teacher.normalise, config.views, config.seed, device.device)
    assert isinstance(views, ResidentViews), "CIFAR-10 fits into memory"
    mean = replace(views, plan=views.plan.model_copy(update={"average": True}))
    logits, averaged = (TeacherLogits(ground.teacher, data, ground.data.info.digest, device, CACHE, grid=GRID) for data in (views, mean))
    averaged(torch.arange(1, device=device.device), 0)  # every view
    print(f"the teacher ran on {averaged.forward_images} images", flush=True)
    yield Bench(**vars(ground), views=views, logits=logits, averaged=averaged)


def train(row: Row, bench: Bench) -> dict[str, Any]:
    """One row: distil by its plan, then score on the search and on the test split."""
    recipe, plan = bench.config.parent.train, PLANS[row.loss]
    logits = bench.averaged if row.loss in AVERAGED else bench.logits
    before = logits.forward_images
    torch.manual_seed(row.seed)
    info = bench.data.info
    network = STUDENTS[row.student](
        classes=len(info.classes), channels=info.channels, image_size=info.image_size, width=STUDENT_WIDTHS[row.student]
    )
    start = time.perf_counter()
    model = distil(network, plan, bench.views, logits, recipe, bench.device, seed=row.seed)
    seconds = time.perf_counter() - start

    def accuracy(images: Images) -> float:
        logits = predict_all(model, images, bench.teacher.normalise, bench.device)
        return float((logits.argmax(1) == images.labels.cpu()).float().mean())

    return {
        "row": row.name,
        "student": row.student,
        "width": STUDENT_WIDTHS[row.student],
        "loss": row.loss,
        "seed": row.seed,
        "search_accuracy": accuracy(bench.data.search),
        "test_accuracy": accuracy(bench.test),
        "seconds": round(seconds, 2),
        "images_per_second": round(recipe.epochs * len(bench.views) / seconds, 1),
        "teacher_forward_images": logits.forward_images - before,
        "threads": torch.get_num_threads(),
        "device": device_facts(),
        "plan": plan.model_dump(mode="json", exclude={"init"}),
        "recipe": recipe.model_dump(mode="json"),
    }


def shared(bench: Bench) -> dict[str, Any]:
    """What must be equal in all rows of a file."""
    recipes = {"views": bench.config.views.model_dump(mode="json"), "recipe": bench.config.parent.train.model_dump(mode="json")}
    return bench.facts() | recipes


TABLE = Table(ROWS, "student:loss:seed", open_bench, shared, train, markdown)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
