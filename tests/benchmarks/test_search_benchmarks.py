"""The table of a search and its replay: a recorded row gives its record back, and a replay of a known table says what is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import simulated_search, table_search
from benchmarks.replay import Table, gate_claims, read_table, replay, search, upper_share
from core.config import StoppingConfig
from core.students import STUDENTS
from results.analysis import reference_of
from results.record import TeacherReport
from tests.search.studies import DOT, EPOCHS, SPACE, Dot

NEVER = StoppingConfig(skip=False, stop=False)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """A table of 60 simulated trials; a trial's training took a second."""
    runner = simulated_search.simulate("random", 60, 0, tmp_path_factory.mktemp("table"), stopping=NEVER, positions=4)
    rows = tuple(record.model_copy(update={"seconds": {"distil": 1.0}}) for record in runner.records)
    params = tuple({"bits": record.measurement.mean_bits, "student": record.student} for record in rows if record.measurement)
    teacher = TeacherReport(accuracy=0.93, size_bytes=8_000_000, latency=simulated_search.latency_of(4.0))
    return Table(rows, params, teacher, simulated_search.IMAGES, reference_of(teacher, simulated_search.CLASSES))


def test_a_gate_that_is_open_saves_and_loses_nothing(simulated: Table) -> None:
    outcome = replay(simulated, 0, NEVER)
    assert outcome.saved == pytest.approx(0.0)
    assert outcome.lost == pytest.approx(0.0)
    assert outcome.skipped == outcome.stopped == outcome.would_have_joined == 0


def test_the_gate_saves_time_and_its_claims_are_shares(simulated: Table) -> None:
    claims = gate_claims(simulated, 5, StoppingConfig())
    assert 0 < claims["saved_median"] < 1
    assert -1e-9 <= claims["hypervolume_lost_median"] <= claims["hypervolume_lost_worst_tenth"] < 0.2
    assert claims["would_have_joined"] <= claims["would_have_joined_upper_95"] <= 1
    assert replay(simulated, 3, StoppingConfig()) == replay(simulated, 3, StoppingConfig())


def test_a_sampler_takes_every_row_at_most_once(simulated: Table) -> None:
    taken = list(search(simulated, "random", 0, 20))
    assert len({record.number for record in taken}) == 20


def test_the_limit_of_a_share_is_that_of_the_binomial_law() -> None:
    assert upper_share(0, 59) == pytest.approx(0.0495, abs=1e-3)  # the rule of three
    assert upper_share(5, 5) == 1.0


def test_a_table_is_recorded_goes_on_and_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDENTS, "dot", Dot)
    monkeypatch.chdir(tmp_path)
    settings = [*EPOCHS, *DOT, "runtime.max_s=0.05", "runtime.warmup_s=0.0", "distil.temperature=4"]
    command = ["--space", SPACE, "--study", "t", "--out", "t.json", *(word for each in settings for word in ("--set", each))]
    for rows in (1, 3):
        table_search.main([*command, "--rows", str(rows)])
    content = json.loads(Path("t.json").read_text())
    assert len(content["rows"]) >= 3
    table = read_table(content, classes=10)
    first = table.rows[0]
    assert [rung.stage for rung in first.rungs] == ["distil", "quantise"]
    assert first.candidate is not None
    assert first.candidate.student == "dot"
    assert table_search.record_of(table_search.row_of(first, {})) == first
