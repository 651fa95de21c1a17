"""How much sooner does a search get there than a hand-written loop? python -m benchmarks.search_efficiency --data-dir FOLDER

Two arms on the same space, images, teacher file and runtime, by wall-clock: `plain` is a second file, plain_search.py, written for this
comparison as a user would write it, with 12 trials of 6 epochs, of which TPE draws 10 at random; `ours` is the command `search.run`, from
an empty folder, so that the logit cache and the parents (4 of its 6 epochs) are in its time. Asked is when ours first has the
hypervolume that the plain arm ends with: over (error, log2 bytes, log2 ms), from the error of chance and the teacher's bytes and ms in the
same runtime. The plain arm's time is that of its last trial; told is too when it first had its final hypervolume.

In their own time both arms measure latency their own way. When a seed's arms are over, on nobody's clock, the models of both are timed
again by one `EngineHost`, and the result is told with both kinds of latencies. Where ours never gets there it is 0 times sooner.

A row is an arm with a seed (plain:0, ours:0, retimed:0, ...); finished rows are not run again. Nothing else may run on the machine.
Writes results/search_efficiency.json. --markdown prints the rows that there are. efficiency_result.py says what rows mean.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.efficiency_result import Points, report, result
from benchmarks.given_teacher import CACHE, ROOT, given_teacher
from benchmarks.plain_search import Budget, PlainSearch, name_of
from core.cli import run_main
from core.config import Config
from core.data import load_search_data
from core.engines import EngineHost
from core.errors import UserError
from core.files import write_atomically
from core.hardware import device_facts
from core.teacher import obtain_teacher
from core.train import Device
from core.yaml_io import load_config
from results.front import objectives
from results.record import candidate_file, read_records
from search.setup import split_overrides
from search.space import load_space
from search.study import find_study
from search.summary import versions

RESULT = Path(__file__).parent / "results" / "search_efficiency.json"
ARMS = ("plain", "ours")
OURS = ("parent.train.epochs=4", "finetune.epochs=1", "quantise.train.epochs=1")
"""Six epochs for every network, as in the plain arm; here the first four are shared."""
STUDY = "ours"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows that are missing, then print the summary."""
    args = build_parser().parse_args(argv)
    if not args.markdown:
        for seed in range(args.seeds):
            for kind, make in {"plain": plain, "ours": ours, "retimed": retimed}.items():
                if f"{kind}:{seed}" not in read(args.out)["rows"]:
                    keep(args, f"{kind}:{seed}", make(args, seed))
    print(report(read(args.out)))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10: its archive's folder or an image folder")
    parser.add_argument("--space", type=Path, default=ROOT / "spaces" / "cifar10.yaml")
    parser.add_argument("--train-limit", type=int, default=5000, help="training images")
    parser.add_argument("--trials", type=int, default=12, help="of the plain arm")
    parser.add_argument("--our-trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=6, help="per network of the plain arm")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--markdown", action="store_true", help="run nothing, print the table")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser


def settings(args: argparse.Namespace, seed: int) -> list[str]:
    """What both arms are given, beside the teacher's file."""
    folder = [f"data.dir={json.dumps(str(args.data_dir.absolute()))}"] if args.data_dir else []
    return [f"data.train_limit={args.train_limit}", "runtime.name=onnxruntime", f"seed={seed}", *folder, *args.overrides]


def load(args: argparse.Namespace, overrides: Sequence[str]) -> Config:
    space_sets, config_sets = split_overrides(overrides)
    return load_config(load_space(args.space, space_sets).config, config_sets, ROOT)


# --- the arms --------------------------------------------------------------------------------------------------------


def plain(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Its clock starts before the teacher is read, as that of ours does."""
    overrides = settings(args, seed) + given_teacher(args.space, settings(args, seed))
    config, models = load(args, overrides), emptied(models_of(args, "plain", seed))
    space = load_space(args.space, split_overrides(overrides)[0])
    start = time.perf_counter()
    data = load_search_data(config.data, CACHE)
    teacher = obtain_teacher(config, data, Device(torch.device("cpu"), None), CACHE)
    teacher.model.to(memory_format=torch.contiguous_format)
    points: Points = []

    def show() -> None:
        print(f"plain:{seed}: trial {len(points)} after {points[-1][0]:.0f} s: {points[-1][1:]}", flush=True)

    PlainSearch(space, config, data, teacher, Budget(args.trials, args.epochs), start, points, models).run(seed, show)
    return {"points": points, "seconds": time.perf_counter() - start}


def ours(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The command of the README in an empty folder, data decoded before as for the other arm."""
    overrides = [*settings(args, seed), *given_teacher(args.space, settings(args, seed)), *OURS]
    words = [word for text in overrides for word in ("--set", text)]
    with tempfile.TemporaryDirectory() as folder:
        seed_cache(Path(folder) / CACHE)
        begun = datetime.now()
        command = ["--space", str(args.space.absolute()), "--study", STUDY, "--trials", str(args.our_trials), "--quiet"]
        path = {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-m", "search.run", *command, *words], cwd=folder, env=os.environ | path, check=True)
        seconds = (datetime.now() - begun).total_seconds()
        study = find_study(f"sqlite:///{Path(folder, 'runs', STUDY, 'study.db')}", STUDY)
        assert study is not None
        run = json.loads(Path(folder, "runs", STUDY, "run.json").read_text(encoding="utf-8"))
        told = {trial.number: trial.datetime_complete for trial in study.get_trials(deepcopy=False)}
        records = read_records(study)
        after = {number: (when - begun).total_seconds() for number, when in told.items() if when is not None}
        done = sorted((each for each in records if each.state == "COMPLETE" and each.ending is None), key=lambda each: after[each.number])
        models = emptied(models_of(args, "ours", seed))
        for point, each in enumerate(done):
            shutil.copy(candidate_file(Path(folder, "runs", STUDY), each, "model.onnx"), models / name_of(point))
    return {
        "points": [(after[each.number], *objectives(each)) for each in done],
        "ended": sorted(after[each.number] for each in records),
        "seconds": seconds,
        "teacher": run["teacher"],
        "account": run.get("account"),
        "trials": len(records),
    }


def retimed(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Milliseconds of every point of both arms by one host, in turn. Raises UserError where the arms' models are gone."""
    rows, config = read(args.out)["rows"], load(args, settings(args, seed))
    files = [(arm, models_of(args, arm, seed) / name_of(i)) for arm in ARMS for i in range(len(rows[f"{arm}:{seed}"]["points"]))]
    if gone := [file for _, file in files if not file.exists()]:
        raise UserError(f"both arms' models must be there to be timed again, but {gone[0]} is not; run seed {seed} anew with another --out")
    found: dict[str, Any] = {"plain": [], "ours": [], "unstable": 0, "host": config.runtime.model_dump(mode="json")}
    with tempfile.TemporaryDirectory() as folder, EngineHost(config.runtime, Path(folder)) as engines:
        for arm, file in sorted(files, key=lambda entry: entry[1].name):  # both arms meet the same drift of the machine
            timed, _ = engines.time_model(file)
            found[arm].append(timed.p50_ms)
            found["unstable"] += not timed.stable
    return found


def models_of(args: argparse.Namespace, arm: str, seed: int) -> Path:
    """Where an arm's models are until they are timed again."""
    return CACHE / "efficiency" / args.out.stem / f"{arm}-{seed}"


def emptied(folder: Path) -> Path:
    """The folder without what an interrupted arm has left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def seed_cache(folder: Path) -> None:
    """Decoded images, which both arms find; nothing that a teacher or a student has made."""
    folder.mkdir(parents=True)
    for file in CACHE.glob("images-*"):
        shutil.copy(file, folder)


# --- rows -------------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Any]:
    empty: dict[str, Any] = {"shared": {}, "rows": {}}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
    return content


def keep(args: argparse.Namespace, name: str, row: dict[str, Any]) -> None:
    content = read(args.out)
    content["rows"][name] = row
    facts = {name: getattr(args, name) for name in ("train_limit", "trials", "our_trials", "epochs", "overrides")}
    content["shared"] = {"device": device_facts(), "threads": torch.get_num_threads(), "versions": versions(), "ours": OURS, **facts}
    content["result"] = result(content)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.out, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(run_main(main))
