"""The one counter of layers, multiply-accumulates and parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LayerInfo:
    """One Conv2d or Linear. `weights` counts the kernel without bias; `macs` are those of one image, over all its calls."""

    name: str
    kind: Literal["conv", "linear"]
    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    """(height, width); empty for a linear layer."""
    groups: int
    weights: int
    macs: int
    out_hw: tuple[int, int]
    """Of the last call; (1, 1) for a linear layer."""


def layer_infos(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[LayerInfo, ...]:
    """Every Conv2d and Linear that runs on an image of `input_shape` (C, H, W), in order of first execution; the model is unchanged."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    found: dict[str, LayerInfo] = {}

    def record(module: nn.Module, _: Any, output: Tensor) -> None:
        info = describe(names[module], module, output)
        before = found.get(info.name)
        found[info.name] = replace(info, macs=info.macs + before.macs) if before else info

    handles = [module.register_forward_hook(record) for module in names]
    try:
        dry_run(model, input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(found.values())


def count_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image of `input_shape` (C, H, W)."""
    return sum(info.macs for info in layer_infos(model, input_shape))


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, shared ones once, buffers not."""
    return sum(parameter.numel() for parameter in model.parameters())


def dry_run(model: nn.Module, input_shape: tuple[int, int, int], batch: int = 1) -> Any:
    """The model's output for `batch` zero images of `input_shape` (C, H, W), in eval mode, on the model's device and in its dtype."""
    with evaluating(model), torch.no_grad():
        return model(_zeros(model, input_shape, batch))


def trial_run(model: nn.Module, input_shape: tuple[int, int, int], *, training: bool) -> Any:
    """A copy's output for two zero images, as every training and teacher runs: weights and images are channels-last in memory.

    `training`: in that mode, where it may be another one. Draws from nobody's random numbers.
    """
    learner, images = _copy(model, input_shape)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return learner.train(training)(images)


def trial_gradients(model: nn.Module, input_shape: tuple[int, int, int], *, every: bool) -> None:
    """Forward and backward of a copy in training mode for two zero images; raises what they raise. `every`: frozen weights learn too."""
    learner, images = _copy(model, input_shape)
    for parameter in learner.parameters():
        parameter.requires_grad_(parameter.requires_grad or (every and parameter.is_floating_point()))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        learner.train()(images).sum().backward()


def _copy(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[nn.Module, Tensor]:
    """(copy of the model, two zero images), both channels-last in memory."""
    images = _zeros(model, input_shape, 2).contiguous(memory_format=torch.channels_last)
    return copy.deepcopy(model).to(memory_format=torch.channels_last), images


def _zeros(model: nn.Module, input_shape: tuple[int, int, int], batch: int) -> Tensor:
    first = next(model.parameters(), torch.empty(0))
    return torch.zeros(batch, *input_shape, device=first.device, dtype=first.dtype)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; every module's own mode is restored after, since a user may keep some of them frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def describe(name: str, module: nn.Module, output: Tensor) -> LayerInfo:
    """The layer's facts from one call with a batch of one: each weight is used once per output position."""
    if isinstance(module, nn.Conv2d):
        height, width = int(output.shape[-2]), int(output.shape[-1])
        weights = module.weight.numel()
        kernel = tuple(module.kernel_size)
        return LayerInfo(
            name, "conv", module.in_channels, module.out_channels, kernel, module.groups, weights, weights * height * width, (height, width)
        )
    assert isinstance(module, nn.Linear)
    weights = module.weight.numel()
    positions = output.numel() // module.out_features
    return LayerInfo(name, "linear", module.in_features, module.out_features, (), 1, weights, weights * positions, (1, 1))
