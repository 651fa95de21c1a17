"""kill -9 at random moments of a real study with two workers (`make faults` does it 50 times)."""

from __future__ import annotations

from pathlib import Path

from search.study import count_finished, count_running
from tests.faults.kills import finished, kill_rounds
from tests.faults.runs import argv, log_of, start
from tests.search.studies import load


def test_killed_runs_lose_nothing_and_the_study_ends_with_its_number(tmp_path: Path) -> None:
    rows = kill_rounds(tmp_path, kills=2, seed=1)
    assert [row["lost"] for row in rows] == [0, 0]
    assert [row["doubled"] for row in rows] == [0, 0]
    before = finished(tmp_path)
    wanted = len(before) + 3
    assert start(tmp_path, *argv("--trials", str(wanted), "--workers", "2")).wait(120) == 0, log_of(tmp_path)[-2000:]
    study = load(folder=tmp_path / "runs" / "tiny")
    assert count_finished(study) == wanted
    assert count_running(study) == 0
    assert {number: finished(tmp_path)[number] for number in before} == before
    assert start(tmp_path, "--study", "tiny", "--repair", module="search.doctor").wait(60) == 0, log_of(tmp_path)[-2000:]
    assert "rank  trial  accuracy %" in log_of(tmp_path)
