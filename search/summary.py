"""What a run leaves beside its models: front.csv, front.html, run.json."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from core.files import write_atomically
from results.front import front
from results.plots import front_html
from results.record import TeacherReport, TrialRecord
from results.table import front_csv
from search.account import account, account_text
from search.goal import volumes_of

PER_START = (
    *("started", "command", "workers", "wall_seconds"),
    *("teacher_seconds", "teacher_forward_images", "sampler_seconds", "storage_seconds"),
)
PACKAGES = (
    *("torch", "torchvision", "torch-pruning", "optuna", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy"),
    *("onnxruntime-gpu", "tensorrt", "tensorrt-rtx-cu13-bindings"),
)


def write_summary(folder: Path, records: Sequence[TrialRecord], teacher: TeacherReport, facts: Mapping[str, Any]) -> list[str]:
    """Write the three files; `facts` are what run.json holds besides counts and seconds. The lines that tell where the time went."""
    best = front(records)
    front_csv(best, teacher, folder / "front.csv")
    front_html(records, best, teacher, folder / "front.html")
    return account_text(write_run_json(folder, records, teacher, facts)["account"])


def write_run_json(folder: Path, records: Sequence[TrialRecord], teacher: TeacherReport, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The account of a study: machine, versions, teacher, trials, seconds; what earlier starts took is kept and added up."""
    over_all = _over_all_starts(folder / "run.json", facts, records)
    volumes = volumes_of(records)
    told = {
        **facts,
        **over_all,
        "account": account(records, over_all["starts"]),
        "hypervolume": volumes[-1] if volumes else None,
        "versions": versions(),
        "teacher": teacher.model_dump(mode="json"),
        "trials": dict(Counter(record.state for record in records)),
        "seconds_per_stage": seconds_per_stage(records),
    }
    write_atomically(folder / "run.json", json.dumps(told, indent=2) + "\n")
    return told


def _over_all_starts(path: Path, facts: Mapping[str, Any], records: Sequence[TrialRecord]) -> dict[str, Any]:
    """`starts`, a row per start of the run, and their sums; the teacher took what it took in the start that trained it."""
    current = {key: facts[key] for key in PER_START if key in facts}
    try:
        earlier = json.loads(path.read_text(encoding="utf-8")).get("starts", [])
    except (OSError, ValueError):
        earlier = []  # the first start, or a file that is not whole: it is only an account
    starts = [start for start in earlier if start["started"] != current["started"]] + [current]
    # a worker that was killed counted for no start, and a trial that was cut off has no record: neither may hide what teachers did
    asked = sum(start.get("teacher_forward_images", 0) for start in starts), sum(record.teacher_forward_images for record in records)
    return {
        "starts": starts,
        "wall_seconds": round(sum(start.get("wall_seconds", 0.0) for start in starts), 1),
        "teacher_seconds": max(start["teacher_seconds"] for start in starts),
        "teacher_forward_images": max(asked),
    }


def seconds_per_stage(records: Sequence[TrialRecord]) -> dict[str, float]:
    """Stage -> seconds over all trials."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.seconds)
    return {stage: round(seconds, 2) for stage, seconds in total.items()}


def versions() -> dict[str, str]:
    """Python and the packages that shape a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
