"""The timer of a quantisation-aware step runs every quantiser's own training step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import qat_step


def test_every_way_is_timed_and_compared_with_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "steps.json"
    assert qat_step.main(["--student", "resnet8", "--batch", "4", "--rounds", "1", "--steps", "1", "--eager", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows.keys() == {"float", *qat_step.TRAINED}
    assert rows["float"]["ratio"] == 1.0
    assert all(row["ms"] > 0 for row in rows.values())
    assert "x float" in capsys.readouterr().out
