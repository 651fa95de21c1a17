"""Low-rank adapters: a large network learns with few trainable parameters, and is itself again afterwards.

The weight of a layer becomes W + (alpha / rank) B A. W is frozen, A starts random, B at zero, so the network computes the same at first.
Merging writes the sum into W.

References: Hu et al. 2021, "LoRA" (arXiv:2106.09685); for convolutions microsoft/LoRA at c4593f0, `loralib/layers.py`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from core.config import LoraConfig
from core.errors import UserError

Layer = nn.Conv2d | nn.Linear


class LowRank(nn.Module):
    """W -> W + (alpha / rank) B A, for W of shape (out, in) or (out, in, kh, kw): B (out * kh, rank * kh), A (rank * kh, in * kw).

    For square kernels these are the shapes of the reference.
    """

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        rows, columns = factors(weight.shape)
        inner = rank * (weight.shape[2] if weight.ndim == 4 else 1)
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(inner, columns, device=weight.device))
        self.b = nn.Parameter(torch.zeros(rows, inner, device=weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, in float32 under any autocast: what trains is what is merged."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + (self.b @ self.a).view(weight.shape) * self.scale


def add_adapters(model: nn.Module, rank: int, alpha: float, full: Collection[str] = ()) -> int:
    """Freeze `model` and give its layers adapters, in place; returns the number of trainable parameters.

    Adapted are Linear and Conv2d with one group. Depthwise and grouped ones stay frozen: they have few weights. A layer that is no larger
    than its adapter, and those named in `full`, train themselves. So do the gains and shifts of batch norm, whose statistics move
    in training mode as ever.
    """
    if rank < 1 or alpha <= 0:
        raise UserError(f"lora needs a rank of at least 1 and an alpha greater than 0, but got rank {rank} and alpha {alpha:g}")
    model.requires_grad_(False)
    layers, small = _layers(model), _small(model, rank)
    for name, layer in layers.items():
        if name in small or name in full:
            layer.requires_grad_(True)
        elif not parametrize.is_parametrized(layer, "weight"):
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(True)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def check_rank(model: nn.Module, rank: int) -> None:
    """UserError for a rank that leaves no layer of `model` with an adapter."""
    if len(small := _small(model, rank)) == len(_layers(model)):
        raise UserError(f"lora.rank must make adapters smaller than their layers, but {rank} does so for none of {len(small)}; lower it")


def _layers(model: nn.Module) -> dict[str, Layer]:
    """Those that may have an adapter."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Layer) and getattr(module, "groups", 1) == 1}


def _small(model: nn.Module, rank: int) -> set[str]:
    """Those of them that are no larger than their adapter."""
    return {name for name, layer in _layers(model).items() if adapter_size(layer.weight.shape, rank) >= layer.weight.numel()}


def merge_adapters(model: nn.Module) -> None:
    """Write every adapter into the weight of its layer, in place: the same function, the names and order of before, all trainable."""
    for module in model.modules():
        if isinstance(module, Layer) and is_adapted(module):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            bias: nn.Parameter | None = module.bias  # type: ignore[assignment]
            del module.bias  # the weight came back behind it, and digests of weights follow the order
            module.register_parameter("bias", bias)
    model.requires_grad_(True)


@contextmanager
def adapters(model: nn.Module, config: LoraConfig | None, full: Collection[str] = (), *, seed: int) -> Iterator[None]:
    """Within it `model` trains by adapters, if `config` asks for them; they are merged at the end. Equal seeds begin equally."""
    if config is None:
        yield
        return
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add_adapters(model, config.rank, config.alpha, full)
    try:
        yield
    finally:
        merge_adapters(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def is_adapted(layer: nn.Module) -> bool:
    """Whether the layer's weight has an adapter of ours."""
    return parametrize.is_parametrized(layer, "weight") and any(isinstance(step, LowRank) for step in layer.parametrizations.weight)  # type: ignore[union-attr]


def factors(shape: torch.Size) -> tuple[int, int]:
    """(rows of B, columns of A) for a weight (out, in) or (out, in, kh, kw); their product is the number of weights."""
    out, inner = shape[:2]
    return (out * shape[2], inner * shape[3]) if len(shape) == 4 else (out, inner)


def adapter_size(shape: torch.Size, rank: int) -> int:
    """Parameters of the adapter of a weight."""
    return rank * (shape[2] if len(shape) == 4 else 1) * sum(factors(shape))
