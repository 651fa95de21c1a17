"""The first trials of a study are chosen, not drawn."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

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
