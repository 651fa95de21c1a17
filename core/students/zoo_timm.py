"""Classifiers of timm: any name of `timm.list_models()`, with or without the tag of its published weights (`resnet18.a1_in1k`)."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
from huggingface_hub import constants, try_to_load_from_cache
from timm.layers import BatchNormAct2d
from timm.layers.linear import Linear
from torch import Tensor, nn

from core.errors import UserError, one_line
from core.students.zoo_net import BUILD_ERRORS, LibraryNetwork, Published, adapted, check_width

CONNECT_S = 10


def build(name: str, *, classes: int, channels: int, image_size: int, width: float) -> LibraryNetwork:
    """The untrained network with a head for `classes` and a stem for `channels`. UserError when it cannot have these sizes."""
    full = f"timm:{name}"
    check_width(full, width)
    try:
        info: Any = timm.get_pretrained_cfg(name) or timm.create_model(name).pretrained_cfg  # without published weights
        size: dict[str, Any] = {"img_size": image_size} if info.fixed_input_size else {}
        network = timm.create_model(name, num_classes=classes, in_chans=channels, **size)
    except BUILD_ERRORS as error:
        reason = one_line(error, 160)
        law = f"{full} must exist for {classes} classes and images of {channels} x {image_size} x {image_size}, but timm refuses it"
        raise UserError(f"{law} ({reason}); change data.image_size, or take another network") from error
    plain_linears(network)
    moved = split_norm_acts(network)
    facts = Published(tuple(info.mean), tuple(info.std), lambda: published_state(name))
    return adapted(full, network, (channels, image_size, image_size), facts, moved)


def plain_linears(network: nn.Module) -> None:
    """Turn timm's linear layers, whose forward has a branch for TorchScript, into plain ones, in place: the same function and names."""
    for path, module in list(network.named_modules()):
        if isinstance(module, Linear):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.load_state_dict(module.state_dict())
            parent, _, leaf = path.rpartition(".")
            setattr(network.get_submodule(parent), leaf, plain)


def split_norm_acts(network: nn.Module) -> dict[str, str]:
    """Turn timm's batch norm with an activation inside into the two modules, in place: only a plain batch norm is folded into its layer.

    Returns old path -> new path of the norms.
    """
    moved = {}
    for path, module in list(network.named_modules()):
        if isinstance(module, BatchNormAct2d) and isinstance(module.drop, nn.Identity):
            norm = nn.BatchNorm2d(module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats)
            norm.load_state_dict({key: value for key, value in module.state_dict().items() if "." not in key})
            parent, _, leaf = path.rpartition(".")
            setattr(network.get_submodule(parent), leaf, nn.Sequential(norm, module.act))
            moved[path] = f"{path}.0"
    return moved


def published_state(name: str) -> dict[str, Tensor]:
    """The published weights in the cache, else downloaded. Raises OSError or RuntimeError where there are none."""
    info = timm.get_pretrained_cfg(name)
    if info is None or not info.has_weights:
        raise RuntimeError(f"timm publishes no weights of {name}")
    cached = try_to_load_from_cache(info.hf_hub_id, "model.safetensors") if info.hf_hub_id else None
    if isinstance(cached, str):
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": cached}).state_dict()
    check_reachable(constants.ENDPOINT)
    return timm.create_model(name, pretrained=True).state_dict()


def check_reachable(address: str) -> None:
    """Raises OSError without a network, at once: the download itself would try for most of a minute."""
    with suppress(HTTPError):  # then it answered
        urlopen(Request(address, method="HEAD"), timeout=CONNECT_S).close()
