"""Training through 8-bit activations: the network as it trains, with the Q/DQ points of its export in the places where they will stand.

The scales are calibrated before, on the network in float, and stay: what follows a batch norm keeps its range while weights find their
grids, and with fixed scales a point costs a training step about as much as a ReLU, where learned ones (LSQ) cost two sums over every map.

References: Jacob et al. 2018, Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference, arXiv
1712.05877: simulated quantisation (section 3), the gradient passes within the range. Departures: the range is chosen once, as for an
export, not by a moving average; batch norms stay unfolded in training, as with `lsq`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from core.quantise.fold import norms_after
from core.quantise.graph import drop_identities
from core.quantise.layers import ActivationQuantiser, on_grid
from core.quantise.setting import Finetune, Penalty
from core.quantise.trace import trace

SIMULATED = ("lsq", "rate")
"""Quantisers that train weights on the grids on which engines compute; of the others none trains INT8 layers."""


def through(points: fx.GraphModule, finetune: Finetune, planned: Collection[str], input_shape: tuple[int, int, int]) -> Finetune:
    """`finetune`, with the calibrated activations of `points` simulated: a quantised graph of the network that will be trained.

    Dropout does not act meanwhile, as in the graph. The network itself is trained in place, and is in eval mode afterwards.
    """

    def simulated(model: nn.Module, penalty: Penalty | None = None) -> nn.Module:
        learner = Simulated(model.eval(), points, planned, input_shape)
        finetune(learner, penalty) if penalty is not None else finetune(learner)
        return model.cpu().eval()

    return simulated


def take_scales(graph: fx.GraphModule, points: fx.GraphModule) -> None:
    """Give every Q/DQ point of `graph` the scale of the point of the same name in `points`, which has the same ones."""
    known = dict(points.named_modules())
    for name, point in graph.named_modules():
        if isinstance(point, ActivationQuantiser):
            point.scale.copy_(known[name].scale)


class Simulated(nn.Module):
    """Shares the layers of `model`; its forward goes through the points. `features` and `classifier` as the model has them, if it does."""

    def __init__(self, model: nn.Module, points: fx.GraphModule, planned: Collection[str], input_shape: tuple[int, int, int]) -> None:
        super().__init__()
        with _marked_features(model) as marked:
            traced = trace(model, planned, input_shape)
        candidates = _behind_identities(marked)
        drop_identities(traced)
        _insert(traced, points, planned)
        _give(traced, candidates)
        traced.graph.lint()
        traced.recompile()
        self.graph = traced

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        logits: Tensor = self.graph(images)[0]
        return logits

    def features(self, images: Tensor) -> Tensor:
        """The last map (B, C, h, w), as the model's own `features` gives it."""
        maps: Tensor = self.graph(images)[1]
        return maps

    @property
    def classifier(self) -> nn.Module:
        """The model's own."""
        return self.graph.get_submodule("classifier")


class FixedPoint(nn.Module):
    """A calibrated Q/DQ point through which gradients pass, within its range."""

    scale: Tensor

    def __init__(self, point: ActivationQuantiser) -> None:
        super().__init__()
        # a tensor: by a number CUDA multiplies with the reciprocal
        self.register_buffer("scale", point.scale.detach().clone(), persistent=False)
        self.low, self.high, self.by_reciprocal = point.low, point.high, point.by_reciprocal
        ends = (point.low * float(point.scale), point.high * float(point.scale))
        self.around = {dtype: _around(dtype, *ends) for dtype in (torch.float32, torch.bfloat16, torch.float16)}

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same, on the grid: in float32 bit for bit what the export's simulation gives."""
        return RoundWithin.apply(x, self.scale, self.low, self.high, self.by_reciprocal, self.around[x.dtype])


class RoundWithin(torch.autograd.Function):
    """`on_grid`, and the gradient within the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int, by_reciprocal: bool, around: tuple[float, float]) -> Tensor:
        ctx.save_for_backward(x)
        ctx.around = around
        return on_grid(x, scale, low, high, by_reciprocal=by_reciprocal)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (x,) = ctx.saved_tensors
        # one pass, where two comparisons, their conjunction and a product are four
        return torch.ops.aten.hardtanh_backward(grad, x, *ctx.around), None, None, None, None, None


def _around(dtype: torch.dtype, low: float, high: float) -> tuple[float, float]:
    """The nearest float32 numbers, in which kernels compare, outside of [low, high], whose ends are rounded to `dtype`."""
    ends = torch.tensor([low, high], dtype=dtype).float()
    below, above = torch.nextafter(ends, torch.tensor([-torch.inf, torch.inf])).tolist()
    least = torch.finfo(torch.float32).tiny  # smaller ones may count as 0
    return min(below, -least) if low == 0 else below, above


@contextmanager
def _marked_features(model: nn.Module) -> Iterator[list[fx.Node]]:
    """While a trace runs within it, collects the nodes that `model.features` gives: a method, or a module."""
    found: list[fx.Node] = []
    inner: Any = getattr(model, "features", None)

    def note(output: Any) -> None:
        if isinstance(output, fx.Proxy):
            found.append(output.node)

    def marked(*inputs: Any) -> Any:
        output = inner(*inputs)
        note(output)
        return output

    if isinstance(inner, nn.Module):
        handle = inner.register_forward_hook(lambda module, inputs, output: note(output))
        try:
            yield found
        finally:
            handle.remove()
    elif callable(inner):
        model.__dict__["features"] = marked
        try:
            yield found
        finally:
            del model.__dict__["features"]
    else:
        yield found


def _insert(traced: fx.GraphModule, points: fx.GraphModule, planned: Collection[str]) -> None:
    """Put every point of the export before the same users; there norms are folded, so what stands behind a layer stands behind its norm."""
    nodes = {node.name: node for node in traced.graph.nodes}
    norms = norms_after(traced, planned)
    placed: dict[fx.Node, fx.Node] = {}
    for call in points.graph.nodes:
        point = points.get_submodule(str(call.target)) if call.op == "call_module" else None
        if not isinstance(point, ActivationQuantiser):
            continue
        name = str(call.target)
        traced.add_submodule(name, FixedPoint(point))
        for user in (nodes[each.name] for each in call.users):
            source = _known(call.all_input_nodes[0], nodes)
            source = norms.get(source, source)
            if source not in user.all_input_nodes:  # a linear layer: the export gives it a map, training the same values flat
                (source,) = user.all_input_nodes
            if source not in placed:
                with traced.graph.inserting_after(source):
                    placed[source] = traced.graph.call_module(name, (source,))
            user.replace_input_with(source, placed[source])


def _known(source: fx.Node, nodes: Mapping[str, fx.Node]) -> fx.Node:
    """The node of `nodes` whose values `source` has: the export makes maps of vectors, and vectors of maps."""
    while source.name not in nodes:
        (source,) = source.all_input_nodes
    return nodes[source.name]


def _behind_identities(marked: list[fx.Node]) -> list[fx.Node]:
    """The last marked node, and what stands for it where it is an identity that will be dropped, and so on."""
    found = marked[-1:]
    while found and found[-1].all_input_nodes:
        found.append(found[-1].all_input_nodes[0])
    return found


def _give(traced: fx.GraphModule, candidates: list[fx.Node]) -> None:
    """Let the graph give (logits, features): the first candidate that is left, or None."""
    nodes = list(traced.graph.nodes)
    kept = set(nodes)
    nodes[-1].args = ((nodes[-1].args[0], next((node for node in candidates if node in kept), None)),)
