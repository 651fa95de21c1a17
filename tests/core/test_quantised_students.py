"""Where Q/DQ stands in students that are more than convolutions in a row."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import fx, nn

from core.quantise.layers import ActivationQuantiser, IntegerConv2d
from core.students import STUDENTS
from core.students.attention import Attention, MapNorm
from tests.tiny_nets import plan_of, quantised, settled

SHAPE = (3, 8, 8)
CLASSES = 5


def graph_of(name: str) -> fx.GraphModule:
    torch.manual_seed(0)
    model = settled(STUDENTS[name](classes=CLASSES, image_size=8, width=0.05), SHAPE)
    return quantised(model, plan_of(model, SHAPE), SHAPE)


def points(graph: fx.GraphModule) -> dict[fx.Node, ActivationQuantiser]:
    """What each Q/DQ point is put on."""
    modules = dict(graph.named_modules())
    return {
        node.all_input_nodes[0]: modules[str(node.target)]
        for node in graph.graph.nodes
        if node.op == "call_module" and isinstance(modules[str(node.target)], ActivationQuantiser)
    }


def test_what_the_blocks_of_a_shufflenet_exchange_takes_the_unsigned_grid() -> None:
    graph = graph_of("shufflenet_v2")
    modules = dict(graph.named_modules())
    exchanged = [
        point
        for source, point in points(graph).items()
        if source.target is operator.getitem or isinstance(modules.get(str(source.target)), nn.ChannelShuffle)
    ]
    # 13 blocks take a half; two that halve the map and the last convolution take everything
    assert len(exchanged) == 13 + 2 + 1
    assert not any(point.signed for point in exchanged)


@pytest.mark.parametrize("name", ["hybrid_serial", "hybrid_parallel"])
def test_every_projection_of_a_hybrid_is_an_int8_convolution(name: str) -> None:
    graph = graph_of(name)
    modules = dict(graph.named_modules())
    quantisers = {node.name for node in graph.graph.nodes if isinstance(modules.get(str(node.target)), ActivationQuantiser)}
    calls = [node for node in graph.graph.nodes if isinstance(modules.get(str(node.target)), IntegerConv2d)]
    model = STUDENTS[name](classes=CLASSES, image_size=8, width=0.05)
    assert len(calls) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert all(node.all_input_nodes[0].name in quantisers for node in calls)


@pytest.mark.parametrize("name", ["hybrid_serial", "hybrid_parallel"])
def test_queries_keys_and_values_share_one_point_and_products_softmax_and_norms_stay_in_float(name: str) -> None:
    graph = graph_of(name)
    blocks = [name for name, module in STUDENTS[name](classes=CLASSES, width=0.05).named_modules() if isinstance(module, Attention)]
    by_target = {str(node.target): node for node in graph.graph.nodes}
    for block in blocks:
        sources = {by_target[f"{block}.{layer}"].all_input_nodes[0] for layer in ("query", "key", "value")}
        assert len(sources) == 1
    placed = set(points(graph))
    floats = [node for node in graph.graph.nodes if node.target in (torch.matmul, "softmax")]
    assert len(floats) == 3 * len(blocks)
    modules = dict(graph.named_modules())
    for node in floats:
        assert not any(isinstance(modules.get(str(source.target)), ActivationQuantiser) for source in node.all_input_nodes)
        assert node not in placed
    assert not any(source.target == "softmax" for source in placed)


def test_the_hidden_layer_of_a_transformer_block_takes_the_unsigned_grid() -> None:
    graph = graph_of("hybrid_serial")
    hidden = [point for source, point in points(graph).items() if str(source.target).endswith(".relu")]
    assert len(hidden) == 3
    assert not any(point.signed for point in hidden)


def test_a_norm_over_channels_stays_a_layer_norm() -> None:
    graph = graph_of("hybrid_serial")
    norms = sum(isinstance(module, nn.LayerNorm) for module in graph.modules())
    assert norms == sum(isinstance(module, MapNorm) for module in STUDENTS["hybrid_serial"](classes=CLASSES).modules())
