"""What a quantiser may use beside the network and its bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from core.candidate import Candidate, SparsityRule
from core.config import QuantiseConfig

DEFAULTS = QuantiseConfig()

Penalty = Callable[[float], Tensor]
"""Progress in (0, 1], the share of the training's steps up to this one -> scalar that is added to the loss of this step"""


class Finetune(Protocol):
    """Trains the network in place, with the trial's own loss."""

    def __call__(self, model: nn.Module, penalty: Penalty | None = None) -> object: ...


def untrained(model: nn.Module, penalty: Penalty | None = None) -> nn.Module:
    """The fine-tuning that leaves the network as it is."""
    return model


@dataclass(frozen=True)
class Setting:
    """Every quantiser takes what it needs."""

    config: QuantiseConfig = DEFAULTS
    images: Tensor | None = None
    """Normalised training images, float32 (N, C, H, W) on the CPU."""
    rate_weight: float = 0.0
    """`rate`: of the mean coded bits of a weight, in the loss."""
    sparsity: float = 0.0
    """`lsq`, `rate`, `codebook`: share of each layer's weights to be zero; `global` and `lamp`: of all; `std`: threshold in deviations."""
    sparsity_by: SparsityRule = "ratio"


GENES: dict[str, set[str]] = {"rate": {"rate_weight"}, "codebook": {"sparsity", "sparsity_by"}}
"""Which of a candidate's genes beside bits a quantiser looks at, whatever they are."""
PRUNED: dict[str, set[str]] = {"lsq": {"sparsity", "sparsity_by"}, "rate": {"sparsity", "sparsity_by"}}
"""Those that it looks at where `sparsity` is not 0."""


def genes_of(candidate: Candidate) -> dict[str, object]:
    """Name -> value of what the candidate's quantiser looks at beside bits."""
    names = GENES.get(candidate.quantiser, set()) | (PRUNED.get(candidate.quantiser, set()) if candidate.sparsity > 0 else set())
    return candidate.model_dump(include=names)


def setting_of(candidate: Candidate, config: QuantiseConfig) -> Setting:
    """What a trial lends its quantiser; images are added when they are there."""
    return Setting(config, None, candidate.rate_weight, candidate.sparsity, candidate.sparsity_by)


def weight_of(model: nn.Module, name: str) -> Tensor:
    """The weight of a layer, as it computes with it."""
    return cast(Tensor, model.get_submodule(name).weight)


def plain_layer(model: nn.Module, name: str) -> nn.Module:
    """The layer, its weight freed of what the user's network computes it by (weight norm): one grid, one latent weight."""
    layer = model.get_submodule(name)
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return layer


def own_layer(model: nn.Module, name: str) -> nn.Module:
    """`plain_layer`, with a weight of its own also where it shared one: it may be replaced without another layer's."""
    layer = plain_layer(model, name)
    layer.weight = nn.Parameter(weight_of(model, name).detach().clone(), requires_grad=weight_of(model, name).requires_grad)
    return layer
