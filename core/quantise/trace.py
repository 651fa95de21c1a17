"""The torch.fx graph of a network in which every planned layer is one call of one module."""

from __future__ import annotations

import inspect
import io
import operator
from collections.abc import Collection
from contextlib import redirect_stderr
from typing import Any

import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils import parametrize

from core.errors import UserError

FORWARDS = (nn.Conv2d.forward, nn.Linear.forward)
NORMS = tuple(f"torch.nn.modules.{name}" for name in ("batchnorm", "instancenorm", "normalization"))
IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
TRACE_ERRORS = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)
"""What tracing, or a forward that is run on proxies, is known to raise (fx's TraceError is a ValueError)."""


class _Tracer(fx.Tracer):
    """Subclasses of convolutions and linear layers are calls too, not their insides; so are those of norms that keep torch's forward."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kept = type(m).forward.__module__ in NORMS
        return isinstance(m, nn.Conv2d | nn.Linear) or kept or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        """One input, the images: further arguments of forward are what they are by default, as in every call of ours."""
        _, images = list(inspect.signature(root_fn).parameters)[:2]
        return root_fn, [self.root, self.create_proxy("placeholder", images, (), {})]


def trace(model: nn.Module, planned: Collection[str], input_shape: tuple[int, int, int]) -> fx.GraphModule:
    """The graph of an eval-mode network, sharing its modules, with the shape of every tensor for a batch of 2 images (C, H, W).

    Raises UserError when torch.fx cannot trace it, or when a layer of `planned` is no plain call of a Conv2d or Linear.
    """
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
        with torch.inference_mode(), redirect_stderr(io.StringIO()):  # ShapeProp prints the traceback of what it raises
            ShapeProp(traced).propagate(torch.zeros(2, *input_shape))
    except TRACE_ERRORS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"the network's forward must be traceable by torch.fx for any batch, but {type(model).__name__} is not ({reason}); "
            "take control flow and sizes that depend on tensors out of forward"
        ) from error
    _check_layers(traced, planned)
    _name_results_in_place(traced)
    return traced


def _name_results_in_place(traced: fx.GraphModule) -> None:
    """Let whoever comes after an operation in place take its result, not the tensor under its old name.

    As it runs these are one tensor; once a Q/DQ point stands on it they are two.
    """
    places = {node: place for place, node in enumerate(traced.graph.nodes)}
    for node, place in places.items():
        if not _works_in_place(traced, node):
            continue
        source = node.all_input_nodes[0]
        for user in [user for user in source.users if places[user] > place]:
            user.replace_input_with(source, node)
    traced.recompile()


def _works_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if not node.all_input_nodes or "tensor_meta" not in node.all_input_nodes[0].meta:  # a size is a number, and n += 1 makes another one
        return False
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return _ends_in_place(str(node.target))
    if node.op == "call_function":
        name = getattr(node.target, "__name__", "")
        return node.target in IN_PLACE or _ends_in_place(name) or _asks_in_place(node)
    return False


def _ends_in_place(name: str) -> bool:
    """torch's convention: add_, relu_."""
    return name.endswith("_") and not name.endswith("__")


def _asks_in_place(node: fx.Node) -> bool:
    """By the argument `inplace` of a function, by name or by place."""
    try:
        given = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin without a signature
        return bool(node.kwargs.get("inplace", False))
    return given.get("inplace") is True


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
        if "weight" not in layer._parameters and not parametrize.is_parametrized(layer, "weight"):
            raise UserError(
                f"layers must hold their weight themselves, but that of {name!r} is made by a hook (torch.nn.utils.spectral_norm, say); "
                "take torch.nn.utils.parametrizations instead"
            )
        if kind.forward not in FORWARDS or getattr(kind, "_conv_forward", None) not in (nn.Conv2d._conv_forward, None):
            raise UserError(
                f"layers are quantised as plain nn.Conv2d or nn.Linear, but {name!r} is a {kind.__name__} with a forward of its own; "
                "apply what it adds outside of the layer"
            )
