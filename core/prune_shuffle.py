"""Pruning between two grouped convolutions with a channel shuffle in between, as in ShuffleNet V1.

A shuffle has no weights, so what it does follows from the number of channels alone, and a cut must leave channels that the smaller shuffle
still deals to where they went. Channels from one group of the first convolution into one group of the second form a cell: inside a cell
they are interchangeable. As many of each cell are kept, the most important ones, as the smaller shuffle deals from group to group, and
they move to the places from which it does so. What remains computes what it did in the dense network.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

SHUFFLE = "ChannelShuffleBackward0"
"""Autograd's name of `nn.ChannelShuffle` and `F.channel_shuffle`."""

CHAINED = (tp.ops.OPTYPE.CONV, tp.ops.OPTYPE.DEPTHWISE_CONV, tp.ops.OPTYPE.BN, tp.ops.OPTYPE.ELEMENTWISE)
"""What may stand between the two convolutions, and they themselves."""

BatchNorm = nn.modules.batchnorm._BatchNorm

Kept = Callable[[int, int], int]
"""(channels, blocks) -> how many channels remain, a multiple of `blocks`."""


@dataclass(frozen=True)
class Link:
    """The layers that share channels across one shuffle."""

    before: tuple[nn.Module, ...]
    """Producers up to the shuffle; the first of them makes the channels."""
    after: tuple[nn.Module, ...]
    """Depthwise convolutions and norms behind it."""
    consumer: nn.Conv2d
    groups: int
    """Of the shuffle."""

    def layout(self, channels: int) -> list[tuple[int, tuple[int, int]]]:
        """For each channel in front of the shuffle: its place behind it, and its cell."""
        maker = self.before[0]
        assert isinstance(maker, nn.Conv2d)
        places = [dealt(channel, channels, self.groups) for channel in range(channels)]
        made, taken = channels // maker.groups, channels // self.consumer.groups
        return [(place, (channel // made, place // taken)) for channel, place in enumerate(places)]


@dataclass(frozen=True)
class ShuffledCut:
    """What remains in front of and behind a shuffle, in its new order, as channels of the dense network."""

    link: Link
    before: tuple[int, ...]
    after: tuple[int, ...]

    def apply(self, _: tp.DependencyGraph) -> None:
        """Cut every layer of the link."""
        for module in self.link.before:
            keep_channels(module, self.before)
        for module in self.link.after:
            keep_channels(module, self.after)
        keep_inputs(self.link.consumer, self.after)


def shuffles(group: tp.Group) -> bool:
    """Whether the channels of this group pass a channel shuffle."""
    return any(is_shuffle(item.dep.target) for item in group.items)


def is_shuffle(node: Any) -> bool:
    name = getattr(node.grad_fn, "name", None)
    return name is not None and name() == SHUFFLE


def shuffled_cut(graph: tp.DependencyGraph, group: tp.Group, rank: Callable[[tp.Group], Tensor | None], kept: Kept) -> ShuffledCut | None:
    """Which channels to keep; None when the group is no plain chain across one shuffle, or no smaller shuffle fits into the dense one."""
    link = find_link(graph, group)
    if link is None:
        return None
    maker = link.before[0]
    assert isinstance(maker, nn.Conv2d)
    dense = link.layout(maker.out_channels)
    # Torch-Pruning takes a shuffle as the identity: what it says of the layers behind belongs to other channels
    channel_at = {place: channel for channel, (place, _) in enumerate(dense)}
    for item in group.items:
        if item.dep.target.module in (*link.after, link.consumer):
            item.root_idxs = [channel_at[place] for place in item.idxs]
    scores = rank(group)
    blocks = math.lcm(maker.groups, link.groups, link.consumer.groups)
    channels = kept(maker.out_channels, blocks)
    if scores is None or maker.out_channels % blocks or channels >= maker.out_channels:
        return None
    before = fill(link.layout(channels), cells(dense), scores.detach().float().cpu())
    if before is None:
        return None
    after = {place: dense[channel][0] for (place, _), channel in zip(link.layout(channels), before, strict=True)}
    return ShuffledCut(link, tuple(before), tuple(after[place] for place in range(channels)))


def fill(layout: Sequence[tuple[int, tuple[int, int]]], dense: dict[tuple[int, int], list[int]], scores: Tensor) -> list[int] | None:
    """For each channel of the smaller layout the dense one that takes its place: the best of its cell; None when a cell has too few."""
    wanted = cells(layout)
    chosen = [-1] * len(layout)
    for cell, places in wanted.items():
        members = dense.get(cell, [])
        if len(members) < len(places):
            return None
        best = torch.argsort(scores[members], descending=True, stable=True)[: len(places)].sort().values
        for place, index in zip(places, best.tolist(), strict=True):
            chosen[place] = members[index]
    return chosen


def cells(layout: Sequence[tuple[int, tuple[int, int]]]) -> dict[tuple[int, int], list[int]]:
    """The channels of each cell, ascending."""
    members: dict[tuple[int, int], list[int]] = defaultdict(list)
    for channel, (_, cell) in enumerate(layout):
        members[cell].append(channel)
    return members


def dealt(channel: int, channels: int, groups: int) -> int:
    """Where a shuffle of `groups` groups puts a channel."""
    size = channels // groups
    return channel % size * groups + channel // size


def find_link(graph: tp.DependencyGraph, group: tp.Group) -> Link | None:
    """The link that this group is, None when it is more than a chain: convolution, then norms, activations, depthwise convolutions and one
    shuffle in any order, then one convolution."""
    nodes = list(dict.fromkeys(item.dep.target for item in group.items))
    followers = [node for node in nodes[1:] if len(node.inputs) == 1 and node.type in CHAINED]
    consumers = [item.dep.target for item in group.items if consumes(graph, item)]
    shuffling = [node for node in nodes if is_shuffle(node)]
    if len(followers) != len(nodes) - 1 or len(consumers) != 1 or len(shuffling) != 1 or not isinstance(consumers[0].module, nn.Conv2d):
        return None
    behind = {node for node in nodes if passes(node, shuffling[0], nodes)}
    layers = [node for node in nodes if isinstance(node.module, nn.Conv2d | BatchNorm) and node is not consumers[0]]
    before, after = ([node.module for node in layers if (node in behind) is late] for late in (False, True))
    extra = [module for module in (*before[1:], *after) if isinstance(module, nn.Conv2d) and module.groups != module.out_channels]
    if extra or consumers[0] not in behind or not before or before[0] is not nodes[0].module or not isinstance(before[0], nn.Conv2d):
        return None
    return Link(tuple(before), tuple(after), consumers[0].module, int(shuffling[0].grad_fn._saved_groups))


def consumes(graph: tp.DependencyGraph, item: Any) -> bool:
    """Whether this item of a group only takes the channels."""
    module = item.dep.target.module
    depthwise = isinstance(graph.get_pruner_of_module(module), tp.pruner.function.DepthwiseConvPruner)
    return isinstance(module, nn.Conv2d | nn.Linear) and not depthwise and not graph.is_out_channel_pruning_fn(item.dep.handler)


def passes(node: Any, shuffle: Any, nodes: Sequence[Any]) -> bool:
    """Whether the way back from `node` to the first of `nodes`, a chain, meets the shuffle."""
    while node is not nodes[0]:
        node = node.inputs[0]
        if node is shuffle:
            return True
    return False


def keep_channels(module: nn.Module, channels: Sequence[int]) -> None:
    """Reduce a convolution's outputs (a depthwise one's inputs too) or a norm to `channels`, in their order."""
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(module, name, None)
        if isinstance(value, Tensor):
            part = value.detach()[list(channels)].clone()
            setattr(module, name, nn.Parameter(part) if isinstance(value, nn.Parameter) else part)
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 and module.groups == module.out_channels:
            module.in_channels = module.groups = len(channels)
        module.out_channels = len(channels)
    elif isinstance(module, BatchNorm):
        module.num_features = len(channels)


def keep_inputs(layer: nn.Conv2d, channels: Sequence[int]) -> None:
    """Reduce a convolution's inputs to `channels`, in their order; equally many must be left to each of its groups."""
    size, left = layer.in_channels // layer.groups, len(channels) // layer.groups
    parts = []
    for number, rows in enumerate(layer.weight.detach().chunk(layer.groups)):
        taken = [channel - number * size for channel in channels[number * left : (number + 1) * left]]
        parts.append(rows[:, taken])
    layer.weight = nn.Parameter(torch.cat(parts))
    layer.in_channels = len(channels)
