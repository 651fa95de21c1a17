"""Every recipe of docs/recipes.md that a CPU can run, with a small budget: python benchmarks/recipes.py --data-dir FOLDER

A recipe is the page's own command with a few settings in place of its own, all of which are in the result. Its trials go to
runs/recipe-<name>; a finished recipe is not run again, and teachers and parents are shared on disk as in any study. The figures say
that a recipe runs here, in how long, and what so little training gives; they say nothing of what a method can do with its own budget.
All accuracies are of the search split. Recipes may be run on several machines; each says on which. Writes
benchmarks/results/recipes.json, from which benchmarks/readme.py fills the page.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import front_of, url_of  # noqa: E402 (a script: the checkout comes first)
from benchmarks.rows import Table, build_parser  # noqa: E402
from core.candidate import LatencyReport  # noqa: E402
from core.cli import run_main  # noqa: E402
from core.hardware import device_facts  # noqa: E402
from results.record import TrialRecord, read_records  # noqa: E402
from search.study import load_study  # noqa: E402
from search.summary import versions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "recipes.json"
SPACES = "--space spaces/recipes"
FEW = ("data.train_limit=5000",)
RESNET18 = (*FEW, "teacher.train.epochs=4", "finetune.epochs=4")
SHORTER = (*FEW, "teacher.train.epochs=4", "finetune.epochs=2")
"""The teacher of RESNET18, and half of the time for a student that runs it in every step."""
TWO_MORE = [
    {"name": "wrn_16_2", "train": {"epochs": 4, "batch_size": 128, "lr": 0.1}},
    {"name": "vgg13", "train": {"epochs": 4, "batch_size": 128, "lr": 0.05}},
]
THREE = (*RESNET18, f"more_teachers={json.dumps(TWO_MORE)}")
ENGINES_FOR_GPUS = (
    *FEW,
    "runtime.name=tensorrt_rtx",
    "runtime.build_for=[SM89, SM120]",
    "student.name=resnet8x4",
    *(f"{part}.epochs=1" for part in ("teacher.train", "parent.train", "finetune", "quantise.train")),
)
"""TensorRT-RTX builds engines for GPUs that are not here: accuracy and size are searched, nothing is timed."""
PAIR = (*FEW, "teacher.train.epochs=2", "finetune.epochs=3")
FUSION = (
    "wrn_40_2_mobilenet_v2.yaml --config configs/recipes/wrn_40_2_cifar10_light.yaml"
    " --set distil.loss=sdd_lskd --set 'distil.grid=[1, 2, 4]'"
)
"""At its three scales."""
HINT = "--set distil.loss=hint --set distil.weight=100 --set distil.ce_weight=1"


@dataclass(frozen=True)
class Recipe:
    """One run: the page's arguments of search.run, and what stands in their place here."""

    name: str
    arguments: str
    less: tuple[str, ...] = FEW
    trials: int | None = None
    """None: as many as the page asks for."""

    @property
    def study(self) -> str:
        return f"recipe-{self.name}"


def pair(name: str, config: str) -> Recipe:
    """Two networks of the CIFAR-100 experiments, in their short budget on CIFAR-10."""
    return Recipe(name, f"{SPACES}/{name}.yaml --config configs/recipes/{config}.yaml --study {name}_cifar10 --trials 1", PAIR)


RECIPES = (
    Recipe("apprentice_b", f"{SPACES}/apprentice_b.yaml --trials 1", ()),
    Recipe("apprentice_c", f"{SPACES}/apprentice_c.yaml --trials 1", ()),
    Recipe("bit_allocation", f"{SPACES}/bit_allocation.yaml --trials 20", trials=8),
    *(
        Recipe(rule, f"{SPACES}/bit_allocation.yaml --set allocation.strategy={rule} --study {rule} --trials 20", trials=8)
        for rule in ("haq", "sqnr", "sdq")
    ),
    Recipe("post_training", f"{SPACES}/post_training.yaml --sampler grid --trials 6"),
    Recipe("order", f"{SPACES}/order.yaml --sampler grid --trials 8"),
    Recipe("teacher_only", f"{SPACES}/teacher_only.yaml --trials 40", trials=4),
    Recipe("deep_compression", f"{SPACES}/deep_compression.yaml --trials 15", trials=5),
    Recipe("hybrids", f"{SPACES}/hybrids.yaml --sampler grid --trials 12"),
    Recipe("microcontroller", "--space spaces/examples/microcontroller.yaml --trials 100", trials=5),
    Recipe("phone", "--space spaces/examples/phone.yaml --trials 100", trials=5),
    Recipe("resnet18_light_cnn", f"{SPACES}/resnet18_light_cnn.yaml --trials 1", RESNET18),
    Recipe("light_cnn_ce", f"{SPACES}/resnet18_light_cnn.yaml --set distil.loss=ce --study light_cnn_ce --trials 1", RESNET18),
    Recipe("temperature_weight", f"{SPACES}/temperature_weight.yaml --sampler grid --trials 16", RESNET18),
    Recipe("three_teachers", f"{SPACES}/three_teachers.yaml --trials 1", THREE),
    Recipe("soft_labels", f"{SPACES}/soft_labels.yaml --trials 1", RESNET18),
    Recipe("hint", f"{SPACES}/soft_labels.yaml {HINT} --study hint --trials 1", SHORTER),
    Recipe("server_gpu", "--space spaces/examples/server_gpu.yaml --trials 100", ENGINES_FOR_GPUS, 2),
    pair("wrn_40_2_vgg8", "wrn_40_2_cifar10"),
    pair("wrn_40_2_shufflenet_v1", "wrn_40_2_cifar10_light"),
    pair("wrn_40_2_mobilenet_v2", "wrn_40_2_cifar10_light"),
    pair("resnet32x4_resnet8x4", "resnet32x4_cifar10"),
    pair("resnet32x4_shufflenet_v1", "resnet32x4_cifar10_light"),
    pair("resnet32x4_mobilenet_v2", "resnet32x4_cifar10_light"),
    Recipe("fusion", f"{SPACES}/{FUSION} --sampler grid --study fusion --trials 3", PAIR),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipes that are missing, then print all."""
    return TABLE.run(build_parser(__doc__, TABLE.form, RESULT).parse_args(argv))


@contextmanager
def open_bench(args: argparse.Namespace) -> Iterator[argparse.Namespace]:
    """Every recipe opens what it needs."""
    yield args


def shared(args: argparse.Namespace) -> dict[str, Any]:
    """What must be equal in all rows of a file."""
    return {"device": device_facts(), "versions": versions()}


def run(recipe: Recipe, args: argparse.Namespace) -> dict[str, Any]:
    """One row. Raises CalledProcessError where the command fails."""
    less = [*recipe.less, *args.overrides]
    command = [*shlex.split(recipe.arguments), "--fresh", "--quiet", "--study", recipe.study]
    command += ["--trials", str(recipe.trials)] if recipe.trials else []
    command += ["--data-dir", str(args.data_dir)] if args.data_dir and less else []  # digits come with a package
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "search.run", *command, *(part for text in less for part in ("--set", text))], check=True)
    seconds = time.perf_counter() - start
    account = json.loads(Path("runs", recipe.study, "run.json").read_text(encoding="utf-8"))
    on_front = {record.number for record in front_of(recipe.study)}
    records = read_records(load_study(url_of(recipe.study), recipe.study))
    data, teacher = account["data"], account["teacher"]
    return {
        "row": recipe.name,
        "arguments": recipe.arguments,
        "less": less,
        "data": {key: data[key] for key in ("name", "digest", "train", "search")},
        "teacher": {
            "search_accuracy": teacher["accuracy"],
            "size_bytes": teacher["size_bytes"],
            "p50_ms": teacher["latency"].get("p50_ms"),
            "stable": teacher["latency"].get("stable", True),
        },
        "teacher_seconds": account["teacher_seconds"],
        "seconds": round(seconds, 1),
        "trials": account["trials"],
        "found": [point(record) | {"on_front": record.number in on_front} for record in records],
    }


def point(record: TrialRecord) -> dict[str, Any]:
    """A finished trial: what it was, and what was measured of it (nothing, of one that was stopped)."""
    candidate, measured = record.candidate, record.measurement
    facts: dict[str, Any] = {"trial": record.number, "state": record.state, "student": record.student, "width": record.width}
    facts["mean_bits"] = record.mean_bits
    facts |= {} if candidate is None else {"candidate": candidate.model_dump(mode="json", exclude_defaults=True)}
    if measured is None:
        return facts | {"reason": record.reason}
    timed = measured.latency if isinstance(measured.latency, LatencyReport) else None
    return facts | {
        "search_accuracy": measured.accuracy,
        "size_bytes": measured.size_bytes,
        "p50_ms": timed.p50_ms if timed else None,
        "stable": timed.stable if timed else True,
        "agreement": measured.agreement,
    }


def best(row: dict[str, Any]) -> dict[str, Any]:
    """The most accurate point of a row's front."""
    return max((found for found in row["found"] if found["on_front"]), key=lambda found: found["search_accuracy"])


def cell(row: dict[str, Any]) -> str:
    """What docs/recipes.md says of a recipe."""
    less = f", `{' '.join(row['less'])}`" if row["less"] else ""
    count = sum(row["trials"].values())
    on = "" if row["data"]["name"] == "cifar10" else f"on {row['data']['name']}: "
    cost = f"{count} trial{'s' * (count > 1)}, {row['seconds'] / 60:.1f} min{less}"
    return f"{on}{_network(best(row))} (teacher {_network(row['teacher'])}); {cost}"


def machine(device: dict[str, Any]) -> str:
    """The processor, with the instructions that say most of how fast INT8 and bfloat16 are on it."""
    kinds = {"amx_int8": "AMX", "avx512_vnni": "AVX-512 VNNI", "avx512f": "AVX-512", "avx2": "AVX2"}
    best_of = next((name for flag, name in kinds.items() if flag in device["isa"]), device["machine"])
    return f"{device['cpu']}, {best_of}"


def _network(facts: dict[str, Any]) -> str:
    speed = "not timed" if facts["p50_ms"] is None else f"{facts['p50_ms']:.3f}{'' if facts.get('stable', True) else '*'} ms"
    return f"{100 * facts['search_accuracy']:.1f} %, {facts['size_bytes'] / 1000:,.1f} KB, {speed}"


def listed(result: dict[str, Any]) -> str:
    """A line per finished recipe."""
    return "\n".join(f"{row['row']}: {cell(row)}" for row in result.get("rows", []))


def with_measured(page: str) -> str:
    """docs/recipes.md with what was measured in the last cell of every recipe's line, or that nothing was."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    on = {row: machine(facts["device"]) for row, facts in result["together"].items()}
    cells = {f"`python -m search.run {recipe.arguments}`": "not measured yet" for recipe in RECIPES}
    cells |= {f"`python -m search.run {row['arguments']}`": f"{cell(row)}; {on[row['row']]}" for row in result["rows"]}

    def line(text: str) -> str:
        parts = text.split(" | ")
        known = len(parts) == 3 and parts[1] in cells
        return f"{parts[0]} | {parts[1]} | {cells[parts[1]]} |" if known else text

    return "\n".join(map(line, page.split("\n")))


TABLE = Table(RECIPES, "a recipe's name", open_bench, shared, run, listed, cell, own=("device",))


if __name__ == "__main__":
    raise SystemExit(run_main(main))
