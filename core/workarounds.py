"""Defects of others' kernels that this project steps around, each with its evidence and a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def safe_convolutions(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within it, strided 1x1 convolutions on the CPU read a strided slice of their input instead: the same numbers.

    The backward of such a convolution in channels-last with few input channels writes outside its buffers (oneDNN 3.13.3 in torch
    2.15.0, AVX-512, 2 threads, stride 2: segmentation fault or a corrupted heap with 4, 8 and 12 channels, none seen with 16, 24, 32
    and 64; pruned ResNets have such shortcuts).

    Larger strided kernels with padding take a map of one cell without their stride. In bfloat16 the gradient of their weights is left
    uninitialised where the kernel saw padding alone (same versions; kernels of 3, 5 and 7 with stride 2: NaN in most of 15 trials each
    in freed memory that held NaN; none with stride 1, in float32, depthwise, or on maps of 2 x 2 and more).

    The model is as before afterwards.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d)] if device.type == "cpu" else []
    pointwise = [layer for layer in layers if _is_strided_pointwise(layer)]
    padded = [layer for layer in layers if _is_strided_padded(layer)]
    strides = [(layer, layer.stride) for layer in (*pointwise, *padded)]
    handles = [layer.register_forward_pre_hook(_slicer(*layer.stride)) for layer in pointwise]
    handles += [layer.register_forward_pre_hook(_unstrider(layer.stride)) for layer in padded]
    try:
        for layer in pointwise:
            layer.stride = (1, 1)
        yield
    finally:
        for handle in handles:
            handle.remove()
        for layer, stride in strides:
            layer.stride = stride


def _is_strided_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.padding in ((0, 0), "valid")


def _is_strided_padded(layer: nn.Conv2d) -> bool:
    """Whether one cell stays one cell, with the stride or without."""
    halves = tuple((side - 1) // 2 * step for side, step in zip(layer.kernel_size, layer.dilation, strict=True))
    odd = all(side % 2 for side in layer.kernel_size)
    return layer.kernel_size != (1, 1) and layer.stride != (1, 1) and odd and layer.padding == halves


def _unstrider(stride: tuple[int, ...]) -> Any:
    def choose(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        module.stride = (1, 1) if inputs[0].shape[-2:] == (1, 1) else stride  # type: ignore[assignment]

    return choose


def _slicer(rows: int, columns: int) -> Any:
    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][..., ::rows, ::columns], *inputs[1:])

    return cut
