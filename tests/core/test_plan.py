"""From depth positions to layers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.candidate import Candidate, GroupPlan
from core.layers import LayerInfo
from core.plan import genes, group_of, prune_ratios, shape_plan


def layers(count: int, depthwise: tuple[int, ...] = ()) -> list[LayerInfo]:
    return [LayerInfo(f"l{i}", "conv", 8, 8, (3, 3), 8 if i in depthwise else 1, 576, 576, (1, 1)) for i in range(count)]


def candidate(*groups: GroupPlan, **options: object) -> Candidate:
    return Candidate(student="resnet8", groups=groups, **options)  # type: ignore[arg-type]


@given(layers=st.integers(1, 120), groups=st.integers(1, 120))
def test_positions_follow_depth_and_stay_in_range(layers: int, groups: int) -> None:
    positions = [group_of(index, layers, groups) for index in range(layers)]
    assert positions == sorted(positions)
    assert positions[0] == 0
    assert positions[-1] < groups
    if groups <= layers:
        assert set(positions) == set(range(groups))


@given(count=st.integers(1, 60))
def test_as_many_positions_as_layers_map_one_to_one(count: int) -> None:
    assert [group_of(index, count, count) for index in range(count)] == list(range(count))


def test_one_position_rules_every_layer() -> None:
    gene = GroupPlan(weight_bits=3, prune_ratio=0.5)
    assert set(genes(candidate(gene), layers(7)).values()) == {gene}
    assert set(prune_ratios(candidate(gene), layers(7)).values()) == {0.5}


def test_genes_go_to_their_third() -> None:
    groups = [GroupPlan(weight_bits=bits) for bits in (2, 4, 6)]
    by_layer = genes(candidate(*groups), layers(6))
    assert [by_layer[f"l{i}"].weight_bits for i in range(6)] == [2, 2, 4, 4, 6, 6]


def test_the_first_and_the_last_layer_have_edge_bits() -> None:
    plan = shape_plan(candidate(GroupPlan(weight_bits=2), edge_bits=8), layers(4), depthwise_int8=True)
    assert [layer.weight_bits for layer in plan.layers] == [8, 2, 2, 8]
    assert plan.mean_bits == 5.0
    plan = shape_plan(candidate(GroupPlan(weight_bits=2), edge_bits=None), layers(4), depthwise_int8=True)
    assert [layer.weight_bits for layer in plan.layers] == [2, 2, 2, 2]


def test_sixteen_bits_execute_in_float_whatever_was_sampled() -> None:
    plan = shape_plan(candidate(GroupPlan(weight_bits=16, execution="int8"), edge_bits=8), layers(3), depthwise_int8=True)
    assert [layer.execution for layer in plan.layers] == ["int8", "float", "int8"]


@pytest.mark.parametrize(("allowed", "execution"), [(True, "int8"), (False, "float")])
def test_depthwise_layers_execute_as_the_runtime_says(allowed: bool, execution: str) -> None:
    plan = shape_plan(candidate(GroupPlan()), layers(3, depthwise=(1,)), depthwise_int8=allowed)
    assert [layer.execution for layer in plan.layers] == ["int8", execution, "int8"]


def test_the_plan_names_student_width_and_what_pruning_left() -> None:
    plan = shape_plan(candidate(GroupPlan(), width=0.5), layers(2), depthwise_int8=True)
    assert (plan.student, plan.width) == ("resnet8", 0.5)
    assert [(layer.name, layer.out_channels) for layer in plan.layers] == [("l0", 8), ("l1", 8)]
