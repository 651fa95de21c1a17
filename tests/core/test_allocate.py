"""Laws of the strategies that choose bits: the budget is kept, and each rule does what it says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from core.allocate import STRATEGIES, allocate
from core.allocate.haq import action_of, bits_of, clamped
from core.allocate.problem import Evidence, Free, Problem
from core.allocate.sensitivity import cheapest, expected_losses, measure_losses
from core.allocate.sqnr import sqnr_db
from core.candidate import AllocationPlan, Candidate, GroupPlan, ShapePlan
from core.compress import plan_of, prune, resolve, rough_bytes
from core.config import PtqConfig
from core.errors import InfeasibleCandidate, TrialError, UserError
from core.layers import layer_infos
from core.runtimes import RUNTIMES
from core.runtimes.types import Runtime
from core.students import STUDENTS
from tests.tiny_nets import CLASSES, SHAPE, images, settled

RUNTIME = replace(RUNTIMES["onnxruntime"](), int8_bits=8)
"""As on a CPU that multiplies INT8 directly, whatever this one is."""
RULE = PtqConfig()
CHOICES = (2, 3, 4, 5, 6, 8)
STATED = {
    "haq": AllocationPlan(strategy="haq", choices=CHOICES, actions=(0.9, 0.2, 0.6), budget_bits=3.5),
    "sqnr": AllocationPlan(strategy="sqnr", choices=CHOICES, budget_bits=3.5),
    "sensitivity": AllocationPlan(strategy="sensitivity", choices=CHOICES, budget_bits=3.5),
    "sdq": AllocationPlan(strategy="sdq", choices=CHOICES, budget_bits=3.5),
    "per_layer": AllocationPlan(strategy="per_layer", choices=CHOICES, layers=tuple(((4, "int8"), (3, "float")) * 40)),
}


def network(name: str = "resnet8") -> nn.Module:
    torch.manual_seed(3)
    return settled(STUDENTS[name](classes=CLASSES, image_size=8, width=0.5).eval())


def candidate(plan: AllocationPlan, name: str = "resnet8", **changes: object) -> Candidate:
    groups = (GroupPlan(prune_ratio=0.5), GroupPlan(), GroupPlan(execution="float"))
    return Candidate(student=name, width=0.5, groups=groups, round_to=4, allocation=plan).model_copy(update=changes)


def evidence_of(model: nn.Module, of: Candidate, runtime: Runtime = RUNTIME) -> Evidence:
    infos = layer_infos(model, SHAPE)
    names = [info.name for info in infos]

    def planned(asked: Candidate) -> ShapePlan:
        return plan_of(asked, infos, runtime)

    def file_bytes(asked: Candidate) -> int:
        return rough_bytes(model, planned(asked), SHAPE, runtime, asked.quantiser)

    return Evidence(model, of.student, lambda: expected_losses(model, names, of.allocation.choices, RULE), file_bytes, planned, RULE)


def chosen(of: Candidate, model: nn.Module | None = None, runtime: Runtime = RUNTIME) -> Candidate:
    pruned = prune(model or network(of.student), of, SHAPE)
    return allocate(of, layer_infos(pruned, SHAPE), evidence_of(pruned, of, runtime))


def problem(weights: list[int], budget: int | None, choices: tuple[int, ...] = CHOICES) -> Problem:
    free = tuple(Free(f"layer{index}", index, count, 1) for index, count in enumerate(weights))
    return Problem(free, choices, len(weights), budget)


def plan_bits(of: Candidate, model: nn.Module) -> dict[str, int]:
    return {layer.name: layer.weight_bits for layer in resolve(model, of, SHAPE, RUNTIME)[1].layers}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_settles_every_layer_and_changes_neither_shapes_nor_executions(strategy: str) -> None:
    model, asked = network(), candidate(STATED[strategy])
    found = chosen(asked, model)
    before, after = (resolve(model, each, SHAPE, RUNTIME)[1].layers for each in (asked, found))
    assert len(found.groups) == len(after)
    assert [layer.out_channels for layer in before] == [layer.out_channels for layer in after]
    if strategy != "per_layer":
        assert [layer.execution for layer in before] == [layer.execution for layer in after]
    assert {layer.weight_bits for layer in after[1:-1]} <= set(CHOICES)
    assert after[0].weight_bits == after[-1].weight_bits == asked.edge_bits


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_settled_is_not_settled_again(strategy: str) -> None:
    found = chosen(candidate(STATED[strategy]))
    if strategy != "sdq":  # open until its training has found them
        assert found.allocation.settled
        assert chosen(found) is found


@pytest.mark.parametrize("strategy", ["haq", "sqnr", "sensitivity"])
@pytest.mark.parametrize("bits", [3.0, 5.5])
def test_the_file_is_at_most_as_large_as_with_the_budget_s_bits_in_every_layer(strategy: str, bits: float) -> None:
    model = network()
    found = chosen(candidate(STATED[strategy].model_copy(update={"budget_bits": bits, "actions": (1.0,) * bool(strategy == "haq")})), model)
    uniform = candidate(
        AllocationPlan(), groups=tuple(g.model_copy(update={"weight_bits": int(bits + 0.5)}) for g in candidate(AllocationPlan()).groups)
    )
    sizes = [rough_bytes(*resolve(model, each, SHAPE, RUNTIME), SHAPE, RUNTIME, "ptq") for each in (found, uniform)]
    assert sizes[0] <= sizes[1]
    if bits == int(bits):
        assert sizes[0] > 0.9 * sizes[1]  # nor is much of it left


@pytest.mark.parametrize("quantiser", ["lsq", "codebook"])
@pytest.mark.parametrize("strategy", ["haq", "sqnr", "sensitivity"])
def test_a_budget_in_kb_is_one_of_the_whole_file(strategy: str, quantiser: str) -> None:
    model = network()
    limit = 12.0
    plan = STATED[strategy].model_copy(update={"budget_bits": None, "budget_kb": limit, "actions": (1.0,) * bool(strategy == "haq")})
    found = chosen(candidate(plan, quantiser=quantiser), model)
    size = rough_bytes(*resolve(model, found, SHAPE, RUNTIME), SHAPE, RUNTIME, quantiser)
    assert 0.85 * limit * 1000 < size <= limit * 1000


@pytest.mark.parametrize("strategy", ["haq", "sqnr", "sensitivity"])
@pytest.mark.parametrize("share", [0.0, 0.4, 0.8])
def test_a_budget_in_kb_is_kept_where_layers_in_int8_have_seven_bits_at_most(strategy: str, share: float) -> None:
    model, runtime = network(), replace(RUNTIME, int8_bits=7)
    plan = STATED[strategy].model_copy(update={"choices": (8, 16), "budget_bits": None, "actions": (1.0,) * bool(strategy == "haq")})

    def bytes_of(asked: Candidate) -> int:
        return rough_bytes(*resolve(model, asked, SHAPE, runtime), SHAPE, runtime, asked.quantiser)

    groups = (GroupPlan(weight_bits=8),), (GroupPlan(weight_bits=16),)
    least, most = (bytes_of(Candidate(student="resnet8", width=0.5, edge_bits=8, groups=each)) for each in groups)
    limit = (least + share * (most - least)) / 1000
    asked = candidate(plan.model_copy(update={"budget_kb": limit}), groups=(GroupPlan(weight_bits=8),), edge_bits=8)
    assert bytes_of(chosen(asked, model, runtime)) <= limit * 1000


@pytest.mark.parametrize("strategy", ["haq", "sqnr", "sensitivity", "sdq"])
def test_a_budget_that_the_fewest_bits_break_is_infeasible(strategy: str) -> None:
    plan = STATED[strategy].model_copy(update={"budget_bits": None, "budget_kb": 1.0})
    with pytest.raises(InfeasibleCandidate, match=r"allocation\.budget_kb 1, .* 2 bits in each take"):
        chosen(candidate(plan))


def test_per_layer_takes_the_bits_and_the_execution_of_each_layer_in_order() -> None:
    model = network()
    layers = resolve(model, chosen(candidate(STATED["per_layer"]), model), SHAPE, RUNTIME)[1].layers
    assert [layer.weight_bits for layer in layers[1:-1]] == [(4, 3)[index % 2] for index in range(1, len(layers) - 1)]
    assert [layer.execution for layer in layers] == [("int8", "float")[index % 2] for index in range(len(layers))]


def test_per_layer_needs_a_position_for_every_layer() -> None:
    with pytest.raises(UserError, match=r"resnet8 has 10 and quantise\.positions is 4; set quantise\.positions to 10"):
        chosen(candidate(AllocationPlan(strategy="per_layer", choices=CHOICES, layers=((4, "int8"),) * 4)))


# --- haq -------------------------------------------------------------------------------------------------------------


@given(st.floats(0, 1), st.integers(1, 4), st.integers(1, 7))
def test_an_action_becomes_the_bits_of_haq_s_formula_clipped_to_the_choices(action: float, low: int, span: int) -> None:
    high = low + span
    expected = min(max(round((high - low + 1) * action + low - 0.5), low), high)
    assert bits_of(action, range(low, high + 1)) == expected


@given(st.lists(st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]), min_size=1, max_size=8, unique=True).map(sorted))
def test_an_action_that_is_made_for_bits_becomes_these_bits(choices: list[int]) -> None:
    for bits in choices:
        assert bits_of(action_of(bits, choices), choices) == bits
        assert bits_of(float(f"{action_of(bits, choices):.12g}"), choices) == bits  # as a search asks for it


def test_actions_reach_every_choice_and_rise() -> None:
    found = [bits_of(index / 100, (2, 4, 8)) for index in range(101)]
    assert found == sorted(found)
    assert set(found) == {2, 4, 8}


def test_a_budget_takes_bits_from_the_last_layer_first_and_stops_at_the_first_fit() -> None:
    given_bits = {"layer0": 8, "layer1": 8, "layer2": 8}
    fits = problem([80, 80, 80], budget=220)
    assert clamped(fits, given_bits) == {"layer0": 8, "layer1": 8, "layer2": 6}
    assert clamped(problem([80, 80, 80], budget=175), given_bits) == {"layer0": 6, "layer1": 6, "layer2": 5}
    assert clamped(problem([80, 80, 80], None), given_bits) == given_bits


# --- sqnr ------------------------------------------------------------------------------------------------------------


def test_a_higher_threshold_never_takes_bits_away() -> None:
    model = network()
    sizes = []
    for threshold in (0.0, 10.0, 16.0, 22.0, 30.0, 60.0):
        plan = AllocationPlan(strategy="sqnr", choices=CHOICES, sqnr_db=threshold)
        sizes.append(tuple(plan_bits(chosen(candidate(plan), model), model).values()))
    assert all(a <= b for low, high in itertools.pairwise(sizes) for a, b in zip(low, high, strict=True))
    assert set(sizes[0][1:-1]) == {2}
    assert set(sizes[-1][1:-1]) == {8}


def test_the_relative_rule_gives_nearly_one_depth_to_all_layers_and_the_absolute_one_does_not() -> None:
    """Heavy tails cost a layer decibels at every depth alike."""
    model = network()
    with torch.no_grad():
        for layer in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
            layer.weight.normal_(std=0.1)
        heavy = layer_infos(model, SHAPE)[3].name
        model.get_submodule(heavy).weight.copy_(torch.distributions.StudentT(3.0).sample(model.get_submodule(heavy).weight.shape))
    relative = plan_bits(chosen(candidate(AllocationPlan(strategy="sqnr", choices=CHOICES, sqnr_loss_db=25.0)), model), model)
    absolute = plan_bits(chosen(candidate(AllocationPlan(strategy="sqnr", choices=CHOICES, sqnr_db=16.0)), model), model)
    names = list(relative)[1:-1]
    assert max(relative[name] for name in names) - min(relative[name] for name in names) <= 1
    assert absolute[heavy] > min(absolute[name] for name in names)


def test_each_bit_is_worth_about_six_decibels() -> None:
    torch.manual_seed(0)
    weight = torch.rand(16, 64) - 0.5
    steps = [sqnr_db(weight, bits + 1, RULE) - sqnr_db(weight, bits, RULE) for bits in range(3, 8)]
    assert all(5.0 < step < 7.5 for step in steps)
    on_grid = torch.arange(-7, 8).repeat(4, 1) / 8
    assert sqnr_db(torch.zeros(4, 4), 4, RULE) == sqnr_db(on_grid, 4, RULE) > 100  # nothing lost
    with pytest.raises(TrialError, match="sqnr needs finite weights"):
        sqnr_db(torch.full((4, 4), torch.nan), 4, RULE)


# --- sensitivity -----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(8, 400), st.integers(1, 1000)), min_size=1, max_size=4), st.floats(0, 1))
def test_integer_programming_finds_the_cheapest_choice_that_keeps_the_budget(layers: list[tuple[int, int]], share: float) -> None:
    choices = (2, 4, 8)
    free = problem([weights for weights, _ in layers], None, choices)
    least, most = free.bytes(free.uniform(2)), free.bytes(free.uniform(8))
    asked = problem([weights for weights, _ in layers], int(least + share * (most - least)), choices)
    losses: Mapping[str, Mapping[int, float]] = {
        layer.name: {bits: cost * 4.0**-bits for bits in choices} for layer, (_, cost) in zip(free.free, layers, strict=True)
    }

    def cost(bits: Mapping[str, int]) -> float:
        return sum(losses[name][depth] for name, depth in bits.items())

    found = cheapest(asked, losses)
    assert asked.keeps(found)
    names = [layer.name for layer in free.free]
    every = [dict(zip(names, depths, strict=True)) for depths in itertools.product(choices, repeat=len(names))]
    best = min(cost(bits) for bits in every if asked.keeps(bits))
    assert cost(found) <= best * (1 + 1e-3) + 1e-9


@pytest.mark.parametrize("everywhere", [0.0, 1e4])
@pytest.mark.parametrize("seed", range(12))
def test_costs_a_thousand_times_as_large_hide_no_difference_between_the_others(seed: int, everywhere: float) -> None:
    """Of a choice that can be avoided, or of one layer at any depth."""
    random = np.random.default_rng(seed)
    choices, free = (2, 4, 8), problem([int(count) for count in random.integers(8, 400, 5)], None, (2, 4, 8))
    least, most = free.bytes(free.uniform(2)), free.bytes(free.uniform(8))
    asked = problem([layer.weights for layer in free.free], int(least + random.uniform(0.3, 1) * (most - least)), choices)
    names = [layer.name for layer in free.free]
    losses = {name: {bits: float(cost) for bits, cost in zip(choices, (1e4, *random.uniform(0, 1e-3, 2)), strict=True)} for name in names}
    every = [dict(zip(names, depths, strict=True)) for depths in itertools.product(choices, repeat=len(names))]
    extra = {name: everywhere if name == names[0] else 0.0 for name in names}
    raised = {name: {bits: cost + extra[name] for bits, cost in row.items()} for name, row in losses.items()}
    costs = [sum(losses[name][depth] for name, depth in bits.items()) for bits in every if asked.keeps(bits)]
    found = cheapest(asked, raised)
    assert asked.keeps(found)
    assert sum(losses[name][depth] for name, depth in found.items()) <= min(costs) * (1 + 1e-4)


def test_the_cost_of_a_layer_is_never_negative_falls_with_bits_and_leaves_the_network_as_it_was() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [info.name for info in layer_infos(model, SHAPE)]
    table = measure_losses(model, names, (2, 4, 8), images(32), RULE)
    assert list(table) == names
    assert all(value >= -1e-6 for row in table.values() for value in row.values())
    assert all(row[2] > row[4] > row[8] for row in table.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("student", ["vgg8", "mobilenet_v2", "shufflenet_v1", "hybrid_parallel", "airbench"])
@pytest.mark.parametrize("strategy", ["haq", "sqnr", "sensitivity"])
def test_every_kind_of_student_takes_every_strategy(student: str, strategy: str) -> None:
    torch.manual_seed(0)
    model = STUDENTS[student](classes=CLASSES, image_size=16, width=0.25).eval()
    asked = candidate(STATED[strategy], student, groups=(GroupPlan(),))
    infos = layer_infos(model, (3, 16, 16))
    losses = expected_losses(model, [info.name for info in infos], CHOICES, RULE) if strategy == "sensitivity" else {}
    found = allocate(
        asked, infos, Evidence(model, student, lambda: losses, lambda each: 0, partial(plan_of, infos=infos, runtime=RUNTIME), RULE)
    )
    free = list(zip(infos, found.groups, strict=True))[1:-1]
    assert sum(info.weights * gene.weight_bits for info, gene in free) <= 3.5 * sum(info.weights for info, _ in free) + 8 * len(free)
    assert len({gene.weight_bits for _, gene in free}) > 1


def test_where_no_layer_is_free_there_is_nothing_to_choose() -> None:
    """A network of two layers, both of which are edges."""
    assert cheapest(Problem((), CHOICES, 2, 0.0), {}) == {}


def test_losses_of_nothing_but_rounding_errors_are_no_losses() -> None:
    asked = problem([100] * 5, 250, (2, 4, 8))
    losses = {layer.name: dict.fromkeys(asked.choices, -1e-09 * (1 + index % 2)) for index, layer in enumerate(asked.free)}
    assert asked.keeps(cheapest(asked, losses))


def test_a_loss_that_is_not_finite_ends_its_trial_alone() -> None:
    asked = problem([100] * 3, 150, (2, 4, 8))
    losses = {layer.name: dict.fromkeys(asked.choices, 1.0) for layer in asked.free}
    losses[asked.free[1].name][asked.choices[0]] = float("nan")
    with pytest.raises(
        TrialError, match=f"sensitivity needs a finite loss for every layer and bit, but that of {asked.free[1].name} is not"
    ):
        cheapest(asked, losses)
