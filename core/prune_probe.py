"""Does a network move its channels as Torch-Pruning says? One pass tells; groups that it maps wrongly stay whole.

A flip, a shuffle by reshapes or a flattened channels-last map keeps the shape of what passes, so that a cut of other channels than the
ones that arrive runs and says nothing. Here every layer of a coupled group is watched in one forward pass of a batch: its first image
is left alone, each other one has other values in those channels whose number has a certain bit. A layer must see a difference in the
channels that the group says, or in some of them; in all of them where an operation mixes channels, of which nothing can be said. Every
layer hands on what it computes for the first image, with the group's other values in it, so each way from layer to layer is looked at
by itself. Weights are drawn anew: what is found depends on the architecture alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

CHANNELWISE = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
)
"""Layers whose output channels are their input's."""
WATCHED = (nn.Conv2d, nn.Linear, *CHANNELWISE)


@dataclass(frozen=True)
class Use:
    """One layer's part in a group: `images[b, c]` says whether channel c has other values in image b."""

    group: int
    images: Tensor


def moved_otherwise(model: nn.Module, graph: tp.DependencyGraph, groups: Sequence[tp.Group], input_shape: tuple[int, int, int]) -> set[int]:
    """Numbers of those `groups` whose channels do not arrive where the graph says. `model` is in eval mode and stays as it is."""
    device = next(model.parameters()).device
    batch = 1 + max((max(_roots(group)).bit_length() for group in groups), default=0)
    reads: dict[nn.Module, list[Use]] = defaultdict(list)
    writes: dict[nn.Module, list[Use]] = defaultdict(list)
    wrong: set[int] = set()
    for number, group in enumerate(groups):
        for item in group.items:
            layer, pruner = item.dep.target.module, graph.get_pruner_of_module(item.dep.target.module)
            if not isinstance(layer, WATCHED):
                continue
            produces = graph.is_out_channel_pruning_fn(item.dep.handler)
            channels = (pruner.get_out_channels if produces else pruner.get_in_channels)(layer)
            if max(item.idxs) >= channels:
                wrong.add(number)
                continue
            use = Use(number, _told(item, channels, batch).to(device))
            if produces:
                writes[layer].append(use)
            if not produces or isinstance(layer, CHANNELWISE) or isinstance(pruner, tp.pruner.function.DepthwiseConvPruner):
                reads[layer].append(use)

    generator = torch.Generator().manual_seed(0)

    def watch(layer: nn.Module, images: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        if uses := reads.get(layer, ()):
            seen = images[0] if images else next(iter(named.values()))
            changed = _by_channel(seen != seen[:1], layer)
            # of all groups that arrive here: a concatenation brings several
            said = torch.stack([use.images for use in uses]).any(0)
            if bool(((changed & ~said).any(1) & ~changed.all(1)).any()):
                wrong.update(use.group for use in uses)
        handed = torch.empty_like(output).copy_(output[:1])
        for use in writes.get(layer, ()):
            # within what activations leave as it is
            other = torch.rand(output.shape, generator=generator).mul_(1.5).add_(0.5).to(output)
            handed.copy_(torch.where(_like(use.images, output, layer), other, handed))
        return handed

    with ExitStack() as hooks:
        for layer in {*reads, *writes}:
            hooks.callback(layer.register_forward_hook(watch, with_kwargs=True).remove)
        images = torch.randn(1, *input_shape, generator=generator).expand(batch, *input_shape).to(device)
        with torch.no_grad():
            torch.func.functional_call(model, _drawn(model, generator), (images.contiguous(memory_format=torch.channels_last),))
    return wrong


def _roots(group: tp.Group) -> list[int]:
    """Channels of the group's first layer."""
    return list(group.items[0].root_idxs)


def _told(item: Any, channels: int, batch: int) -> Tensor:
    """Bool (batch, channels): image 1 + n has other values in the channels of those roots whose bit n is set."""
    told = torch.zeros(batch, channels, dtype=torch.bool)
    bits = torch.arange(batch - 1)
    for channel, root in zip(item.idxs, item.root_idxs, strict=True):
        told[1:, channel] |= (root >> bits & 1).bool()
    return told


def _by_channel(different: Tensor, layer: nn.Module) -> Tensor:
    """Bool (batch, ...) -> (batch, channels): whether any value of the channel is."""
    if isinstance(layer, nn.Linear | nn.LayerNorm):
        return different.flatten(1, -2).any(1) if different.ndim > 2 else different
    return different.flatten(2).any(2) if different.ndim > 2 else different


def _like(told: Tensor, values: Tensor, layer: nn.Module) -> Tensor:
    """Bool (batch, channels) -> what broadcasts over `values` (batch, ...)."""
    ones = [1] * (values.ndim - 2)
    last = isinstance(layer, nn.Linear | nn.LayerNorm)
    return told.view(len(told), *ones, -1) if last else told.view(len(told), -1, *ones)


def _drawn(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of the same shapes, none of them 0, of which maps keep their size."""
    drawn = {}
    for name, parameter in model.named_parameters():
        uniform = torch.rand(parameter.shape, generator=generator)
        matrix = parameter.ndim > 1
        drawn[name] = ((2 * uniform - 1) / max(1, parameter[0].numel()) ** 0.5 if matrix else 0.5 + uniform).to(parameter)
    return drawn
