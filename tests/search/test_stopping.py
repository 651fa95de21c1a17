"""The gate, the samplers and the end of a study, on studies whose objective is a formula (benchmarks/simulated_search.py)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from benchmarks import simulated_search
from benchmarks.simulated_search import EPOCHS, plain
from core.config import StoppingConfig
from core.errors import UserError
from results.front import front, non_dominated, objectives
from results.record import TrialRecord
from search.account import account, account_text, saved
from search.constraints import attributes_of, excesses, pass_on
from search.goal import Goal, volumes_of
from search.samplers import SAMPLERS, STARTUP, WINDOW, make_sampler, make_seed
from search.setup import check_course, check_grid
from search.space import Constraints, load_space
from search.study import DIRECTIONS
from search.trial import TrialRunner
from tests.search.studies import ROOT

TRIALS = 60
ALL = StoppingConfig(skip=False, stop=False)
simulate = partial(simulated_search.simulate, positions=4)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> TrialRunner:
    return simulate("random", 120, 1, tmp_path_factory.mktemp("stopped"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> TrialRunner:
    return simulate("random", 120, 1, tmp_path_factory.mktemp("full"), stopping=ALL)


def test_random_candidates_do_not_depend_on_the_gate(stopped: TrialRunner, full: TrialRunner) -> None:
    assert [record.candidate for record in stopped.records] == [record.candidate for record in full.records]


def test_a_fifth_of_the_training_is_saved_and_little_of_the_front_lost(stopped: TrialRunner, full: TrialRunner) -> None:
    epochs = [sum(len(record.rungs) for record in runner.records) for runner in (stopped, full)]
    assert epochs[0] <= 0.8 * epochs[1]
    volumes = [runner.records[-1].hypervolume or 0.0 for runner in (stopped, full)]
    assert volumes[0] >= 0.98 * volumes[1]


def test_few_of_the_stopped_would_have_joined_the_front(stopped: TrialRunner, full: TrialRunner) -> None:
    ended = [record.number for record in stopped.records if record.ending in ("skipped", "stopped")]
    assert len(ended) >= 30
    kept = [record.number for record in stopped.records if record.state == "COMPLETE"]
    joined = 0
    for number in ended:
        earlier = [full.records[other] for other in kept if other < number]
        points = [objectives(record) for record in [*earlier, full.records[number]]]
        joined += len(points) - 1 in non_dominated(points)
    assert joined <= 0.1 * len(ended)


def test_nothing_is_judged_before_enough_trials_have_finished(stopped: TrialRunner) -> None:
    first = next(record.number for record in stopped.records if record.ending in ("skipped", "stopped"))
    assert sum(record.state == "COMPLETE" for record in stopped.records[:first]) >= 9


def test_a_pruned_trial_says_why_and_keeps_what_was_known(stopped: TrialRunner) -> None:
    for record in stopped.records:
        if record.state != "PRUNED":
            continue
        assert record.size_bytes is not None
        assert record.latency_ms is not None
        assert record.reason is not None
        assert record.reason.startswith("a candidate must be able to join the front, but trial ")
        assert bool(record.rungs) == (record.ending == "stopped")
        assert len(record.rungs) < sum(EPOCHS.values())


def test_the_front_and_its_hypervolume_grow_with_every_record(stopped: TrialRunner) -> None:
    volumes = volumes_of(stopped.records)
    assert len(volumes) == 120
    assert volumes == sorted(volumes)
    assert volumes[0] < volumes[-1]
    assert [record.number for record in stopped.best] == [record.number for record in front(stopped.records)]


@pytest.mark.parametrize("sampler", [*sorted(set(SAMPLERS) - {"gp", "grid"}), "auto"])
def test_a_seed_gives_the_same_study_again(sampler: str, tmp_path: Path) -> None:
    first, second = (simulate(sampler, 30, 3, tmp_path / name) for name in "ab")
    assert plain(first.records) == plain(second.records)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - {"gp", "grid"}))
def test_a_sampler_goes_on_when_every_third_trial_is_pruned(sampler: str, tmp_path: Path) -> None:
    records = simulate(sampler, TRIALS, 0, tmp_path, limited=0.3, stopping=ALL).records
    states = Counter(record.state for record in records)
    assert 0.15 * TRIALS <= states["PRUNED"] <= 0.5 * TRIALS
    assert states["COMPLETE"] + states["PRUNED"] == TRIALS


def test_the_gaussian_process_goes_on_too(tmp_path: Path) -> None:
    assert len(simulate("gp", 12, 0, tmp_path, limited=0.3, stopping=ALL).records) == 12


BOX = {f"x{n}": FloatDistribution(0.0, 1.0) for n in range(3)} | {"kind": CategoricalDistribution(["a", "b"])}


def past(count: int, seed: int, pruned: float = 0.0) -> list[FrozenTrial]:
    """Finished trials of BOX, each with its own parameters; a share of them pruned."""
    luck, found = random.Random(seed), []
    for _ in range(count):
        params: dict[str, Any] = {name: luck.random() for name in ("x0", "x1", "x2")} | {"kind": luck.choice("ab")}
        state = TrialState.PRUNED if luck.random() < pruned else TrialState.COMPLETE
        values = None if state == TrialState.PRUNED else [params["x0"], params["x1"] ** 2, 1 - params["x0"] * params["x2"]]
        found.append(optuna.trial.create_trial(state=state, params=params, distributions=BOX, values=values))
    return found


def asked(sampler: optuna.samplers.BaseSampler, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """What the sampler proposes after these trials."""
    study = optuna.create_study(directions=list(DIRECTIONS), sampler=sampler)
    study.add_trials(trials)
    return study.ask(BOX).params


def test_past_a_thousand_trials_tpe_sees_the_latest_thousand_alone() -> None:
    latest = past(WINDOW, seed=1)
    after = [asked(make_sampler("tpe", 0, 0, 2000), [*past(120, seed), *latest]) for seed in (2, 3)]
    assert after[0] == after[1]
    whole = TPESampler(multivariate=True, constant_liar=True, seed=make_seed(0, 0), n_startup_trials=STARTUP)
    assert asked(whole, [*past(120, 2), *latest]) != after[0]


def test_up_to_a_thousand_trials_tpe_sees_all() -> None:
    few = past(60, seed=1)
    whole = TPESampler(multivariate=True, constant_liar=True, seed=make_seed(0, 0), n_startup_trials=STARTUP)
    assert asked(make_sampler("tpe", 0, 0, 2000), few) == asked(whole, few)


def test_the_gaussian_process_asks_its_model_though_every_third_trial_was_pruned() -> None:
    trials = past(36, seed=0, pruned=0.3)
    assert 6 <= sum(trial.state == TrialState.PRUNED for trial in trials) <= 16
    assert sum(trial.state == TrialState.COMPLETE for trial in trials) > STARTUP
    found = asked(make_sampler("gp", 0, 0, 100), trials)
    assert found.keys() == BOX.keys()
    assert found != asked(make_sampler("random", 0, 0, 100), trials)


def test_an_unknown_sampler_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown sampler 'tpee', did you mean 'tpe'\?; known: gp, grid, nsga2, nsga3, random, tpe"):
        make_sampler("tpee", 0, 0, 10)


def test_auto_takes_a_sampler_whose_asks_stay_cheap_for_a_long_study() -> None:
    assert [type(make_sampler("auto", 0, 0, trials).sampler).__name__ for trials in (1000, 1001)] == ["RecentTPE", "NSGAIISampler"]


def test_time_and_plateau_end_a_study() -> None:
    assert Goal(9).over(1e12, [1.0] * 99) is None
    assert Goal(9, hours=0.5, deadline=100.0).over(99.9, []) is None
    assert Goal(9, hours=0.5, deadline=100.0).over(100.0, []) == "ended early: --max-hours 0.5 are over"
    flat = [1.0, 2.0, 2.0005, 2.001]
    assert Goal(9, plateau=2).over(0.0, flat) == "ended early: the hypervolume grew by less than 0.1 % in 2 trials (--plateau)"
    assert Goal(9, plateau=3).over(0.0, flat) is None
    assert Goal(9, plateau=4).over(0.0, flat) is None  # not yet as many


def test_a_front_that_is_not_in_the_reference_box_yet_is_no_plateau() -> None:
    assert Goal(9, plateau=2).over(0.0, [0.0] * 9) is None
    assert Goal(9, plateau=2).over(0.0, [0.0, 0.0, 0.0, 1.0]) is None
    assert Goal(9, plateau=2).over(0.0, [0.0, 1.0, 1.0, 1.0]) is not None


def test_volumes_of_workers_that_knew_less_do_not_fall() -> None:
    told = [(0, 1.0), (1, 3.0), (2, 2.0), (3, None), (4, 3.5)]
    records = [TrialRecord.model_construct(number=number, state="PRUNED", hypervolume=volume) for number, volume in told]
    assert volumes_of(records) == [1.0, 3.0, 3.0, 3.5]
    failed = TrialRecord.model_construct(number=5, state="FAIL", hypervolume=9.0)
    assert volumes_of([failed, *reversed(records)]) == [1.0, 3.0, 3.0, 3.5]


@pytest.mark.parametrize("seed", range(3))
def test_the_first_ten_trials_draw_a_front(seed: int, tmp_path: Path) -> None:
    assert len(simulate("tpe", 10, seed, tmp_path).best) >= 3


def test_the_account_adds_up_and_calls_its_saving_an_estimate() -> None:
    def trial(number: int, ending: str | None, missed: bool | None = None, **seconds: float) -> TrialRecord:
        state = "COMPLETE" if ending is None else "PRUNED"
        return TrialRecord.model_construct(number=number, state=state, ending=ending, seconds=seconds, hypervolume=None, missed=missed)

    records = [
        trial(0, None, engine=2.0, parent=30.0, allocate=1.0, distil=10.0, quantise=6.0, accuracy=2.0),
        trial(1, None, engine=2.0, distil=20.0, quantise=8.0, accuracy=4.0),
        trial(2, "skipped", engine=2.0),
        trial(3, "stopped", engine=2.0, distil=5.0),
    ]
    assert saved(records) == {"skipped": 25.0, "stopped": 20.0}
    in_full = trial(4, "limit", missed=True, distil=18.0, quantise=4.0, accuracy=3.0)  # a limit of accuracy refused it at the end
    assert saved([*records, in_full, trial(5, "limit"), trial(6, "reused", missed=True)]) == {
        "skipped": 25.0, "stopped": 20.0, "limit": 25.0, "reused": 25.0
    }  # fmt: skip
    told = account(records, [{"teacher_seconds": 100.0, "wall_seconds": 210.0, "sampler_seconds": 1.0, "storage_seconds": 2.0}])
    assert told["seconds"] == {
        "teacher": 100.0, "parents": 30.0, "allocation": 1.0, "training": 49.0, "engine": 8.0, "accuracy": 6.0, "journal": 0.0,
        "waiting": 0.0, "sampler": 1.0, "storage": 2.0, "other": 13.0,
    }  # fmt: skip
    assert told["trials"] == {"complete": 2, "skipped": 1, "stopped": 1}
    assert "estimated" in account_text(told)[1]


def test_a_soft_constraint_is_a_share_of_its_limit(full: TrialRunner) -> None:
    record = full.records[0]
    assert record.size_bytes is not None
    at_limit = Constraints(size_kb=record.size_bytes / 1000, soft=True)
    assert excesses(at_limit, record) == pytest.approx({"size_kb": 0.0})
    strict = Constraints(size_kb=record.size_bytes / 2000, accuracy=1.0, soft=True)
    assert excesses(strict, record)["size_kb"] == pytest.approx(1.0)
    assert excesses(strict, record)["accuracy"] > 0


def test_a_soft_limit_of_size_looks_at_the_file_that_was_measured_where_there_is_one(full: TrialRunner) -> None:
    record = full.records[0]
    assert record.measurement is not None
    coded = record.model_copy(update={"size_bytes": record.measurement.size_bytes // 4})  # what it would have at least
    limit = Constraints(size_kb=record.measurement.size_bytes / 2000, soft=True)
    assert excesses(limit, coded) == pytest.approx({"size_kb": 1.0})
    assert excesses(limit, coded.model_copy(update={"measurement": None}))["size_kb"] < 0


def test_soft_constraints_reach_the_sampler_and_the_dashboard_s_key(full: TrialRunner) -> None:
    record = full.records[0]
    assert record.size_bytes is not None
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    trial = study.ask()
    pass_on(Constraints(size_kb=record.size_bytes / 2000, soft=True), trial, record)
    attributes = study.get_trials()[0].system_attrs
    assert attributes["constraints:size_kb"] == pytest.approx(1.0)
    assert attributes["constraints"] == pytest.approx([1.0])


def test_of_a_hard_limit_they_hear_what_was_refused_and_by_how_far_and_nothing_else(full: TrialRunner) -> None:
    known = full.records[0]
    assert known.size_bytes is not None
    half = Constraints(size_kb=known.size_bytes / 2000)
    refused = known.model_copy(update={"state": "PRUNED", "measurement": None, "latency_ms": None})
    told = attributes_of(half, refused)
    assert (told["constraints:size_kb"], told["constraints"]) == (pytest.approx(1.0), pytest.approx([1.0]))
    assert attributes_of(half, known) == {}  # finished before the limit was set
    skipped = Constraints(size_kb=known.size_bytes / 500)
    assert attributes_of(skipped, refused) == {}
    missed = refused.model_copy(update={"missed": known.measurement})
    assert attributes_of(Constraints(accuracy=1.0), missed)["constraints:accuracy"] > 0


def test_tpe_finds_what_keeps_a_limit_that_few_keep(tmp_path: Path) -> None:
    within = {}
    for sampler in ("random", "tpe"):
        (tmp_path / sampler).mkdir()
        runner = simulate(sampler, 100, 0, tmp_path / sampler, size_kb=4.0, stopping=ALL)
        within[sampler] = sum(record.state == "COMPLETE" for record in runner.records)
    assert within["random"] <= 10
    assert within["tpe"] >= 50


@pytest.mark.parametrize(
    ("wrong", "law"),
    [
        (("tpee", None, None), r"unknown sampler 'tpee', did you mean 'tpe'\?; known: auto, gp, grid, nsga2, nsga3, random, tpe"),
        (("tpe", 0.0, None), r"--max-hours must be a number above 0, but got 0; leave it out for no limit"),
        (("tpe", None, 0), r"--plateau must be at least 1, but got 0; leave it out for none"),
    ],
)
def test_a_course_that_is_none_is_refused(wrong: tuple[str, float | None, int | None], law: str) -> None:
    with pytest.raises(UserError, match=law):
        check_course(*wrong)
    check_course("auto", 0.5, 1)


def test_a_grid_of_endless_combinations_is_refused() -> None:
    space = load_space(ROOT / "spaces" / "cifar10.yaml", [])
    with pytest.raises(UserError, match=r"lists and ranges with a step, but temperature is any number from 2 to 8; give it a step"):
        check_grid(space)
    check_grid(load_space(ROOT / "spaces" / "cifar10.yaml", ["distil.temperature=[2, 4]"]))
