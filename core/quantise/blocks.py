"""A traced network as a chain of blocks: between two of them only one tensor passes, and each has layers to quantise."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import Tensor, fx


@dataclass(frozen=True)
class Block:
    """Consecutive nodes that need nothing from before but `source`; the last one's value is the output. `layers` run in it first."""

    source: fx.Node
    nodes: tuple[fx.Node, ...]
    layers: tuple[str, ...]


def blocks(traced: fx.GraphModule, planned: Collection[str]) -> tuple[Block, ...]:
    """The finest chain of blocks: a residual block is one, as its shortcut passes beside its layers; a plain convolution is another.

    What follows a layer up to the next block (norm, activation, pooling) belongs to it. `traced` comes from `trace`.
    """
    nodes = [node for node in traced.graph.nodes if node.op not in ("placeholder", "output")]
    source = next(node for node in traced.graph.nodes if node.op == "placeholder")
    seen: set[str] = set()
    groups: list[tuple[list[fx.Node], list[str]]] = [([], [])]
    for segment in _segments(source, nodes):
        called = dict.fromkeys(str(node.target) for node in segment if node.op == "call_module" and node.target in planned)
        new = [name for name in called if name not in seen]
        seen.update(new)
        if new and groups[-1][1]:
            groups.append(([], []))
        groups[-1][0].extend(segment)
        groups[-1][1].extend(new)
    sources = [source, *(members[-1] for members, _ in groups)]
    return tuple(Block(before, tuple(members), tuple(layers)) for before, (members, layers) in zip(sources, groups, strict=False))


def _segments(source: fx.Node, nodes: Sequence[fx.Node]) -> list[list[fx.Node]]:
    """Runs of nodes, each ending where its last value, a batch, is all that later nodes need."""
    place = {node: index for index, node in enumerate(nodes)}
    end = len(nodes) - 1
    segments, start = [], 0
    reach = max(place.get(user, end) for user in source.users)
    for index, node in enumerate(nodes):
        if index == end or (reach <= index and _is_batch(node)):
            segments.append(list(nodes[start : index + 1]))
            start = index + 1
        reach = max(reach, *(place.get(user, end) for user in node.users), index)
    return segments


def _is_batch(node: fx.Node) -> bool:
    """`trace` ran it on two images."""
    return node.meta.get("type") is Tensor and tuple(node.meta["tensor_meta"].shape[:1]) == (2,)
