"""run.json is the account of a study, over all the starts that it took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.candidate import LatencyReport
from results.record import TeacherReport, TrialRecord
from search.summary import seconds_per_stage, versions, write_run_json

LATENCY = LatencyReport(
    p50_ms=1.0, p95_ms=1.1, ci_ms=(0.9, 1.1), samples=9, batch=1, threads=1, runtime="r", precision="f32", fingerprint="f", stable=True
)
TEACHER = TeacherReport(accuracy=0.9, size_bytes=1000, latency=LATENCY)


def start(folder: Path, began: float, **facts: float) -> dict[str, Any]:
    write_run_json(folder, [], TEACHER, {"study": "s", "started": began, "command": ["--trials", "2"], **facts})
    account: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return account


def test_seconds_add_up_over_starts_and_a_start_counts_once(tmp_path: Path) -> None:
    start(tmp_path, 1.0, teacher_seconds=30.0)
    start(tmp_path, 1.0, teacher_seconds=30.0, wall_seconds=100.0, teacher_forward_images=50)
    account = start(tmp_path, 2.0, teacher_seconds=0.5, wall_seconds=20.0, teacher_forward_images=0)
    assert [each["started"] for each in account["starts"]] == [1.0, 2.0]
    assert account["wall_seconds"] == 120.0
    assert account["teacher_seconds"] == 30.0
    assert account["teacher_forward_images"] == 50


def test_images_that_a_killed_worker_showed_the_teacher_are_counted_by_its_trials(tmp_path: Path) -> None:
    records = [TrialRecord(number=number, state="FAIL", teacher_forward_images=96 * number) for number in range(3)]
    for counted, expected in ((0, 288), (400, 400)):  # 400: a trial that was cut off has no record
        facts = {"started": 1.0, "teacher_seconds": 0.0, "teacher_forward_images": counted}
        assert write_run_json(tmp_path, records, TEACHER, facts)["teacher_forward_images"] == expected


def test_an_account_that_is_not_whole_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    assert start(tmp_path, 5.0, teacher_seconds=1.0)["wall_seconds"] == 0.0


def test_versions_and_stages_are_complete() -> None:
    assert {"python", "torch", "openvino", "onnxruntime", "optuna"} <= versions().keys()
    assert seconds_per_stage([]) == {}
