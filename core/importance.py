"""What ranks the channels of a coupled group: magnitudes, scales of batch norms, or what the loss would feel.

References:
    Li et al. 2017, Pruning Filters for Efficient ConvNets, arXiv 1608.08710 (`l1`); over coupled layers as in DepGraph, arXiv 2301.12900.
    Liu et al. 2017, Network Slimming, arXiv 1708.06519 (`bn_scale`; their penalty on the scales during training is not here).
    Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, arXiv 1906.10771 (`taylor`: equations 8 and 9, the squared
    product of weight and gradient, summed over a channel's weights and averaged over batches).
How many channels go is the same under each of them, unless the scope is global.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from core.errors import UserError
from core.layers import evaluating
from core.tables import lookup

Rank = Callable[[tp.Group], Tensor | None]
"""A coupled group -> one score per channel of its root, the least important lowest; None for a group without weights."""
Scores = Mapping[str, Tensor]
"""Parameter's name -> importance of each of its elements, in its shape."""
NO_SCORES: Scores = {}
"""Nobody took any, and `taylor` refuses that; None instead says that shapes alone matter, so that magnitudes may stand for them."""
BatchNorm = nn.modules.batchnorm._BatchNorm


def magnitude(norm: int) -> Rank:
    """Sum of |w|^norm over all that belongs to a channel, averaged over the group's layers.

    Depthwise convolutions and layer norms behind it are not among them, and a grouped convolution counts with the filters of all groups:
    so Torch-Pruning's criterion has it.
    """
    rank: Rank = tp.importance.GroupMagnitudeImportance(p=norm, normalizer=None)
    return rank


def bn_scale(group: tp.Group) -> Tensor | None:
    """Sum of the batch norms' |gamma| of a channel; where no batch norm covers the group, its L2 magnitude."""
    fallback = magnitude(2)(group)
    if fallback is None:
        return None
    scores, covered = torch.zeros_like(fallback), torch.zeros_like(fallback)
    for item in group.items:
        norm = item.dep.target.module
        if isinstance(norm, BatchNorm) and norm.affine and len(item.root_idxs) == len(item.idxs):
            at = torch.tensor(item.root_idxs, device=scores.device)
            scores.index_add_(0, at, norm.weight.detach().abs()[list(item.idxs)].to(scores))
            covered[at] = 1.0
    return scores if bool(covered.all()) else fallback


RANKS: dict[str, Rank] = {"l2": magnitude(2), "l1": magnitude(1), "bn_scale": bn_scale, "taylor": magnitude(1)}
"""`taylor` ranks the scores, which stand in for the weights then (`standing_in`)."""


def rank_of(importance: str, scores: Scores | None) -> Rank:
    """The criterion of that name. UserError for a name that is none of RANKS, and for `taylor` with NO_SCORES."""
    rank = lookup(RANKS, "importance", importance)
    if importance == "taylor" and scores is not None and not scores:
        raise UserError("importance taylor ranks by scores, but got none; pass taylor_scores(model, batches), or None for shapes alone")
    return rank


@contextmanager
def standing_in(model: nn.Module, scores: Scores | None) -> Iterator[None]:
    """Within it every parameter of `model` that has scores holds these."""
    kept = {name: parameter.data for name, parameter in model.named_parameters() if scores and name in scores}
    try:
        for name in kept:
            model.get_parameter(name).data = (scores or {})[name].to(kept[name])
        yield
    finally:
        for name, values in kept.items():
            model.get_parameter(name).data = values


def taylor_scores(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """(weight * gradient)^2 of every parameter, averaged over `batches` of (images (B, C, H, W), labels (B,)), in eval mode.

    The loss is cross-entropy with the labels; where a label is negative, with the network's own answer. The model is left without
    gradients.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    scores = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    with evaluating(model.requires_grad_(True)), torch.enable_grad():
        count = 0
        for images, labels in batches:
            model.zero_grad(set_to_none=True)
            logits = model(images).float()
            F.cross_entropy(logits, torch.where(labels < 0, logits.detach().argmax(1), labels)).backward()
            for name, parameter in model.named_parameters():
                if parameter.grad is not None:
                    scores[name] += (parameter.detach() * parameter.grad).square()
            count += 1
    model.zero_grad(set_to_none=True)
    for parameter in frozen:
        parameter.requires_grad_(False)
    return {name: score / max(1, count) for name, score in scores.items()}
