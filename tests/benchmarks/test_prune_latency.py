"""The pruning benchmark on one student: says nothing about speed, but everything about whether it runs and what it keeps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import prune_latency


def test_a_student_is_timed_with_and_without_half_of_its_channels_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "prune.json"
    words = ["--students", "light_cnn", "--max-s", "0.05", "--out", str(out)]
    assert prune_latency.main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["execution"], row["ratio"]) for row in rows] == [("int8", 0.0), ("int8", 0.5), ("float", 0.0), ("float", 0.5)]
    for dense, pruned in (rows[:2], rows[2:]):
        assert all(pruned[what] < dense[what] for what in ("channels", "parameters", "macs"))
        assert min(dense["p50_ms"], pruned["p50_ms"]) > 0
    assert prune_latency.main(words) == 0
    assert json.loads(out.read_text())["rows"] == rows  # the milliseconds too: nothing was timed again
    assert "| light_cnn | " in capsys.readouterr().out
