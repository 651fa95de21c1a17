"""A hard limit of accuracy keeps from training what cannot reach it, as trials that missed it have taught (simulated, no training)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

from benchmarks.simulated_search import EPOCHS, ROOT, SimulatedBench, latency_of, measure, shape, simulate
from core.candidate import Rung
from core.config import StoppingConfig
from core.errors import InfeasibleCandidate
from objectives.budget import Known, Limits
from objectives.evaluate import Evaluation
from objectives.outlook import traits_of
from results.record import TrialRecord
from search.progress import Progress
from search.space import load_space
from search.stopping import Gatekeeper, Judge, measured, trained
from search.study import DIRECTIONS
from search.trial import TrialRunner

TRIALS, LIMIT = 120, 0.85
ALL = StoppingConfig(skip=False, stop=False)


def limited(*arguments: Any) -> Evaluation:
    """What `evaluate` does of the limit when a candidate is finished."""
    limits, gate = arguments[4], arguments[7]
    done = measure(*arguments)
    try:
        limits.check_accuracy(done.measurement.accuracy)
    except InfeasibleCandidate:
        gate.note(missed=done.measurement)
        raise
    return done


def search(folder: Path, stopping: StoppingConfig) -> list[TrialRecord]:
    """The records of a study of random candidates with the limit."""
    space = load_space(ROOT / "spaces" / "cifar10.yaml", ["quantise.positions=4", f"constraints.accuracy={LIMIT}"])
    study = optuna.create_study(directions=list(DIRECTIONS), sampler=optuna.samplers.RandomSampler(seed=1))
    with Progress(TRIALS, quiet=True) as progress:
        runner = TrialRunner(space, SimulatedBench(folder, 1, 0.0), progress, [], judge=Judge(stopping))  # type: ignore[arg-type]
        runner.shape, runner.measure = shape, limited
        for _ in range(TRIALS):
            study.optimize(runner, n_trials=1)
            runner.release()
    return runner.records


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    return search(tmp_path_factory.mktemp("judged"), StoppingConfig(confidence=0.95))  # so sure that some must train first


@pytest.fixture(scope="module")
def unjudged(tmp_path_factory: pytest.TempPathFactory) -> list[TrialRecord]:
    return search(tmp_path_factory.mktemp("unjudged"), ALL)


def at_limit(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Those that the limit ended before their training did."""
    return [record for record in records if record.ending == "limit" and record.missed is None]


def test_candidates_beyond_the_limit_are_refused_before_and_during_their_training(judged: list[TrialRecord]) -> None:
    refused = at_limit(judged)
    untrained = [record for record in refused if not record.rungs]
    stopped = [record for record in refused if record.rungs]
    assert len(untrained) >= 10
    assert stopped
    for record in refused:
        assert record.state == "PRUNED"
        assert record.reason is not None
        assert record.reason.startswith(f"accuracy must be at least {LIMIT}, but this one reaches at most 0.")
        assert len(record.rungs) < sum(EPOCHS.values())
    assert all(str(record.reason).endswith("; not trained") for record in untrained)
    assert all("; stopped after epoch " in str(record.reason) for record in stopped)


def test_few_of_the_refused_would_have_kept_the_limit(judged: list[TrialRecord], unjudged: list[TrialRecord]) -> None:
    assert [record.candidate for record in judged] == [record.candidate for record in unjudged]
    kept = [unjudged[record.number].state == "COMPLETE" for record in at_limit(judged)]
    assert sum(kept) <= 0.1 * len(kept)


def test_what_missed_the_limit_is_learned_from(judged: list[TrialRecord], unjudged: list[TrialRecord]) -> None:
    assert trained(unjudged) == unjudged
    missed = [record for record in unjudged if record.missed is not None]
    assert {record.state for record in missed} == {"PRUNED"}
    assert len(missed) >= 20
    finished = Judge(StoppingConfig()).outlook(unjudged).finished
    assert [each.accuracy for each in finished] == [(record.missed or measured(record)).accuracy for record in unjudged]


def test_nothing_is_refused_where_stopping_is_off_or_few_have_finished(judged: list[TrialRecord], unjudged: list[TrialRecord]) -> None:
    assert at_limit(unjudged) == []
    assert len(trained(judged[: at_limit(judged)[0].number])) >= 9


@pytest.mark.parametrize(("switches", "refused"), [({}, "both"), ({"skip": False}, "rung"), ({"stop": False}, "start")])
def test_each_switch_is_for_its_own_moment(switches: dict[str, bool], refused: str, unjudged: list[TrialRecord]) -> None:
    worst = min(unjudged, key=lambda record: (record.missed or measured(record)).accuracy)
    point = worst.missed or measured(worst)
    assert worst.candidate is not None
    known = Known(traits_of(worst.candidate, point.parameters, point.macs), 1, latency_of(0.01))  # so small that no front dominates it
    gate = Gatekeeper(Judge(StoppingConfig(**switches)), lambda: unjudged, list, {}, Limits(accuracy=LIMIT))
    found = set()
    for moment, ask in {
        "start": lambda: gate.before_training(known),
        "rung": lambda: gate.at_rung(known, Rung(stage="distil", epoch=3, accuracy=worst.rungs[2].accuracy)),
        "end": lambda: gate.at_rung(known, Rung(stage="quantise", epoch=2, accuracy=worst.rungs[5].accuracy)),
    }.items():
        try:
            ask()
        except InfeasibleCandidate:
            found.add(moment)
    assert found == ({"start", "rung"} if refused == "both" else {refused})
    assert "ending" not in gate.notes  # the runner calls it a limit


def test_without_a_limit_nobody_is_refused_for_it(tmp_path: Path) -> None:
    assert not at_limit(simulate("random", 40, 1, tmp_path, positions=4).records)
