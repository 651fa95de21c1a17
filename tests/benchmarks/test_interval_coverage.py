"""The simulation of latency intervals: its law, and the sentence of docs/protocol.md."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import interval_coverage


def test_blocks_that_hardly_spread_need_the_fewest_and_wide_ones_never_become_stable() -> None:
    draw = np.random.default_rng(1)
    still = interval_coverage.simulated(0.001, 50, 40, draw)
    assert (still["stable"], still["mean_blocks"]) == (1.0, 10.0)
    assert still["held"] >= 0.88
    wild = interval_coverage.simulated(0.5, 20, 40, draw)
    assert (wild["stable"], wild["mean_blocks"]) == (0.0, 40.0)


def test_the_command_writes_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(interval_coverage, "RESULT", tmp_path / "coverage.json")
    assert interval_coverage.main(["--count", "5"]) == 0
    result = json.loads((tmp_path / "coverage.json").read_text())
    assert [row["spread"] for row in result["rows"]] == list(interval_coverage.SPREADS)
    assert capsys.readouterr().out.strip() == interval_coverage.sentence(result)


def test_the_sentence_names_every_spread_with_its_coverage() -> None:
    rows = [{"spread": 0.01, "held": 0.968}, {"spread": 0.02, "held": 0.941}]
    told = interval_coverage.sentence({"count": 1500, "rows": rows})
    assert "1,500 simulated measurements" in told
    assert "spread by 1 and 2 %, it held the true median in 97 and 94 %" in told
