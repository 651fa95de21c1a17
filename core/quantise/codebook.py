"""Deep Compression's quantiser: every layer's weights share 2^b values, which are then trained.

References:
    Han et al. 2016, Deep Compression, arXiv 1510.00149: magnitude pruning by a threshold of q standard deviations and retraining with
    the mask (section 2); k-means of the weights that are left, from centroids spaced evenly between the smallest and the largest
    (section 3.2), and the gradient of a centroid, the sum of its weights' (section 3.3, equation 3).
Departure: the step of a centroid is divided by the number of its weights, so that the recipe of the weights fits; the paper states no rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.quantise.integer import IntegerWeight
from core.quantise.masks import Masked, kept_in
from core.quantise.ptq import rounded
from core.quantise.setting import Finetune, Setting, plain_layer, weight_of
from core.quantise.stored import CodebookWeight, half

DEFAULT = Setting()


def codebook(
    model: nn.Module, bits: Mapping[str, int], finetune: Finetune, setting: Setting = DEFAULT
) -> dict[str, CodebookWeight | IntegerWeight]:
    """Train `model` in place with 2^b values per layer; return indices and values. 16-bit layers train in float and are rounded.

    With `sparsity` it is first trained with its smallest weights at zero; they stay there, at one of the 2^b values.
    """
    shared = {name: depth for name, depth in bits.items() if depth <= 8}
    kept = kept_in({name: weight_of(model, name) for name in shared}, setting)
    if setting.sparsity > 0:
        _train_masked(model, kept, finetune)
    for name, depth in shared.items():
        layer, weight = plain_layer(model, name), weight_of(model, name).detach()
        chain = SharedWeight(weight, kept[name], depth, setting.config.codebook.iterations)
        parametrize.register_parametrization(layer, "weight", chain)
        layer.parametrizations.weight.original.requires_grad_(False)  # type: ignore[union-attr]
    finetune(model)
    taken = {name: _taken(model, name, depth, setting) for name, depth in bits.items()}
    for name in shared:  # after all have been read: layers may share their weight, which this replaces
        layer = model.get_submodule(name)
        layer.parametrizations.weight.original.requires_grad_(True)  # type: ignore[union-attr]
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return taken


def cluster(values: Tensor, count: int, iterations: int) -> Tensor:
    """`count` centroids of `values` (n,) in rising order: the values themselves where they are few, else Lloyd's from evenly spaced ones.

    An empty cluster keeps its place.
    """
    distinct = values.unique()
    if len(distinct) <= count:
        return torch.cat([distinct, distinct[-1:].expand(count - len(distinct))])
    ends = (float(distinct[0]), float(distinct[-1]))
    centroids = torch.linspace(*ends, count, dtype=torch.float64, device=values.device)
    for _ in range(iterations):
        nearest = nearest_of(centroids, values)
        sizes = torch.bincount(nearest, minlength=count)
        sums = torch.bincount(nearest, weights=values.double(), minlength=count)
        moved = torch.where(sizes > 0, sums / sizes.clamp_min(1), centroids)
        if torch.equal(moved, centroids):
            break
        centroids = moved
    return centroids.float()


def nearest_of(centroids: Tensor, values: Tensor) -> Tensor:
    """int64, the shape of `values`: index of the nearest of `centroids`, which rise."""
    return torch.bucketize(values.to(centroids.dtype).contiguous(), (centroids[1:] + centroids[:-1]) / 2)


class SharedWeight(nn.Module):
    """Parametrisation of a weight (out, ...) that ignores it: every place has one of 2^b trained values, a pruned one zero."""

    indices: Tensor
    sizes: Tensor
    live: Tensor

    def __init__(self, weight: Tensor, kept: Tensor, bits: int, iterations: int) -> None:
        super().__init__()
        weight = weight.float()
        count, pruned = min(2**bits, weight.numel()), not bool(kept.all())
        centroids = cluster(weight[kept], count - pruned, iterations)
        indices = nearest_of(centroids, weight)
        if pruned:
            indices, centroids = torch.where(kept, indices, count - 1), torch.cat([centroids, centroids.new_zeros(1)])
        self.register_buffer("indices", indices)
        self.register_buffer("sizes", torch.bincount(indices.flatten(), minlength=count).clamp_min(1).float())
        self.register_buffer("live", torch.arange(count, device=weight.device) < count - pruned)
        # SGD moves this by lr * (sum of gradients) / sqrt(n), hence the centroid by lr * sum / n
        self.lengthened = nn.Parameter(centroids * self.sizes.sqrt())

    def centroids(self) -> Tensor:
        """float32 (k,), differentiable; the one of pruned weights is zero."""
        return self.lengthened / self.sizes.sqrt() * self.live

    def forward(self, weight: Tensor) -> Tensor:
        """float32, the shape of `weight`."""
        shared: Tensor = _Gather.apply(self.centroids(), self.indices)
        return shared

    def taken(self, bits: int) -> CodebookWeight:
        """As it is kept: values of half precision in rising order."""
        values, order = half(self.centroids()).sort(stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        indices = rank[self.indices].to(torch.int16)
        return CodebookWeight(indices.contiguous(), values, torch.ones(len(indices)), bits)


class _Gather(torch.autograd.Function):
    """centroids[indices]; backward is one sum per centroid instead of a sort of all indices."""

    @staticmethod
    def forward(ctx: Any, centroids: Tensor, indices: Tensor) -> Tensor:
        ctx.save_for_backward(centroids, indices)
        return centroids[indices]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        centroids, indices = ctx.saved_tensors
        return torch.zeros_like(centroids).index_add_(0, indices.flatten(), grad.flatten()), None


def _train_masked(model: nn.Module, kept: Mapping[str, Tensor], finetune: Finetune) -> None:
    for name, mask in kept.items():
        parametrize.register_parametrization(plain_layer(model, name), "weight", Masked(mask))
    finetune(model)
    for name in kept:
        parametrize.remove_parametrizations(model.get_submodule(name), "weight", leave_parametrized=True)


def _taken(model: nn.Module, name: str, bits: int, setting: Setting) -> CodebookWeight | IntegerWeight:
    if bits > 8:
        return rounded(weight_of(model, name), bits, setting.config.ptq)
    chain: Any = model.get_submodule(name).parametrizations.weight  # type: ignore[union-attr]
    taken: CodebookWeight = chain[0].taken(bits)
    return taken
