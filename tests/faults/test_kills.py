"""kill -9 at random moments of a real study with two workers (`make faults` does it 50 times)."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.cli import run_main
from search import doctor
from tests.faults.kills import end_of, finished, kill_rounds
from tests.faults.runs import log_of


@pytest.mark.slow
def test_killed_runs_lose_nothing_and_the_study_ends_with_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = kill_rounds(tmp_path, kills=2, seed=1, latest_s=2.0)
    assert rows[-1]["before"] > 0, "a trial must have been at risk"
    assert [row["lost"] for row in rows] == [0, 0]
    assert [row["doubled"] for row in rows] == [0, 0]
    before = finished(tmp_path)
    wanted = len(before) + 3
    assert end_of(tmp_path, before) == {"wanted": wanted, "finished": wanted, "running": 0, "lost": 0, "doubled": 0}
    monkeypatch.chdir(tmp_path)
    assert run_main(doctor.main, ["--study", "tiny", "--repair"]) == 0, capfd.readouterr()
    assert "rank  trial  accuracy %" in log_of(tmp_path)
