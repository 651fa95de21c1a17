"""The benchmark of float layers' weights on one student: what it times, keeps and prints, not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import folded_weights


def test_a_student_is_timed_with_both_files_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folded.json"
    words = ["--students", "light_cnn", "--max-s", "0.05", "--out", str(out)]
    assert folded_weights.main(words) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["product"], row["int8_layers"], row["error"]) for row in rows] == [(False, 0, None), (True, 0, None)]
    assert folded_weights.main(words) == 0
    assert json.loads(out.read_text())["rows"] == rows  # the milliseconds too: nothing was timed again
    assert "| light_cnn | " in capsys.readouterr().out


def test_the_table_says_how_many_times_faster_a_product_is() -> None:
    device = {"runtime_version": "1.31", "cpu": "a CPU", "isa": ["avx2"]}
    common = {"student": "net", "error": None, "device": device}
    slow, fast = common | {"product": False, "p50_ms": 3.0, "stable": True}, common | {"product": True, "p50_ms": 2.0, "stable": False}
    assert "| net | 3.000 | 2.000* | 1.50 |" in folded_weights.section([slow, fast])
