"""How much sooner does a search get there than a hand-written loop? python -m benchmarks.search_efficiency --data-dir FOLDER

Two arms on the same space, images, teacher file and runtime, by wall-clock: `plain` is benchmarks/plain_search.py with 12 trials of 6
epochs; `ours` is the command `search.run`, from an empty folder, so that the logit cache and the parents (4 of its 6 epochs) are
in its time. Asked is when ours first has the hypervolume that the plain arm ends with: over (error, log2 bytes, log2 ms), from the
error of chance and the teacher's bytes and ms in the same runtime. Every arm's latencies are its own measurements.

A row is an arm with a seed (plain:0, ours:0, ...); finished rows are not run again. Nothing else may run on the machine.
Writes results/search_efficiency.json. --markdown prints the rows that there are.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.plain_search import Budget, PlainSearch
from core.cli import run_main
from core.config import Config
from core.data import load_search_data
from core.files import write_atomically
from core.hardware import device_facts
from core.students.own import save_weights
from core.teacher import obtain_teacher
from core.train import Device, open_device
from core.yaml_io import load_config
from results.analysis import hypervolume, logarithmic, reference_of
from results.front import Point, objectives
from results.record import TeacherReport, read_records
from search.space import load_space, split_overrides
from search.study import find_study
from search.summary import versions

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "search_efficiency.json"
CACHE = Path("runs", ".cache")
SEEDS = (0, 1, 2)
OURS = ("parent.train.epochs=4", "finetune.epochs=1", "quantise.train.epochs=1")
"""Six epochs for every network, as in the plain arm; here the first four are shared."""
STUDY = "ours"
CLASSES = 10
Points = list[tuple[float, float, float, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows that are missing, then print the summary."""
    args = build_parser().parse_args(argv)
    if not args.markdown:
        for seed in range(args.seeds):
            for arm in ("plain", "ours"):
                if f"{arm}:{seed}" not in read(args.out)["rows"]:
                    keep(args, f"{arm}:{seed}", {"plain": plain, "ours": ours}[arm](args, seed))
    print(report(read(args.out)))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10: its archive's folder or an image folder")
    parser.add_argument("--space", type=Path, default=ROOT / "spaces" / "cifar10.yaml")
    parser.add_argument("--train-limit", type=int, default=5000, help="training images")
    parser.add_argument("--trials", type=int, default=12, help="of the plain arm")
    parser.add_argument("--our-trials", type=int, default=24)
    parser.add_argument("--epochs", type=int, default=6, help="per network of the plain arm")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--markdown", action="store_true", help="run nothing, print the table")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser


def settings(args: argparse.Namespace, seed: int) -> list[str]:
    """What both arms are given, beside the teacher's file."""
    folder = [f"data.dir={json.dumps(str(args.data_dir.absolute()))}"] if args.data_dir else []
    return [f"data.train_limit={args.train_limit}", "runtime.name=onnxruntime", f"seed={seed}", *folder, *args.overrides]


def teacher_settings(args: argparse.Namespace) -> list[str]:
    """The teacher as a file, with its normalisation: trained on all training images, before any clock runs."""
    config = load(args, [text for text in settings(args, 0) if not text.startswith("data.train_limit")])
    data = load_search_data(config.data, CACHE)
    teacher = obtain_teacher(config, data, open_device(config.hardware), CACHE)
    file = (CACHE / "efficiency" / f"{teacher.digest}.safetensors").absolute()
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        save_weights(teacher.model, file)
    normal = teacher.normalise
    return [f"teacher.weights={file}", f"teacher.mean={json.dumps(normal.mean)}", f"teacher.std={json.dumps(normal.std)}"]


def load(args: argparse.Namespace, overrides: Sequence[str]) -> Config:
    space_sets, config_sets = split_overrides(overrides)
    return load_config(load_space(args.space, space_sets).config, config_sets, ROOT)


# --- the arms --------------------------------------------------------------------------------------------------------


def plain(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Its clock starts before the teacher is read, as that of ours does."""
    overrides = settings(args, seed) + teacher_settings(args)
    config = load(args, overrides)
    space = load_space(args.space, split_overrides(overrides)[0])
    start = time.perf_counter()
    data = load_search_data(config.data, CACHE)
    teacher = obtain_teacher(config, data, Device(torch.device("cpu"), None), CACHE)
    teacher.model.to(memory_format=torch.contiguous_format)
    points: Points = []

    def show() -> None:
        print(f"plain:{seed}: trial {len(points)} after {points[-1][0]:.0f} s: {points[-1][1:]}", flush=True)

    PlainSearch(space, config, data, teacher, Budget(args.trials, args.epochs), start, points).run(seed, show)
    return {"points": points, "seconds": time.perf_counter() - start}


def ours(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The command of the README in an empty folder, data decoded before as for the other arm."""
    overrides = [*settings(args, seed), *teacher_settings(args), *OURS]
    words = [word for text in overrides for word in ("--set", text)]
    with tempfile.TemporaryDirectory() as folder:
        seed_cache(Path(folder) / CACHE)
        begun = datetime.now()
        command = [
            "--space",
            str(args.space.absolute()),
            "--study",
            STUDY,
            "--trials",
            str(args.our_trials),
            "--quiet",
        ]
        path = {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "search.run", *command, *words], cwd=folder, env=os.environ | path, check=True)
        seconds = (datetime.now() - begun).total_seconds()
        study = find_study(f"sqlite:///{Path(folder, 'runs', STUDY, 'study.db')}", STUDY)
        assert study is not None
        run = json.loads(Path(folder, "runs", STUDY, "run.json").read_text(encoding="utf-8"))
        told = {trial.number: trial.datetime_complete for trial in study.get_trials(deepcopy=False)}
        records = read_records(study)
    measured = [(told[each.number], each) for each in records if each.state == "COMPLETE" and each.ending is None]
    points = [((when - begun).total_seconds(), *objectives(each)) for when, each in measured if when is not None]
    return {"points": sorted(points), "seconds": seconds, "teacher": run["teacher"], "account": run.get("account"), "trials": len(records)}


def seed_cache(folder: Path) -> None:
    """Decoded images, which both arms find; nothing that a teacher or a student has made."""
    folder.mkdir(parents=True)
    for file in CACHE.glob("images-*"):
        shutil.copy(file, folder)


# --- rows and report -------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"shared": {}, "rows": {}}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
    return content


def keep(args: argparse.Namespace, name: str, row: dict[str, Any]) -> None:
    content = read(args.out)
    content["rows"][name] = row
    facts = {name: getattr(args, name) for name in ("train_limit", "trials", "epochs", "overrides")}
    content["shared"] = {"device": device_facts(), "threads": torch.get_num_threads(), "versions": versions(), "ours": OURS, **facts}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, json.dumps(content, indent=1) + "\n")


def volumes(points: Points, reference: Point) -> list[tuple[float, float]]:
    """(seconds, hypervolume) after each point."""
    coordinates = [logarithmic(point[1:]) for point in points]
    return [(point[0], hypervolume(coordinates[: number + 1], reference)) for number, point in enumerate(points)]


def compare(content: dict[str, Any], seed: int) -> dict[str, float] | None:
    """One seed's result; None while a row is missing. `speedup` is NaN where ours never gets there."""
    rows = [content["rows"].get(f"{arm}:{seed}") for arm in ("plain", "ours")]
    if None in rows:
        return None
    reference = reference_of(TeacherReport.model_validate(rows[1]["teacher"]), CLASSES)
    theirs, own = (volumes([tuple(point) for point in row["points"]], reference) for row in rows)
    goal, plain_seconds = theirs[-1][1], theirs[-1][0]
    there = next((seconds for seconds, volume in own if volume >= goal), math.nan)
    return {
        "plain_seconds": plain_seconds,
        "plain_hypervolume": goal,
        "our_seconds": there,
        "our_hypervolume": own[-1][1],
        "speedup": plain_seconds / there,
    }


def report(content: dict[str, Any]) -> str:
    """A Markdown table."""
    lines = [
        "| seed | plain loop, s | its hypervolume | ours gets there, s | times sooner | ours at its end |",
        "|---|---|---|---|---|---|",
    ]
    found = {seed: result for seed in SEEDS if (result := compare(content, seed)) is not None}
    for seed, result in found.items():
        cells = [f"{result[key]:.{digits}f}" for key, digits in COLUMNS.items()]
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    if found:
        lines.append(f"\nMedian: {statistics.median(result['speedup'] for result in found.values()):.1f} times sooner (bar 10, aim 30)")
    return "\n".join(lines)


COLUMNS = {"plain_seconds": 0, "plain_hypervolume": 3, "our_seconds": 0, "speedup": 1, "our_hypervolume": 3}


if __name__ == "__main__":
    raise SystemExit(run_main(main))
