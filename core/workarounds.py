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
    and 64; pruned ResNets have such shortcuts). The model is as before afterwards.
    """
    layers: list[nn.Conv2d] = []
    if device.type == "cpu":
        layers = [module for module in model.modules() if isinstance(module, nn.Conv2d) and _is_strided_pointwise(module)]
    strides = [layer.stride for layer in layers]
    handles = [layer.register_forward_pre_hook(_slicer(*layer.stride)) for layer in layers]
    try:
        for layer in layers:
            layer.stride = (1, 1)
        yield
    finally:
        for layer, stride, handle in zip(layers, strides, handles, strict=True):
            layer.stride = stride
            handle.remove()


def _is_strided_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.stride != (1, 1) and layer.padding in ((0, 0), "valid")


def _slicer(rows: int, columns: int) -> Any:
    def cut(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][..., ::rows, ::columns], *inputs[1:])

    return cut
