"""One ratio for the whole network: all its channels ranked together, and from that a ratio for every layer.

Shapes then depend on weights, so the ratios are taken from the trained parent before the candidate is shaped (docs/architecture.md,
decision 15).

References: Fang et al. 2023, DepGraph, arXiv 2301.12900: the mean of a group's scores as their unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from core.errors import TrialError
from core.importance import NO_SCORES, Scores, rank_of, standing_in
from core.layers import evaluating, layer_infos
from core.prune import choose_cut, coupled_groups, reason_of, traced
from core.prune_attention import head_dims
from core.prune_probe import LIBRARY_ERRORS

MOST = 0.9
"""Of one coupled group's channels that may go: a layer without channels ends the network."""


def global_ratios(
    model: nn.Module,
    ratio: float,
    input_shape: tuple[int, int, int],
    *,
    round_to: int = 1,
    importance: str = "l2",
    scores: Scores | None = NO_SCORES,
) -> dict[str, float]:
    """By layer the share of its channels among the least important `ratio` of all that may go, at most MOST of a coupled group's.

    Layers that `prune_channels` leaves whole at any ratio are neither ranked nor counted: all have fewer channels than `round_to`, or
    couplings that no cut keeps in order.
    A channel's score counts by the mean of its group: groups of few large weights are not spared for it. Channels of
    equal score go evenly from all groups, so an untrained network under `bn_scale` loses about `ratio` everywhere.
    `round_to`, `importance` and `scores` as in `prune_channels`.
    """
    layers, rank = layer_infos(model, input_shape), rank_of(importance, scores)
    copied = deepcopy(model)
    copied.zero_grad(set_to_none=True)
    with evaluating(copied), torch.enable_grad():
        graph, entry = traced(copied, input_shape)
        heads = head_dims(copied)
        try:
            with standing_in(copied, scores):
                ranked = {
                    info.name: rank(group)
                    for info, layer, group in coupled_groups(graph, copied, entry, layers, input_shape)
                    if choose_cut(graph, group, layer, rank, MOST, round_to, heads.get(layer, 0))
                }
        except LIBRARY_ERRORS as error:
            what = f"{type(model).__name__} cannot be ranked by Torch-Pruning ({reason_of(error)})"
            raise TrialError(f"{what}; set prune.scope to local") from error
    relative = {name: relative_to_mean(found) for name, found in ranked.items() if found is not None}
    if not relative or not ratio:
        return {}
    shares = shares_of_weakest(list(relative.values()), ratio)
    return {name: min(MOST, share) for name, share in zip(relative, shares, strict=True)}


def relative_to_mean(scores: Tensor) -> Tensor:
    """In double precision, in which the mean of equal scores is exactly what they are: they are ties across groups too."""
    scores = scores.cpu().double()
    return scores / scores.mean().clamp_min(1e-30)


def shares_of_weakest(groups: Sequence[Tensor], ratio: float) -> list[float]:
    """Of each group's channels the share that is among the `ratio` lowest scores of all.

    Which of equal scores go is decided by their places within their groups, relative to these groups' channels.
    """
    every = torch.cat(list(groups))
    depth = torch.cat([(scores.argsort(stable=True).argsort() + 0.5) / len(scores) for scores in groups])
    order = depth.argsort(stable=True)
    order = order[every[order].argsort(stable=True)]
    gone = torch.zeros_like(every)
    gone[order[: round(ratio * len(every))]] = 1.0
    return [float(part.mean()) for part in gone.split([len(scores) for scores in groups])]
