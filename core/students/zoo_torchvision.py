"""Classifiers of torchvision: any name of `torchvision.models.list_models(module=torchvision.models)`."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision import models
from torchvision.ops import StochasticDepth

from core.errors import UserError, one_line
from core.students.zoo_net import BUILD_ERRORS, LibraryNetwork, Published, adapted, check_width

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
EXTRA: dict[str, dict[str, Any]] = {
    # a second and third output in training mode, and a start that takes a minute
    "googlenet": {"aux_logits": False, "init_weights": False},
    "inception_v3": {"aux_logits": False, "init_weights": False},
}


def build(name: str, *, classes: int, channels: int, image_size: int, width: float) -> LibraryNetwork:
    """The untrained network with a head for `classes` and a stem for `channels`. UserError when it cannot have these sizes.

    Without stochastic depth: it is for long trainings, and keeps what it wraps from being fused.
    """
    full = f"torchvision:{name}"
    check_width(full, width)
    sizes = {"image_size": image_size} if name.startswith("vit_") else {"input_size": (image_size,) * 2} if name == "maxvit_t" else {}
    try:
        network = models.get_model(name, weights=None, num_classes=classes, **sizes, **EXTRA.get(name, {}))
    except BUILD_ERRORS as error:
        reason = one_line(error, 160)
        law = f"{full} must exist for {classes} classes and images of {image_size} px, but torchvision refuses it ({reason})"
        raise UserError(f"{law}; change data.image_size, or take another network") from error
    without_stochastic_depth(network)
    take_channels(network, channels)
    return adapted(full, network, (channels, image_size, image_size), published(name), {})


def published(name: str) -> Published:
    """The default weights of torchvision for this network."""
    weights = models.get_model_weights(name).DEFAULT
    presets = weights.transforms()
    mean, std = getattr(presets, "mean", IMAGENET[0]), getattr(presets, "std", IMAGENET[1])
    # the library's own loader: it knows the older names in some of its files
    return Published(tuple(mean), tuple(std), lambda: models.get_model(name, weights=weights).state_dict())


def without_stochastic_depth(network: nn.Module) -> None:
    """In place; it has no weights."""
    for parent in list(network.modules()):
        for leaf, child in list(parent.named_children()):
            if isinstance(child, StochasticDepth):
                setattr(parent, leaf, nn.Identity())


def take_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution, in place, by one for images of `channels`."""
    path, old = next((path, module) for path, module in network.named_modules() if isinstance(module, nn.Conv2d))
    if old.in_channels == channels:
        return
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)
