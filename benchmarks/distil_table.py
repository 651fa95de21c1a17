"""Which loss teaches best in a short budget? python benchmarks/distil_table.py --data-dir FOLDER [--threads 1 --shard 0/2]

Two students, five losses, three seeds; 6 epochs each, the teacher of configs/cifar10.yaml. For one seed, initial weights, order of
the images and their views are the same under every loss, so differences are taken in pairs. A row (student:loss:seed) is written as
soon as it is finished, and a finished row is not trained again: start the command again after an interruption, or start two with
--shard 0/2 and --shard 1/2 (the teacher's answers are shared on disk). --markdown prints the table of the rows that there are.

Nothing is chosen here: the test split is scored once per row, for the report. Writes benchmarks/results/distil_table.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from filelock import FileLock  # noqa: E402

from benchmarks.distil_markdown import markdown  # noqa: E402
from core.candidate import DistilPlan  # noqa: E402
from core.cli import run_main  # noqa: E402
from core.config import Config  # noqa: E402
from core.data import load_search_data  # noqa: E402
from core.data.heldout import load_test_data  # noqa: E402
from core.data.types import Images, SearchData  # noqa: E402
from core.distil import distil  # noqa: E402
from core.errors import UserError  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.hardware import device_facts  # noqa: E402
from core.students import STUDENTS  # noqa: E402
from core.teacher import Teacher, obtain_teacher  # noqa: E402
from core.teacher_logits import TeacherLogits  # noqa: E402
from core.train import Device, open_device, predict_all  # noqa: E402
from core.views import ViewedSet, viewed  # noqa: E402
from core.yaml_io import load_config  # noqa: E402
from search.summary import versions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "distil_table.json"
CACHE = Path("runs", ".cache")
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
    # SD-KD as published: scales 1, 2, 4 where teacher and student differ in architecture; teacher here is no ResNet
    "sdd": DistilPlan(loss="sdd", temperature=4.0, weight=0.9, ce_weight=0.1, grid=4),
    # the fusion: LSKD's weights in SDD's machinery
    "sdd_lskd": DistilPlan(loss="sdd_lskd", temperature=TAU, weight=9.0, ce_weight=0.1, grid=4),
}
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


ROWS = tuple(Row(*parts) for parts in product(STUDENT_WIDTHS, PLANS, SEEDS))


@dataclass(frozen=True)
class Bench:
    """What every row shares."""

    config: Config
    data: SearchData
    test: Images
    teacher: Teacher
    views: ViewedSet
    logits: TeacherLogits
    device: Device


def main(argv: Sequence[str] | None = None) -> int:
    """Train the rows that are missing, then print the summary."""
    args = build_parser().parse_args(argv)
    if not args.markdown:
        rows = choose(args.rows, args.shard)
        missing = [row for row in rows if row.name not in finished(args.out)]
        print(f"{len(rows) - len(missing)} of {len(rows)} rows are there already", flush=True)
        if missing:
            work(missing, args)
    print(markdown(read(args.out)))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10: its archive's folder or an image folder")
    parser.add_argument("--rows", help="student:loss:seed,... in place of all")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th row from the i-th on")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--config", default="cifar10")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--markdown", action="store_true", help="train nothing, print the table")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser


def choose(names: str | None, shard: str, rows: Sequence[Any] = ROWS, form: str = "student:loss:seed") -> list[Any]:
    """The asked of `rows` of this shard, in order. Raises UserError for what is none."""
    known = {row.name: row for row in rows}
    asked = names.split(",") if names else list(known)
    if unknown := [name for name in asked if name not in known]:
        raise UserError(f"a row is {form}, but {', '.join(unknown)} is none; known: {', '.join(known)}")
    index, _, count = shard.partition("/")
    if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise UserError(f"--shard must be i/n with 0 <= i < n, but got {shard!r}")
    return [known[name] for name in asked][int(index) :: int(count)]


def work(rows: Sequence[Row], args: argparse.Namespace) -> None:
    """Train and write row by row."""
    bench = open_bench(args)
    for row in rows:
        if row.name in finished(args.out):  # another process may have had it meanwhile
            continue
        result = train(row, bench)
        append(result, shared(bench), args.out)
        print(f"{row.name}: test {100 * result['test_accuracy']:.2f} %, {result['seconds']:.0f} s", flush=True)


def open_bench(args: argparse.Namespace) -> Bench:
    """Data, teacher and views, as a study of the same configuration would have them."""
    config = load_config(args.config, [*args.overrides, *_as_overrides(args)], ROOT)
    device = open_device(config.hardware)
    data = load_search_data(config.data, CACHE)
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "distil_table.lock"):  # the second process waits and reads what the first one has made
        teacher = obtain_teacher(config, data, device, CACHE)
        views = viewed(data.train, teacher.normalise, config.views, config.seed, device.device)
        logits = TeacherLogits(teacher, views, data.info.digest, device, CACHE, grid=GRID)
        for view in range(min(config.views.number, math.ceil(config.parent.train.epochs))):
            logits(torch.arange(1, device=device.device), view)
    print(f"teacher {teacher.name}: {100 * teacher.accuracy:.2f} % on the search split; run on {logits.forward_images} images", flush=True)
    return Bench(config, data, load_test_data(config.data, CACHE), teacher, views, logits, device)


def _as_overrides(args: argparse.Namespace) -> list[str]:
    values = {"data.dir": args.data_dir, "hardware.threads": args.threads, "parent.train.epochs": args.epochs}
    return [f"{key}={json.dumps(value, default=str)}" for key, value in values.items() if value is not None]


def train(row: Row, bench: Bench) -> dict[str, Any]:
    """One row: distil by its plan, then score on the search and on the test split."""
    recipe, plan, before = bench.config.parent.train, PLANS[row.loss], bench.logits.forward_images
    torch.manual_seed(row.seed)
    info = bench.data.info
    network = STUDENTS[row.student](
        classes=len(info.classes), channels=info.channels, image_size=info.image_size, width=STUDENT_WIDTHS[row.student]
    )
    start = time.perf_counter()
    model = distil(network, plan, bench.views, bench.logits, recipe, bench.device, seed=row.seed)
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
        "teacher_forward_images": bench.logits.forward_images - before,
        "threads": torch.get_num_threads(),
        "device": device_facts(),
        "plan": plan.model_dump(mode="json", exclude={"init"}),
        "recipe": recipe.model_dump(mode="json"),
    }


# --- the result file -------------------------------------------------------------------------------------------------


def shared(bench: Bench) -> dict[str, Any]:
    """What must be equal in all rows of a file, for they are compared."""
    return {
        "teacher": {"name": bench.teacher.name, "digest": bench.teacher.digest, "search_accuracy": bench.teacher.accuracy},
        "data": {"name": bench.data.info.name, "digest": bench.data.info.digest, "train": len(bench.data.train)},
        "search_images": len(bench.data.search),
        "test_images": len(bench.test),
        "views": bench.config.views.model_dump(mode="json"),
        "recipe": bench.config.parent.train.model_dump(mode="json"),
        "precision": str(bench.device.amp or torch.float32),
        "versions": versions(),
    }


def append(row: dict[str, Any], same: dict[str, Any], path: Path, order: Sequence[str] = tuple(row.name for row in ROWS)) -> None:
    """Add a finished row; other processes may be doing so too. Raises UserError where the file is of another set-up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        content = read(path) or {**same, "rows": []}
        if differing := [key for key, value in same.items() if content[key] != value]:
            raise UserError(f"rows of one table share {', '.join(same)}, but {path} has another {', '.join(differing)}; give another --out")
        rows = {old["row"]: old for old in content["rows"]} | {row["row"]: row}
        content["rows"] = sorted(rows.values(), key=lambda entry: order.index(entry["row"]))
        write_atomically(path, json.dumps(content, indent=1) + "\n")


def read(path: Path) -> dict[str, Any]:
    """The result file, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def finished(path: Path) -> set[str]:
    return {row["row"] for row in read(path).get("rows", [])}


if __name__ == "__main__":
    raise SystemExit(run_main(main))
