"""The first trials of a study are chosen, not drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from optuna.trial import FixedTrial, TrialState

from core.allocate.haq import bits_of
from core.candidate import Candidate
from core.yaml_io import parse
from objectives.bench import Workbench
from search.baselines import ALLOCATED_KEY, all_baselines, baselines, by_size
from search.first_trials import LEFT_KEY, FirstTrials
from search.sample import sample
from search.space import Space, load_space

SIZES = {"resnet8": 78, "resnet14": 170, "resnet20": 270, "resnet8x4": 1200}


@pytest.fixture
def space() -> Space:
    return load_space(Path("spaces/cifar10.yaml"))


def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize", "minimize"])


def test_every_student_starts_unpruned_at_four_bits(space: Space) -> None:
    drawn = [sample(space, FixedTrial(parameters)) for parameters in all_baselines(space, SIZES)]
    for name in SIZES:
        assert any(
            c.student == name and {g.weight_bits for g in c.groups} == {4} and {g.prune_ratio for g in c.groups} == {0.0} for c in drawn
        )


def test_the_smallest_come_first_and_the_largest_is_also_tried_at_eight_bits(space: Space) -> None:
    drawn = [sample(space, FixedTrial(parameters)) for parameters in all_baselines(space, SIZES)]
    assert [(each.student, each.width) for each in drawn] == [
        *(("resnet8", 0.5), ("resnet8", 1.0), ("resnet14", 1.0), ("resnet20", 1.0), ("resnet8x4", 1.0), ("resnet8x4", 1.0))
    ]
    assert [{group.weight_bits for group in each.groups} for each in drawn] == [{4}] * 5 + [{8}]
    assert {group.execution for each in drawn for group in each.groups} == {"int8"}


def test_the_baselines_stay_in_the_space(space: Space) -> None:
    made = study()
    for parameters in all_baselines(space, SIZES):
        made.enqueue_trial(parameters)
        trial = made.ask()
        sample(space, trial)
        assert trial.params == parameters


# --- student by student ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def first(space: Space) -> FirstTrials:
    """Without a choice of execution no engine is timed, so no workbench is asked."""
    fixed = space.model_copy(update={"quantise": space.quantise.model_copy(update={"execution": "int8"})})
    return FirstTrials(fixed, cast(Workbench, None), SIZES, None, pytest.fail)


def test_a_student_is_queued_when_those_before_it_were_taken(first: FirstTrials) -> None:
    made = study()
    for number, student in enumerate(by_size(first.space, SIZES)):
        for _ in range(2):
            first.queue(made)
        waiting = made.get_trials(states=(TrialState.WAITING,))
        assert {trial.system_attrs["fixed_params"]["student"] for trial in waiting} == {student}
        assert made.user_attrs[LEFT_KEY] == by_size(first.space, SIZES)[number + 1 :]
        assert (ALLOCATED_KEY in made.user_attrs) == (number + 1 == len(SIZES))
        for _ in waiting:
            made.tell(made.ask(), state=TrialState.PRUNED)
    first.queue(made)
    assert [trial.system_attrs["fixed_params"] for trial in made.trials] == all_baselines(first.space, SIZES)


def test_a_process_that_died_before_it_said_what_is_left_queues_nothing_twice(first: FirstTrials) -> None:
    made = study()
    first.queue(made)
    while made.get_trials(states=(TrialState.WAITING,)):
        made.tell(made.ask(), state=TrialState.PRUNED)
    made.set_user_attr(LEFT_KEY, by_size(first.space, SIZES))
    first.queue(made)
    assert len(made.trials) == len(baselines(first.space, SIZES, "resnet8"))


def test_a_process_that_dies_while_it_queues_leaves_the_rest_to_the_next(first: FirstTrials, monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = study(), [optuna.Study.enqueue_trial]

    def dying(self: optuna.Study, *arguments: Any, **options: Any) -> None:
        if not calls:
            raise KeyboardInterrupt
        calls.pop()(self, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(optuna.Study, "enqueue_trial", dying)
        with pytest.raises(KeyboardInterrupt):
            first.queue(made)
    assert len(made.trials) == 1
    for _ in all_baselines(first.space, SIZES):
        first.queue(made)
        made.tell(made.ask(), state=TrialState.PRUNED)
    found = [trial.system_attrs["fixed_params"] for trial in made.trials if "fixed_params" in trial.system_attrs]
    assert found == all_baselines(first.space, SIZES)


def test_a_study_that_began_without_gets_no_baselines(first: FirstTrials) -> None:
    made = study()
    sample(first.space, made.ask())
    first.queue(made)
    assert len(made.trials) == 1
    assert LEFT_KEY not in made.user_attrs


# --- what a baseline answers to questions that it does not care for ----------------------------------------------------------------


def small(**sections: Any) -> Space:
    return parse(Space, {"student": {"name": ["resnet8", "resnet20"]}} | sections, "x.yaml")


def drawn(space: Space, **more: Any) -> list[Candidate]:
    return [sample(space, FixedTrial(parameters)) for parameters in all_baselines(space, {"resnet8": 1, "resnet20": 2, "self": 3}, **more)]


def test_what_is_usual_is_preferred_where_it_is_offered() -> None:
    space = small(
        distil={"init": ["inherit", "scratch"], "loss": ["at", "kd", "lskd"], "grid": [1, 2, 4]},
        prune={"ratio": 0.3, "importance": ["bn_scale", "l1", "l2", "taylor"], "round_to": [4, 8, 16]},
        quantise={"quantiser": ["codebook", "float", "lsq", "rate"], "weight_bits": [4, 8], "sparsity": {"low": 0.0, "high": 0.9}},
    )
    for candidate in drawn(space):
        assert (candidate.distil.init, candidate.distil.loss, candidate.distil.grid) == ("inherit", "kd", 1)
        assert (candidate.importance, candidate.round_to, candidate.quantiser, candidate.sparsity) == ("l2", 8, "lsq", 0.0)


def test_pruning_comes_first_where_the_order_is_open() -> None:
    space = small(order=[["quantise", "prune"], ["prune", "quantise"]], quantise={"weight_bits": [4, 8]})
    assert {candidate.order for candidate in drawn(space)} == {"prune, quantise"}


def test_what_is_not_usual_is_in_the_middle() -> None:
    space = small(distil={"loss": ["dkd", "lskd"], "temperature": {"low": 2, "high": 8, "log": True}}, quantise={"weight_bits": [4, 8]})
    assert {(each.distil.loss, each.distil.temperature) for each in drawn(space)} == {("lskd", 4.0)}


@pytest.mark.parametrize("choices", [[2, 3, 4, 5, 6, 7, 8, 16], [2, 4, 8], [3, 5, 6, 8]])
def test_actions_of_haq_mean_the_bits_that_a_baseline_wants(choices: list[int]) -> None:
    space = small(allocation="haq", quantise={"weight_bits": choices, "positions": 3, "execution": ["int8", "float"]})
    found = [{bits_of(action, choices) for action in candidate.allocation.actions} for candidate in drawn(space)]
    four = min(choices, key=lambda bits: abs(bits - 4))
    assert found == [{four}, {four}, {8}]


@pytest.mark.parametrize(
    ("names", "teacher", "first"),
    [
        (["resnet8", "resnet20"], None, "resnet20"),
        (["resnet8", "resnet20"], "airbench", "resnet20"),
        (["resnet8", "resnet20"], "resnet8", "resnet8"),
        (["self", "resnet20"], "resnet20", "self"),
    ],
)
def test_the_teacher_s_own_network_is_the_one_at_eight_bits(names: list[str], teacher: str | None, first: str) -> None:
    found = drawn(small(student={"name": names}, quantise={"weight_bits": [4, 8]}), teacher=teacher)
    assert [candidate.student for candidate in found if candidate.groups[0].weight_bits == 8] == [first]
    assert {candidate.student for candidate in found if candidate.groups[0].weight_bits == 4} == set(names)
