"""The timer of a quantisation-aware step runs every quantiser's own training step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import qat_step


def test_every_way_is_timed_and_compared_with_float(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "steps.json"
    words = ["--student", "resnet8", "--batch", "4", "--rounds", "1", "--steps", "1", "--eager", "--out", str(out)]
    assert qat_step.main(words) == 0
    (elsewhere,) = json.loads(out.read_text())["machines"]
    elsewhere["device"]["cpu"] = "another"
    out.write_text(json.dumps({"machines": [elsewhere]}))
    for _ in range(2):  # the second measurement of a machine takes the place of the first
        assert qat_step.main(words) == 0
    measured = json.loads(out.read_text())
    assert [each["device"]["cpu"] == "another" for each in measured["machines"]] == [True, False]
    assert qat_step.section(measured).count("| step | ms |") == 2
    rows = measured["machines"][-1]["rows"]
    assert rows.keys() == {"float", *qat_step.TRAINED}
    assert rows["float"]["ratio"] == 1.0
    assert all(row["ms"] > 0 for row in rows.values())
    assert "x float" in capsys.readouterr().out
