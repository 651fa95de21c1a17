"""Structured channel pruning: trained weights decide which channels go, never how many.

References: Fang et al. 2023, "DepGraph" (arXiv:2301.12900), through Torch-Pruning 1.6.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from core.errors import TrialError, UserError, one_line
from core.importance import NO_SCORES, Rank, Scores, rank_of, standing_in
from core.layers import LayerInfo, dry_run, evaluating, layer_infos
from core.prune_attention import attention_heads, head_dims, norm_pruners, weakest_heads
from core.prune_probe import LIBRARY_ERRORS, moved_otherwise
from core.prune_shuffle import ShuffledCut, shuffled_cut, shuffles
from core.tables import nearest


def prune_channels(
    model: nn.Module,
    ratios: Mapping[str, float],
    input_shape: tuple[int, int, int],
    *,
    round_to: int = 8,
    importance: str = "l2",
    scores: Scores | None = NO_SCORES,
) -> nn.Module:
    """A copy of `model` without the least important output channels of its convolutions and linear layers.

    `ratios` gives the share to remove, in [0, 1), per layer name; a layer not named keeps all. Layers that must agree (residual adds,
    depthwise convolutions) use the ratio of the first of them to run. What remains is rounded to the nearest multiple of `round_to`, at
    least one and at most what was there; fewer channels than `round_to` stay. The network's input and outputs are never touched;
    the stem's output channels are like any others, since residual adds couple them to a whole stage.
    Attention loses whole heads, `round_to` permitting (core/prune_attention.py).
    Between two grouped convolutions a channel shuffle is followed (core/prune_shuffle.py); channels that pass a split, groups that a
    concatenation moves apart, and those that arrive elsewhere than Torch-Pruning says (core/prune_probe.py) stay whole.
    Shapes depend on architecture, ratios and `round_to` alone. Gradients are dropped; train or eval mode is kept. A layer that is cut has
    its parameters to itself from then on, also where it shared them.
    `importance` is one of RANKS (core/importance.py); `scores` stand in for the parameters there, as `taylor` wants it. None says that
    shapes alone matter: `taylor` then ranks by magnitude.

    Errors: UserError for ratios that name no layer or leave [0, 1), for `taylor` without scores, and for networks that cannot be traced;
    TrialError when the pruned network does not run.
    """
    layers = layer_infos(model, input_shape)
    check(ratios, [layer.name for layer in layers], round_to)
    rank = rank_of(importance, scores)
    pruned = deepcopy(model)
    pruned.zero_grad(set_to_none=True)
    if any(ratios.values()):
        trainable = {name: parameter.requires_grad for name, parameter in pruned.named_parameters(remove_duplicate=False)}
        with evaluating(pruned), torch.enable_grad():
            graph, entry = traced(pruned, input_shape)
            prune_in_place(pruned, graph, entry, layers, input_shape, ratios, round_to, rank, scores)
        for name, parameter in pruned.named_parameters():
            parameter.requires_grad_(trainable[name])
        check_runs(pruned, model, input_shape)
    return pruned


@dataclass(frozen=True)
class Cut:
    """Which output channels leave one layer, and with it every layer coupled to it."""

    layer: nn.Module
    channels: tuple[int, ...]

    def apply(self, graph: tp.DependencyGraph) -> None:
        """Cut the layer and all that depend on it."""
        function = graph.get_pruner_of_module(self.layer).prune_out_channels
        graph.get_pruning_group(self.layer, function, list(self.channels)).prune()


def prune_in_place(
    model: nn.Module,
    graph: tp.DependencyGraph,
    entry: nn.Module,
    layers: Sequence[LayerInfo],
    input_shape: tuple[int, int, int],
    ratios: Mapping[str, float],
    round_to: int,
    rank: Rank,
    scores: Scores | None,
) -> None:
    """Choose every cut on the dense weights first, then apply them, so that the order of cutting has no influence on the ranking."""
    try:
        with standing_in(model, scores):
            cuts = choose_cuts(graph, model, entry, layers, input_shape, ratios, round_to, rank)
        for cut in cuts:
            cut.apply(graph)
    except LIBRARY_ERRORS as error:
        what = f"{type(model).__name__} cannot be cut by Torch-Pruning at these ratios ({reason_of(error)})"
        raise TrialError(f"{what}; where every candidate fails so, set prune.ratio to 0") from error


def traced(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[tp.DependencyGraph, nn.Module]:
    """`trace`, in the user's words where it fails. The model's parameters ask for gradients afterwards."""
    model.requires_grad_(True)  # the graph is read from autograd's, which frozen layers would not enter
    try:
        return trace(model, input_shape)
    except LIBRARY_ERRORS as error:
        raise UserError(f"{type(model).__name__} cannot be pruned by Torch-Pruning; set prune.ratio to 0: {reason_of(error)}") from error


class Entered(nn.Module):
    """The model behind a 1x1 convolution that stands for the network's input.

    Torch-Pruning reads autograd's graph, in which an input is no node: without the convolution it would count the channels of
    `torch.cat([x, conv(x)])` wrongly and prune what is added to the input.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        super().__init__()
        self.entry = nn.Conv2d(example.shape[1], example.shape[1], 1).to(example)
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model(self.entry(x))


def trace(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[tp.DependencyGraph, nn.Module]:
    """The dependency graph of the model and the layer in it that stands for the input."""
    first = next(model.parameters())
    example = torch.zeros(1, *input_shape, device=first.device, dtype=first.dtype)
    entered = Entered(model, example)
    graph = tp.DependencyGraph()
    graph.build_dependency(
        entered,
        example_inputs=example,
        forward_fn=lambda network, images: network(images),
        customized_pruners=norm_pruners(model),
        verbose=False,
    )
    return graph, entered.entry


def choose_cuts(
    graph: tp.DependencyGraph,
    model: nn.Module,
    entry: nn.Module,
    layers: Sequence[LayerInfo],
    input_shape: tuple[int, int, int],
    ratios: Mapping[str, float],
    round_to: int,
    rank: Rank,
) -> list[Cut | ShuffledCut]:
    """One cut per coupled group."""
    heads = head_dims(model)
    cuts: list[Cut | ShuffledCut] = []
    for info, layer, group in coupled_groups(graph, model, entry, layers, input_shape):
        if ratio := ratios.get(info.name, 0.0):
            cut = choose_cut(graph, group, layer, rank, ratio, round_to, heads.get(layer, 0))
            cuts += [cut] if cut else []
    return cuts


def coupled_groups(
    graph: tp.DependencyGraph, model: nn.Module, entry: nn.Module, layers: Sequence[LayerInfo], input_shape: tuple[int, int, int]
) -> list[tuple[LayerInfo, nn.Module, tp.Group]]:
    """Every coupled group that may be cut, rooted at the first of its layers to run."""
    found = list(_groups(graph, model, entry, layers))
    # shuffles and heads have rules of their own
    plain = [group for _, _, group in found if not shuffles(group) and attention_heads(group) == 1]
    wrong = {id(plain[number]) for number in moved_otherwise(model, graph, plain, input_shape)}
    return [each for each in found if id(each[2]) not in wrong]


def _groups(
    graph: tp.DependencyGraph, model: nn.Module, entry: nn.Module, layers: Sequence[LayerInfo]
) -> Iterator[tuple[LayerInfo, nn.Module, tp.Group]]:
    """All of them, but those that hold the network's input or outputs, or pass what is known to be mapped wrongly."""
    seen: set[nn.Module] = set()
    if not any(model.get_submodule(info.name) in graph.module2node for info in layers):
        raise ValueError("autograd reaches none of its layers from the output")
    for info in layers:
        layer = model.get_submodule(info.name)
        if layer in seen or layer not in graph.module2node:
            continue
        function = graph.get_pruner_of_module(layer).prune_out_channels
        group = graph.get_pruning_group(layer, function, list(range(info.out_channels)))
        produced = [item.dep.target for item in group.items if graph.is_out_channel_pruning_fn(item.dep.handler)]
        seen |= {node.module for node in produced if isinstance(node.module, nn.Module)}
        if not any(node.module is entry or not node.outputs for node in produced) and not any(map(untracked, group.items)):
            yield info, layer, group


def choose_cut(
    graph: tp.DependencyGraph,
    group: tp.Group,
    layer: nn.Module,
    rank: Rank,
    ratio: float,
    round_to: int,
    head_dim: int,
) -> Cut | ShuffledCut | None:
    """What leaves one coupled group, None for nothing. `head_dim`: channels of one head of an attention that may lose heads, else 0."""
    if shuffles(group):
        return shuffled_cut(graph, group, rank, lambda channels, blocks: remaining(channels, blocks, ratio, round_to))
    scores = rank(group)
    heads = attention_heads(group)
    if scores is None or ((heads > 1 or head_dim) and len(scores) != heads * head_dim):
        return None
    if head_dim:
        left = kept(heads, ratio, round_to // math.gcd(round_to, head_dim))
        channels = weakest_heads(scores, head_dim, left)
    else:
        channels = choose_channels(graph, group, scores, ratio, round_to)
    return Cut(layer, channels) if channels else None


def remaining(channels: int, blocks: int, ratio: float, round_to: int) -> int:
    """Channels that remain of equal `blocks`: equally many of each, a multiple of `round_to` together."""
    return blocks * kept(channels // blocks, ratio, round_to // math.gcd(round_to, blocks))


def untracked(item: Any) -> bool:
    """Whether the channels of this group pass an operation whose indices Torch-Pruning 1.6 maps wrongly without saying so.

    It numbers the parts of a split in the order in which it met their users, and takes a reshape to five dimensions (channel shuffle) as
    the identity. Groups with these stay whole: a misaligned cut still has fitting shapes. So do those of grouped convolutions with one
    channel per group at one end only: Torch-Pruning takes them for depthwise ones, whose outputs and inputs are the same channels.
    """
    node = item.dep.target
    if isinstance(node.module, nn.Conv2d):
        ends = {node.module.in_channels, node.module.out_channels}
        return len(ends) > 1 and 1 < node.module.groups in ends
    if node.type == tp.ops.OPTYPE.RESHAPE:
        return len(getattr(node.grad_fn, "_saved_self_sym_sizes", ())) > 4
    return node.type in (tp.ops.OPTYPE.SPLIT, tp.ops.OPTYPE.SLICE, tp.ops.OPTYPE.UNBIND)


def choose_channels(graph: tp.DependencyGraph, group: tp.Group, scores: Tensor, ratio: float, round_to: int) -> tuple[int, ...]:
    """The least important channels of the group's root; ties go to the first. `scores` has one value per channel."""
    blocks = channel_blocks(graph, group)
    channels = len(scores)
    if channels % blocks or not all(aligned(graph, item, channels // blocks) for item in group.items):
        return ()
    slots = scores.detach().float().cpu().view(blocks, -1).sum(0)
    step = round_to // math.gcd(round_to, blocks)
    chosen: list[int] = []
    for slot_class in slot_classes(group, blocks, channels):
        remove = len(slot_class) - kept(len(slot_class), ratio, step)
        order = torch.argsort(slots[slot_class], stable=True)[:remove]
        chosen += [slot_class[int(index)] for index in order]
    size = channels // blocks
    return tuple(sorted(block * size + slot for slot in chosen for block in range(blocks)))


def channel_blocks(graph: tp.DependencyGraph, group: tp.Group) -> int:
    """How many equal blocks the channels fall into: grouped convolutions and GroupNorm need the same slots removed from each."""
    blocks = 1
    for dep, _ in group.items:
        pruner = graph.get_pruner_of_module(dep.target.module)
        produces = graph.is_out_channel_pruning_fn(dep.handler)
        depthwise = isinstance(pruner, tp.pruner.function.DepthwiseConvPruner)
        if not depthwise:
            count = pruner.get_out_channel_groups if produces else pruner.get_in_channel_groups
            blocks = math.lcm(blocks, count(dep.target.module))
    return blocks


def aligned(graph: tp.DependencyGraph, item: Any, size: int) -> bool:
    """Whether every slot, one of `size` in each block of the group's root, is one and the same slot in each block of this layer.

    Concatenations move blocks: then a slot would leave more channels in one group of a grouped convolution than in another.
    """
    module = item.dep.target.module
    pruner = graph.get_pruner_of_module(module)
    produces = graph.is_out_channel_pruning_fn(item.dep.handler)
    groups = (pruner.get_out_channel_groups if produces else pruner.get_in_channel_groups)(module)
    if groups == 1 or isinstance(pruner, tp.pruner.function.DepthwiseConvPruner):
        return True
    inner = (pruner.get_out_channels if produces else pruner.get_in_channels)(module) // groups
    slots: dict[int, set[int]] = defaultdict(set)
    for channel, root in zip(item.idxs, item.root_idxs, strict=True):
        slots[root % size].add(channel)
    return all(found == {block * inner + channel % inner for channel in found for block in range(groups)} for found in slots.values())


def slot_classes(group: tp.Group, blocks: int, channels: int) -> list[list[int]]:
    """Slots that reach the same layers, together. Where a layer is added to a concatenation, its parts belong to different layers: each
    part then loses its own share, or the weights would decide how many channels each of those layers keeps."""
    uses: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, item in enumerate(group.items):
        for channel, times in Counter(item.root_idxs).items():
            uses[channel].append((number, times))
    classes: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    size = channels // blocks
    for slot in range(size):
        classes[tuple(tuple(uses[block * size + slot]) for block in range(blocks))].append(slot)
    return list(classes.values())


def kept(channels: int, ratio: float, step: int) -> int:
    """Channels that remain of `channels`: the nearest multiple of `step`, at least one of it, never more than there were."""
    if channels < step:
        return channels
    nearest_multiple = math.floor(channels * (1.0 - ratio) / step + 0.5) * step
    return min(max(nearest_multiple, step), channels // step * step)


def check(ratios: Mapping[str, float], names: Sequence[str], round_to: int) -> None:
    """UserError for what cannot be meant."""
    for name, ratio in ratios.items():
        if name not in names:
            raise UserError(f"prune ratios name layers that run, but got {name!r}{nearest(name, names)}")
        if not 0.0 <= ratio < 1.0:
            raise UserError(f"a prune ratio must be in [0, 1), but got {ratio} for {name}")
    if round_to < 1:
        raise UserError(f"round_to must be at least 1, but got {round_to}")


def check_runs(pruned: nn.Module, model: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """TrialError when the pruned network does not give what the dense one gives, in shape."""
    try:
        shape = dry_run(pruned, input_shape).shape
    except LIBRARY_ERRORS as error:
        raise TrialError(f"the pruned {type(model).__name__} does not run; lower prune.ratio or set it to 0: {reason_of(error)}") from error
    expected = dry_run(model, input_shape).shape
    if shape != expected:
        raise TrialError(f"pruning must keep the output's shape, but {type(model).__name__} gave {tuple(shape)} for {tuple(expected)}")


def reason_of(error: Exception) -> str:
    """The error's type and first 200 characters, on one line."""
    return f"{type(error).__name__}: {one_line(error, 200)}"
