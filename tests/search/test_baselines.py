"""The first trials of a study are chosen, not drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from core.allocate.haq import bits_of
from core.candidate import Candidate
from core.yaml_io import parse
from search.baselines import baselines, enqueue_baselines
from search.sample import sample
from search.space import Space, load_space

SIZES = {"resnet8": 78, "resnet14": 170, "resnet20": 270, "resnet8x4": 1200}


@pytest.fixture
def space() -> Space:
    return load_space(Path("spaces/cifar10.yaml"))


def study() -> optuna.Study:
    return optuna.create_study(directions=["maximize", "minimize", "minimize"])


def test_every_student_starts_unpruned_at_four_bits(space: Space) -> None:
    made = study()
    assert enqueue_baselines(made, space, SIZES) == len(baselines(space, SIZES))
    drawn = [sample(space, made.ask()) for _ in baselines(space, SIZES)]
    for name in SIZES:
        assert any(
            c.student == name and {g.weight_bits for g in c.groups} == {4} and {g.prune_ratio for g in c.groups} == {0.0} for c in drawn
        )


def test_the_largest_student_is_also_tried_at_eight_bits(space: Space) -> None:
    made = study()
    enqueue_baselines(made, space, SIZES)
    first = sample(space, made.ask())
    assert first.student == "resnet8x4"
    assert {group.weight_bits for group in first.groups} == {8}
    assert {group.execution for group in first.groups} == {"int8"}


def test_the_baselines_stay_in_the_space(space: Space) -> None:
    made = study()
    for parameters in baselines(space, SIZES):
        made.enqueue_trial(parameters)
        trial = made.ask()
        sample(space, trial)
        assert trial.params == parameters


def test_a_study_with_trials_gets_no_baselines(space: Space) -> None:
    made = study()
    sample(space, made.ask())
    assert enqueue_baselines(made, space, SIZES) == 0


# --- what a baseline answers to questions that it does not care for ----------------------------------------------------------------


def small(**sections: Any) -> Space:
    return parse(Space, {"student": {"name": ["resnet8", "resnet20"]}} | sections, "x.yaml")


def drawn(space: Space, **more: Any) -> list[Candidate]:
    return [sample(space, FixedTrial(parameters)) for parameters in baselines(space, {"resnet8": 1, "resnet20": 2, "self": 3}, **more)]


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
    assert found == [{8}, {four}, {four}]


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
