"""Pruning of transformers: whole heads of attention, and layer norms whose weights stay in order.

A cut inside of heads keeps fitting shapes and mixes what belongs to different heads. So heads go whole, where the network says that their
number may change (core/students/attention.py, `Attention`), and any other multi-head attention keeps its channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from core.students.attention import Attention


class OrderedLayerNorm(tp.pruner.function.LayernormPruner):
    """Cuts a layer norm and keeps the order of what remains: Torch-Pruning 1.6 takes the order of a Python set, which is not ascending."""

    def prune_out_channels(self, layer: nn.LayerNorm, idxs: Sequence[int]) -> nn.Module:
        """The norm without the channels `idxs`, in place."""
        gone = set(idxs)
        keep = torch.tensor([index for index in range(layer.normalized_shape[-1]) if index not in gone])
        for name in ("weight", "bias"):
            value = getattr(layer, name)
            if value is not None:
                setattr(layer, name, nn.Parameter(value.detach().index_select(-1, keep.to(value.device))))
        layer.normalized_shape = (*layer.normalized_shape[:-1], len(keep))
        return layer

    prune_in_channels = prune_out_channels


def norm_pruners(model: nn.Module) -> dict[type[nn.Module], OrderedLayerNorm]:
    """Torch-Pruning's customised pruners for every class of layer norm in the network."""
    return {type(module): OrderedLayerNorm() for module in model.modules() if isinstance(module, nn.LayerNorm)}


def head_dims(model: nn.Module) -> dict[nn.Module, int]:
    """Channels of one head, for every projection whose heads may go."""
    return {
        layer: block.head_dim
        for block in model.modules()
        if isinstance(block, Attention)
        for layer in (block.query, block.key, block.value)
    }


def attention_heads(group: tp.Group) -> int:
    """Heads that the channels of this group are shared out to; 1 where no attention is passed, or one with a single head.

    The graph is traced with one image, so the batch of a matrix product counts heads. Where several attentions share channels: a multiple.
    """
    return math.lcm(*(heads_of(item.dep.target.grad_fn) for item in group.items))


def heads_of(function: Any) -> int:
    """Heads of one function of autograd's graph."""
    name = function.name() if hasattr(function, "name") else ""
    if name == "BmmBackward0":
        return int((function._saved_self if function._saved_self is not None else function._saved_mat2).shape[0])
    if name.startswith("ScaledDotProduct"):
        return int(function._saved_query.shape[-3])
    return 1


def weakest_heads(scores: Tensor, head_dim: int, remaining: int) -> tuple[int, ...]:
    """The channels of all but the `remaining` strongest heads, ascending; ties go to the first. `scores` has one value per channel."""
    heads = scores.detach().float().cpu().view(-1, head_dim).sum(1)
    gone = torch.argsort(heads, stable=True)[: len(heads) - remaining].tolist()
    return tuple(head * head_dim + slot for head in sorted(gone) for slot in range(head_dim))
