"""One ratio for the whole network: all its channels ranked together, and from that a ratio for every layer.

Shapes then depend on weights, so the ratios are taken from the trained parent before the candidate is shaped (docs/architecture.md,
decision 15).

References: Fang et al. 2023, DepGraph, arXiv 2301.12900: the mean of a group's scores as their unit.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import nn

from core.errors import TrialError
from core.importance import RANKS, Scores, standing_in
from core.layers import evaluating, layer_infos
from core.prune import LIBRARY_ERRORS, coupled_groups, reason_of, traced
from core.tables import lookup

MOST = 0.9
"""Of one coupled group's channels that may go: a layer without channels ends the network."""


def global_ratios(
    model: nn.Module, ratio: float, input_shape: tuple[int, int, int], *, importance: str = "l2", scores: Scores | None = None
) -> dict[str, float]:
    """By layer the share of its channels among the least important `ratio` of all that may go, at most MOST of a coupled group's.

    A channel's score counts by the mean of its group: groups of few large weights are not spared for it.
    """
    layers, rank = layer_infos(model, input_shape), lookup(RANKS, "importance", importance)
    copied = deepcopy(model)
    copied.zero_grad(set_to_none=True)
    with evaluating(copied), torch.enable_grad():
        graph, entry = traced(copied, input_shape)
        try:
            with standing_in(copied, scores):
                ranked = {info.name: rank(group) for info, _, group in coupled_groups(graph, copied, entry, layers)}
        except LIBRARY_ERRORS as error:
            what = f"{type(model).__name__} cannot be ranked by Torch-Pruning ({reason_of(error)})"
            raise TrialError(f"{what}; set prune.scope to local") from error
    relative = {name: (found / found.mean().clamp_min(1e-30)).float().cpu() for name, found in ranked.items() if found is not None}
    if not relative or not ratio:
        return {}
    every = torch.cat(list(relative.values()))
    going = int(ratio * len(every))
    threshold = every.kthvalue(going).values if going else every.new_tensor(-1.0)
    return {name: min(MOST, float((found <= threshold).float().mean())) for name, found in relative.items()}
