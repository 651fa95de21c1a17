"""Every trial asks for the same parameters, and what it answers is a legal candidate of the space."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FixedTrial

from core.candidate import Candidate
from core.errors import UserError
from core.yaml_io import parse
from search.sample import live_parameters, sample
from search.space import Space, default_space, load_space, options

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "spaces").glob("*.yaml"))


def space(**sections: object) -> Space:
    return parse(Space, {"student": {"name": "resnet8"}} | sections, "x.yaml")


def draw(of: Space, trials: int, sampler: optuna.samplers.BaseSampler | None = None, **kwargs) -> list[tuple[Candidate, dict]]:
    study = optuna.create_study(sampler=sampler or RandomSampler(seed=0))
    asked = [study.ask() for _ in range(trials)]
    return [(sample(of, trial, **kwargs), dict(trial.params)) for trial in asked]


@pytest.mark.parametrize("of", [*map(load_space, SHIPPED), default_space()], ids=[*[path.stem for path in SHIPPED], "self"])
def test_every_trial_asks_for_the_same_parameters(of: Space) -> None:
    drawn = draw(of, 20)
    names = [list(params) for _, params in drawn]
    assert all(one == names[0] for one in names)
    assert len(names[0]) == live_parameters(of)
    assert len({candidate.model_dump_json() for candidate, _ in drawn}) > 15


def test_equal_distributions_let_a_multivariate_sampler_work() -> None:
    of = load_space(ROOT / "spaces" / "digits.yaml")
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=TPESampler(seed=0, multivariate=True, n_startup_trials=3))
    for _ in range(6):
        trial = study.ask()
        candidate = sample(of, trial)
        study.tell(trial, [candidate.width, sum(group.weight_bits for group in candidate.groups)])
    assert len(study.trials) == 6


def test_a_fixed_space_asks_nothing_and_yields_the_recipe() -> None:
    of = space(student={"name": "resnet20", "width": 0.5}, prune={"ratio": 0.25}, quantise={"weight_bits": 4})
    ((candidate, params),) = draw(of, 1)
    assert params == {}
    assert live_parameters(of) == 0
    assert (candidate.student, candidate.width, candidate.groups[0].prune_ratio, candidate.groups[0].weight_bits) == (
        "resnet20",
        0.5,
        0.25,
        4,
    )
    assert candidate == sample(of, FixedTrial({}))


@pytest.mark.parametrize(
    ("ratios", "bits", "expected"),
    [
        (1, 3, [(0, 0), (0, 1), (0, 2)]),
        (2, 4, [(0, 0), (0, 1), (1, 2), (1, 3)]),
        (3, 4, [(0, 0), (0, 1), (1, 2), (2, 3)]),
        (4, 2, [(0, 0), (1, 0), (2, 1), (3, 1)]),
    ],
)
def test_genes_spread_evenly_over_the_positions(ratios: int, bits: int, expected: list[tuple[int, int]]) -> None:
    of = space(
        prune={"positions": ratios, "ratio": {"low": 0, "high": 0.5, "step": 0.1}},
        quantise={"positions": bits, "weight_bits": [2, 3, 4, 5]},
    )
    answers = {f"ratio_{i}": i / 10 for i in range(ratios)} | {f"bits_{i}": i for i in range(bits)}
    groups = sample(of, FixedTrial(answers)).groups
    assert [(round(group.prune_ratio * 10), group.weight_bits - 2) for group in groups] == expected


def test_bits_are_indices_into_the_sorted_choices() -> None:
    of = space(quantise={"weight_bits": [16, 2, 4], "execution": ["int8", "float"]})
    found = [sample(of, FixedTrial({"bits_0": i, "exec_0": "float"})).groups[0].weight_bits for i in range(3)]
    assert found == [2, 4, 16]


def test_sixteen_bits_execute_in_float_whatever_the_gene_says() -> None:
    of = space(quantise={"weight_bits": [8, 16], "execution": ["int8", "float"]})
    assert sample(of, FixedTrial({"bits_0": 1, "exec_0": "int8"})) == sample(of, FixedTrial({"bits_0": 1, "exec_0": "float"}))
    assert sample(of, FixedTrial({"bits_0": 0, "exec_0": "int8"})).groups[0].execution == "int8"


def test_an_execution_that_the_runtime_lacks_is_never_asked_for() -> None:
    of = space(quantise={"execution": ["int8", "float"], "positions": 4})
    ((candidate, params),) = draw(of, 1, executions=("float",))
    assert params == {}
    assert {group.execution for group in candidate.groups} == {"float"}
    assert (live_parameters(of), live_parameters(of, ("float",))) == (4, 0)
    with pytest.raises(UserError, match=r"quantise\.execution must allow .*\(float\), but it allows only int8"):
        sample(space(), FixedTrial({}), executions=("float",))


def test_your_own_network_has_width_one_whatever_the_gene_says() -> None:
    of = space(student={"name": ["self", "resnet8"], "width": [0.5, 1.0]})
    assert sample(of, FixedTrial({"student": "self", "width": 0.5})).width == 1.0
    assert sample(of, FixedTrial({"student": "resnet8", "width": 0.5})).width == 0.5


def test_stepped_ratios_carry_no_binary_dust() -> None:
    of = space(prune={"positions": 8, "ratio": {"low": 0.0, "high": 0.9, "step": 0.1}})
    found = {group.prune_ratio for candidate, _ in draw(of, 20) for group in candidate.groups}
    assert found <= {i / 10 for i in range(10)}
    assert len(found) == 10


numbers = st.floats(0.01, 0.99).map(lambda number: round(number, 3))
values = (
    numbers
    | st.lists(numbers, min_size=1, max_size=4, unique=True)
    | st.tuples(numbers, numbers, st.booleans()).map(lambda t: {"low": min(t[:2]), "high": max(t[:2]), "log": t[2]})
)


@settings(max_examples=50)
@given(
    ratio=values,
    width=values,
    weight=values,
    bits=st.lists(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]), min_size=1, unique=True),
    positions=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 99),
)
def test_what_is_sampled_lies_in_the_space(ratio, width, weight, bits, positions, seed) -> None:
    of = space(
        student={"name": ["a", "b"], "width": width},
        distil={"weight": weight},
        prune={"positions": positions[0], "ratio": ratio},
        quantise={"positions": positions[1], "weight_bits": bits, "execution": ["int8", "float"]},
    )
    ((candidate, params),) = draw(of, 1, RandomSampler(seed=seed))
    assert len(params) == live_parameters(of)
    assert len(candidate.groups) == max(positions)
    assert min(options(of.student.width)) <= candidate.width <= max(options(of.student.width))
    assert min(options(of.distil.weight)) <= candidate.distil.weight <= max(options(of.distil.weight))
    for group in candidate.groups:
        assert group.weight_bits in bits
        assert min(options(of.prune.ratio)) <= group.prune_ratio <= max(options(of.prune.ratio))


def test_a_quantiser_s_own_genes_reach_the_candidate() -> None:
    of = space(quantise={"quantiser": ["rate", "codebook"], "rate_weight": {"low": 0.01, "high": 1.0, "log": True}, "sparsity": [0.0, 0.5]})
    trial = FixedTrial({"quantiser": "rate", "rate_weight": 0.25, "sparsity": 0.5})
    found = sample(of, trial)
    assert (found.quantiser, found.rate_weight, found.sparsity, found.sparsity_by) == ("rate", 0.25, 0.5, "ratio")
    assert live_parameters(of) == 3
