"""The torch.fx graph of a network in which every planned layer is one call of one module."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from core.errors import UserError

FORWARDS = (nn.Conv2d.forward, nn.Linear.forward)
TRACE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
"""What tracing, or a forward that is run on proxies, is known to raise (fx's TraceError is a ValueError)."""


class _Tracer(fx.Tracer):
    """Subclasses of convolutions and linear layers are calls too, not their insides."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, nn.Conv2d | nn.Linear) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module, planned: Collection[str], input_shape: tuple[int, int, int]) -> fx.GraphModule:
    """The graph of an eval-mode network, sharing its modules, with the shape of every tensor for a batch of 2 images (C, H, W).

    Raises UserError when torch.fx cannot trace it, or when a layer of `planned` is no plain call of a Conv2d or Linear.
    """
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
        with torch.inference_mode():
            ShapeProp(traced).propagate(torch.zeros(2, *input_shape))
    except TRACE_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the network's forward must be traceable by torch.fx for any batch, but {type(model).__name__} is not ({reason}); "
            "take control flow and sizes that depend on tensors out of forward"
        ) from error
    _check_layers(traced, planned)
    return traced


def _check_layers(traced: fx.GraphModule, planned: Collection[str]) -> None:
    nodes = list(traced.graph.nodes)
    called = {str(node.target) for node in nodes if node.op == "call_module"}
    read = {str(node.target).rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    for name in planned:
        if name not in called or name in read:
            raise UserError(
                f"every convolution and linear layer must run as a call of its own module, but {name!r} is used inside another one "
                "or by its weight; write that block with plain nn.Conv2d and nn.Linear"
            )
        layer = traced.get_submodule(name)
        kind = type(layer)
        if kind.forward not in FORWARDS or getattr(kind, "_conv_forward", None) not in (nn.Conv2d._conv_forward, None):
            raise UserError(
                f"layers are quantised as plain nn.Conv2d or nn.Linear, but {name!r} is a {kind.__name__} with a forward of its own; "
                "apply what it adds outside of the layer"
            )
