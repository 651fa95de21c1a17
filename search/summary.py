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

PACKAGES = ("torch", "torchvision", "torch-pruning", "optuna", "onnx", "onnxscript", "onnxruntime", "openvino", "numpy")


def write_summary(folder: Path, records: Sequence[TrialRecord], teacher: TeacherReport, facts: Mapping[str, Any]) -> None:
    """Write the three files; `facts` are what run.json holds besides counts and seconds."""
    best = front(records)
    front_csv(best, teacher, folder / "front.csv")
    front_html(records, best, teacher, folder / "front.html")
    write_run_json(folder, records, teacher, facts)


def write_run_json(folder: Path, records: Sequence[TrialRecord], teacher: TeacherReport, facts: Mapping[str, Any]) -> None:
    """The account of a run: machine, versions, teacher, trials, seconds."""
    account = {
        **facts,
        "versions": versions(),
        "teacher": teacher.model_dump(mode="json"),
        "trials": dict(Counter(record.state for record in records)),
        "seconds_per_stage": seconds_per_stage(records),
    }
    write_atomically(folder / "run.json", json.dumps(account, indent=2) + "\n")


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
