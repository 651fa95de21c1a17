"""From a trained float network and integer weights to the graph that is simulated, calibrated and exported.

One torch.fx graph serves all three, so simulation and engine cannot differ in where they quantise:
batch norm is folded, every planned layer holds integers, and explicit Q/DQ points stand where the runtimes fuse them
(docs/architecture.md, decision 3): the input of every INT8 layer, both inputs of a residual add between INT8 layers or the
skipping one alone, and the input of a pooling after one.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import fx, nn

from core.candidate import ShapePlan
from core.quantise.fold import fold_batch_norms
from core.quantise.layers import ActivationQuantiser, IntegerConv2d, IntegerLinear, activation_quantisers
from core.quantise.stored import StoredWeight
from core.quantise.trace import trace

Grid = Literal["uint8_relu", "int8"]
Addends = Literal["both", "skip"]

ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
CATS = (torch.cat, torch.concat, torch.concatenate)
CLIPS = (nn.ReLU, nn.ReLU6, F.relu, F.relu6, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
RELUS = (
    *CLIPS,
    *(nn.Sigmoid, torch.sigmoid, F.sigmoid, nn.Hardsigmoid, F.hardsigmoid),
)
MAX_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, F.max_pool2d, F.adaptive_max_pool2d, torch.max_pool2d)
MEAN_POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d, F.avg_pool2d, F.adaptive_avg_pool2d, "mean", torch.mean)
PASSES = (
    *(nn.Flatten, torch.flatten, "flatten", "view", "reshape", torch.reshape, torch.unsqueeze, torch.squeeze, "contiguous"),
    nn.ZeroPad2d,
)
REORDERINGS = (
    *(operator.getitem, "split", torch.split, "chunk", torch.chunk, nn.ChannelShuffle, torch.channel_shuffle),
    *("transpose", torch.transpose, "permute", torch.permute),
)
IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)


def build_graph(
    model: nn.Module,
    weights: Mapping[str, StoredWeight],
    plan: ShapePlan,
    grid: Grid,
    input_shape: tuple[int, int, int],
    addends: Addends = "both",
    dequantises_once: bool = True,
) -> fx.GraphModule:
    """The quantised network: eval mode, on the CPU, activations not yet calibrated. `input_shape` is (C, H, W).
    `addends` and `dequantises_once` as of `Runtime`.

    Raises UserError when torch.fx cannot trace the model.
    """
    names = [layer.name for layer in plan.layers]
    traced = trace(copy.deepcopy(model).cpu().eval(), names, input_shape)
    drop_identities(traced)
    folded = fold_batch_norms(traced, weights)
    on_maps = _linears_on_maps(traced)
    for layer in plan.layers:
        as_product = layer.execution == "float" and not dequantises_once
        _replace(traced, layer.name, folded[layer.name], as_conv=layer.name in on_maps, as_product=as_product)
    int8 = {layer.name for layer in plan.layers if layer.execution == "int8"}
    _insert_quantisers(traced, int8, grid, addends)
    _add_integers(traced, int8)
    traced.graph.lint()
    traced.recompile()
    return traced


def round_as(traced: fx.GraphModule, *, by_reciprocal: bool, rounds_bias: bool) -> None:
    """Let a quantised graph round as the engines of a runtime do; both facts as of `Runtime`. The exported file stays the same.

    ONNX Runtime 1.31 rounds the bias of a convolution whose result meets a Q/DQ point next, or a ReLU or clip before it, and nothing else.
    """
    for point in activation_quantisers(traced):
        point.by_reciprocal = by_reciprocal
    for node in traced.graph.nodes if rounds_bias else ():
        layer = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(layer, IntegerConv2d) or (isinstance(layer, IntegerLinear) and layer.as_conv):
            end = node
            while len(end.users) == 1 and _is(traced, user := next(iter(end.users)), CLIPS):
                end = user
            layer.rounds_bias = len(end.users) == 1 and _is(traced, next(iter(end.users)), (ActivationQuantiser,))


def drop_identities(traced: fx.GraphModule) -> None:
    """A tensor under two names would get two quantisers, and a residual block's shortcut is an nn.Identity."""
    for node in list(traced.graph.nodes):
        off = node.target is F.dropout and node.kwargs.get("training") is False
        if off or (node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), IDENTITIES)):
            node.replace_all_uses_with(_input(node))
            traced.graph.erase_node(node)


def _linears_on_maps(traced: fx.GraphModule) -> set[str]:
    """Rewire every Linear on (B, C) to take (B, C, 1, 1) and give (B, K, 1, 1); return their names.

    A flattening in front of it goes, so that the classifier becomes a 1x1 convolution right on the pooled map. One that is called on
    tokens (B, T, C) too stays what it is, and takes (B, 1, C).
    """
    modules = dict(traced.named_modules())
    calls = [node for node in traced.graph.nodes if node.op == "call_module" and isinstance(modules[node.target], nn.Linear)]
    names = {str(node.target) for node in calls} - {str(node.target) for node in calls if len(_shape(_input(node))) != 2}
    used = {node for node in traced.graph.nodes if node.users}
    for node in calls:
        if node.target in names:
            _take_map(traced, node)
        elif len(_shape(_input(node))) == 2:
            _take_token(traced, node)
    # only what the rewiring left over: a call whose result nobody takes may still work in place
    traced.graph.eliminate_dead_code(lambda node: node.is_impure() or node not in used)
    return names


def _take_map(traced: fx.GraphModule, node: fx.Node) -> None:
    source = _input(node)
    before = source.all_input_nodes[:1]
    with traced.graph.inserting_before(node):
        if _is(traced, source, PASSES) and before and tuple(_shape(before[0])) == (*_shape(source), 1, 1):
            pooled = before[0]
        else:
            pooled = traced.graph.call_function(torch.unsqueeze, (traced.graph.call_function(torch.unsqueeze, (source, 2)), 3))
    node.args, node.kwargs = (pooled,), {}
    _squeeze_after(traced, node, 3, 2)


def _take_token(traced: fx.GraphModule, node: fx.Node) -> None:
    with traced.graph.inserting_before(node):
        token = traced.graph.call_function(torch.unsqueeze, (_input(node), 1))
    node.args, node.kwargs = (token,), {}
    _squeeze_after(traced, node, 1)


def _squeeze_after(traced: fx.GraphModule, node: fx.Node, *dimensions: int) -> None:
    """Whoever took the node's result takes it without these dimensions, left out in turn."""
    first = last = node
    for dimension in dimensions:
        with traced.graph.inserting_after(last):
            last = traced.graph.call_function(torch.squeeze, (last, dimension))
        first = last if first is node else first
    node.replace_all_uses_with(last, delete_user_cb=lambda user: user is not first)


def _input(node: fx.Node) -> fx.Node:
    """The tensor that a layer is called on."""
    return node.all_input_nodes[0]


def _shape(node: fx.Node) -> torch.Size:
    """() for what is no single tensor."""
    return getattr(node.meta.get("tensor_meta"), "shape", torch.Size())


def _replace(traced: fx.GraphModule, name: str, weight: StoredWeight, *, as_conv: bool, as_product: bool) -> None:
    layer = traced.get_submodule(name)
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    if isinstance(layer, nn.Conv2d):
        new: nn.Module = IntegerConv2d(layer, weight, as_product=as_product)
    else:
        new = IntegerLinear(layer, weight, as_conv=as_conv, as_product=as_product)
    parent, _, leaf = name.rpartition(".")
    setattr(traced.get_submodule(parent), leaf, new)


# --- placement of Q/DQ -----------------------------------------------------------------------------------------------


def _insert_quantisers(traced: fx.GraphModule, int8: set[str], grid: Grid, addends: Addends) -> None:
    """Rewire every edge that must be INT8 through one quantiser per tensor."""
    placed: dict[fx.Node, fx.Node] = {}
    nodes = list(traced.graph.nodes)
    domain = _int8_domain(traced, nodes, int8)
    for node in nodes:
        for source in _quantised_inputs(traced, node, int8, domain, addends):
            if source not in placed:
                placed[source] = _quantiser_after(traced, source, grid, placed)
            node.replace_input_with(source, placed[source])


def _add_integers(traced: fx.GraphModule, int8: set[str]) -> None:
    """Let INT8 layers that read one Q/DQ point add up its integers, as kernels do: float sums flip a rounding behind them now and then."""
    read: dict[str, set[str]] = {}
    for node in traced.graph.nodes:
        if node.op == "call_module" and node.target in int8:
            read.setdefault(str(node.target), set()).add(str(_input(node).target))
    for name, points in read.items():
        layer, sources = traced.get_submodule(name), [traced.get_submodule(point) for point in points]
        if isinstance(layer, IntegerConv2d | IntegerLinear) and layer.on_grid and len(sources) == 1:
            assert isinstance(sources[0], ActivationQuantiser)
            layer.read_from(sources[0])


def _quantised_inputs(traced: fx.GraphModule, node: fx.Node, int8: set[str], domain: set[fx.Node], addends: Addends) -> list[fx.Node]:
    if node.op == "call_module" and node.target in int8:
        return list(node.all_input_nodes[:1])
    if _is(traced, node, ADDS) and node in domain:
        inputs = list(dict.fromkeys(node.all_input_nodes))
        whole = _added_before_rounding(traced, inputs, int8) if addends == "skip" else None
        return [source for source in inputs if source is not whole]
    if _is(traced, node, MEAN_POOLS) and node in domain:
        return list(node.all_input_nodes[:1])
    # ONNX Runtime 1.31 pushes Q/DQ through a max pooling and mistypes it where a float operation follows
    if _is(traced, node, MAX_POOLS) and node in domain and all(user.target in int8 for user in node.users):
        return list(node.all_input_nodes[:1])
    return []


def _added_before_rounding(traced: fx.GraphModule, addends: list[fx.Node], int8: set[str]) -> fx.Node | None:
    """Of the inputs of a residual add the result of the last INT8 layer before it, where nothing else takes that."""
    results = [node for node in traced.graph.nodes if node in addends and node.op == "call_module" and node.target in int8]
    return results[-1] if len(addends) == 2 and results and len(results[-1].users) == 1 else None


def _int8_domain(traced: fx.GraphModule, nodes: list[fx.Node], int8: set[str]) -> set[fx.Node]:
    """Nodes whose values come out of INT8 layers: adds and pools among them are quantised, float stretches are left alone."""
    domain: set[fx.Node] = set()
    for node in nodes:
        inputs = node.all_input_nodes
        if node.op == "call_module" and node.target in int8:
            domain.add(node)
        elif _is(traced, node, ADDS):
            if len(inputs) == 2 and all(source in domain for source in inputs):
                domain.add(node)
        elif any(_is(traced, node, kinds) for kinds in (RELUS, MAX_POOLS, MEAN_POOLS, PASSES)) and inputs and inputs[0] in domain:
            domain.add(node)
    return domain


def _quantiser_after(traced: fx.GraphModule, source: fx.Node, grid: Grid, placed: dict[fx.Node, fx.Node]) -> fx.Node:
    """A quantiser on the tensor `source`. Behind a max pooling of a quantised tensor the same one: its values are on that grid."""
    pooled = source.all_input_nodes[:1]
    if _is(traced, source, MAX_POOLS) and pooled and pooled[0].target in {q.target for q in placed.values()}:
        name = str(pooled[0].target)
    else:
        name = f"quantise_{source.name}"
        traced.add_submodule(name, ActivationQuantiser(signed=grid == "int8" or not _non_negative(traced, source)))
    with traced.graph.inserting_after(source):
        return traced.graph.call_module(name, (source,))


def _non_negative(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Is every value of this tensor >= 0 by structure?"""
    if _is(traced, node, RELUS):
        return True
    inputs = node.all_input_nodes
    if any(_is(traced, node, kinds) for kinds in (MAX_POOLS, MEAN_POOLS, PASSES, REORDERINGS, (ActivationQuantiser,))):
        return _non_negative(traced, inputs[0])
    # an added number, or a factor alpha, may be negative
    tensors_only = (
        _is(traced, node, ADDS) and len(node.args) == 2 and not node.kwargs and all(isinstance(arg, fx.Node) for arg in node.args)
    )
    return (tensors_only or _is(traced, node, CATS)) and all(_non_negative(traced, source) for source in inputs)


def _is(traced: fx.GraphModule, node: fx.Node, kinds: tuple[object, ...]) -> bool:
    if node.op == "call_module":
        classes = tuple(kind for kind in kinds if isinstance(kind, type))
        return isinstance(traced.get_submodule(str(node.target)), classes)
    return node.op in ("call_function", "call_method") and node.target in kinds
