"""Does a network move its channels as Torch-Pruning says? One pass tells; groups that it maps wrongly stay whole.

A flip, a shuffle by reshapes or a flattened channels-last map keeps the shape of what passes, so that a cut of other channels than the
ones that arrive runs and says nothing. Here every layer of a coupled group is watched in one forward pass of a batch. Channels are
numbered through all groups; the first image is left alone, each other one has other values in the channels whose number has a certain
bit. A layer must see a difference in the channels that the groups say, or in some of them; in all of them where an operation mixes
channels, of which nothing can be said. Every layer hands on what it computes for the first image, with the groups' other values in it, so
each way from layer to layer is looked at by itself. Parameters, statistics of norms and random numbers are drawn anew: what is found
depends on the architecture alone.
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

CHANNELWISE = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)
"""Layers whose output channels are their input's."""
WATCHED = (nn.Conv2d, nn.Linear, *CHANNELWISE)
LIBRARY_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError)
"""What Torch-Pruning, or a network that it pruned wrongly or that does not take a batch, is known to raise."""
STATISTICS = {"running_mean": torch.zeros_like, "running_var": torch.ones_like}


@dataclass(frozen=True)
class Use:
    """One layer's part in a group: `images[b, c]` says whether channel c has other values in image b."""

    group: int
    images: Tensor


def moved_otherwise(model: nn.Module, graph: tp.DependencyGraph, groups: Sequence[tp.Group], input_shape: tuple[int, int, int]) -> set[int]:
    """Numbers of those `groups` whose channels do not arrive where the graph says. `model` is in eval mode and stays as it is.

    Of a network that does not take such a batch nothing is said.
    """
    counts = [max(group.items[0].root_idxs) + 1 for group in groups]
    batch = 1 + sum(counts).bit_length()
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
            if channels is None:  # one parameter for all of them
                continue
            if max(item.idxs) >= channels or len(getattr(layer, "normalized_shape", ())) > 1:
                wrong.add(number)
                continue
            use = Use(number, _told(item, channels, batch, 1 + sum(counts[:number])))
            if produces:
                writes[layer].append(use)
            if not produces or isinstance(layer, CHANNELWISE) or isinstance(pruner, tp.pruner.function.DepthwiseConvPruner):
                reads[layer].append(use)
    return wrong | _seen_elsewhere(model, reads, writes, batch, input_shape)


def _seen_elsewhere(
    model: nn.Module,
    reads: dict[nn.Module, list[Use]],
    writes: dict[nn.Module, list[Use]],
    batch: int,
    input_shape: tuple[int, int, int],
) -> set[int]:
    wrong: set[int] = set()
    generator, first = torch.Generator().manual_seed(0), next(model.parameters())

    def watch(layer: nn.Module, images: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        if uses := reads.get(layer, ()):
            # of all groups that arrive here: a concatenation brings several
            said = torch.stack([use.images for use in uses]).any(0).to(output.device)
            seen = _ordered(images[0] if images else next(iter(named.values())), layer, *said.shape)
            if seen is not None:
                same = torch.isclose(seen, seen[:1], rtol=1e-5, atol=1e-6, equal_nan=True)
                changed = ~same.flatten(1, -2).all(1)
                if bool(((changed & ~said).any(1) & ~changed.all(1)).any()):
                    wrong.update(use.group for use in uses)
        handed = output.clone()
        uses = writes.get(layer, ())
        channels = uses[0].images.shape[1] if uses else output.shape[-1 if _is_last(layer) else 1]
        made = _ordered(handed, layer, batch, channels)  # a view of it
        if made is not None:
            made.copy_(made[:1].clone().expand_as(made))
            for use in uses:
                # the same in all images, within what activations leave as it is
                other = torch.rand(made[:1].shape, generator=generator).mul_(1.5).add_(0.5).to(made)
                told = use.images.to(made.device).view(batch, *[1] * (made.ndim - 2), channels)
                made.copy_(torch.where(told, other, made))
        return handed

    with ExitStack() as opened:
        for layer in {*reads, *writes}:
            opened.callback(layer.register_forward_hook(watch, with_kwargs=True).remove)
        opened.enter_context(torch.no_grad())
        opened.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(0)
        images = torch.randn(1, *input_shape, generator=generator).expand(batch, *input_shape).to(first)
        try:
            torch.func.functional_call(model, _drawn(model, generator), (images.contiguous(memory_format=torch.channels_last),))
        except LIBRARY_ERRORS:
            return set()
    return wrong


def _told(item: Any, channels: int, batch: int, first: int) -> Tensor:
    """Bool (batch, channels): image 1 + n has other values in the channels whose number, `first` + root, has bit n set."""
    told, bits = torch.zeros(batch, channels, dtype=torch.long), torch.arange(batch - 1)[:, None]
    told[1:].index_add_(1, torch.tensor(item.idxs), first + torch.tensor(item.root_idxs) >> bits & 1)
    return told > 0


def _is_last(layer: nn.Module) -> bool:
    """Whether channels are the last dimension of what it takes; a layer norm may have been written for maps."""
    return isinstance(layer, nn.Linear) or type(layer).forward is nn.LayerNorm.forward


def _ordered(values: Any, layer: nn.Module, batch: int, channels: int) -> Tensor | None:
    """`values` as a view (batch, ..., channels) of at least 3 dimensions; None where they have no such dimensions.

    Tokens may be folded into the batch, or stand before it.
    """
    if not isinstance(values, Tensor) or values.ndim < 2:
        return None
    axis = next((axis for axis in ((-1, 1) if _is_last(layer) else (1, -1)) if values.shape[axis] == channels), None)
    if axis is None:
        return None
    moved = values.movedim(axis, -1)
    if moved.shape[0] == batch:
        ordered = moved
    elif moved.ndim > 2 and moved.shape[1] == batch:
        ordered = moved.transpose(0, 1)
    elif moved.shape[0] % batch == 0:
        ordered = moved.unflatten(0, (batch, -1))
    else:
        return None
    return ordered[:, None] if ordered.ndim == 2 else ordered


def _drawn(model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Parameters of the same shapes, none of them 0, of which maps keep their size; norms as they begin."""
    drawn = {}
    for name, buffer in model.named_buffers():
        if (made := STATISTICS.get(name.rpartition(".")[2])) is not None:
            drawn[name] = made(buffer)
    for name, parameter in model.named_parameters():
        uniform = torch.rand(parameter.shape, generator=generator)
        matrix = parameter.ndim > 1
        drawn[name] = ((2 * uniform - 1) / max(1, parameter[0].numel()) ** 0.5 if matrix else 0.5 + uniform).to(parameter)
    return drawn
