"""Strided 1x1 convolutions train on the CPU without touching foreign memory, and compute what they always did."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from core.workarounds import safe_convolutions

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(8, 16, 1, stride=2, bias=False), nn.ReLU(), nn.Conv2d(16, 4, 1, stride=(1, 2)), nn.Conv2d(4, 4, 3, stride=2)
    )


def test_outputs_and_gradients_are_the_same_inside() -> None:
    # NCHW, where the kernels are sound
    model, images = network(), torch.randn(3, 8, 9, 9)
    expected = model(images)
    expected.square().sum().backward()
    gradient = model[0].weight.grad.clone()
    model.zero_grad()
    with safe_convolutions(model, CPU):
        inside = model(images)
    inside.square().sum().backward()
    torch.testing.assert_close(inside, expected)
    torch.testing.assert_close(model[0].weight.grad, gradient)


def test_the_model_is_as_before_afterwards() -> None:
    model = network()
    with pytest.raises(RuntimeError), safe_convolutions(model, CPU):
        model(torch.randn(1, 3, 5, 5))  # 3 channels where it takes 8
    assert (model[0].stride, model[2].stride) == ((2, 2), (1, 2))
    assert not model[0]._forward_pre_hooks


def test_other_devices_are_left_alone() -> None:
    model = network()
    with safe_convolutions(model, torch.device("cuda")):
        assert model[0].stride == (2, 2)


def test_a_narrow_shortcut_trains_in_channels_last_with_two_threads() -> None:
    """Without the workaround this dies by a signal on AVX-512: hence a process of its own."""
    code = """
import torch
from core.workarounds import safe_convolutions
torch.set_num_threads(2)
model = torch.nn.Conv2d(8, 16, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
with safe_convolutions(model, torch.device("cpu")):
    for count in (63, 64) * 6:
        model(torch.randn(count, 8, 32, 32).to(memory_format=torch.channels_last)).sum().backward()
"""
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_strided_kernel_on_one_cell_gets_the_gradient_of_its_middle_and_zeros_around_it_in_bfloat16(kernel: int) -> None:
    """Without the workaround the ring around the middle is whatever the memory held."""
    layer = nn.Conv2d(48, 48, kernel, stride=2, padding=kernel // 2, bias=False)
    for _ in range(10):
        junk = [torch.full((layer.weight.numel(),), torch.nan, dtype=kind) for kind in (torch.bfloat16, torch.float32) for _ in range(4)]
        del junk  # freed memory that the kernel may be given
        images = torch.randn(20, 48, 1, 1).contiguous(memory_format=torch.channels_last).requires_grad_()
        layer.zero_grad()
        with safe_convolutions(layer, CPU), torch.autocast("cpu", dtype=torch.bfloat16):
            layer(images).float().square().mean().backward()
        assert layer.weight.grad is not None
        middle = layer.weight.grad[..., kernel // 2, kernel // 2].abs().sum()
        assert middle > 0
        assert layer.weight.grad.abs().sum() == pytest.approx(float(middle), rel=1e-4)
    assert layer.stride == (2, 2)


def test_a_strided_kernel_keeps_its_stride_on_larger_maps() -> None:
    layer, images = nn.Conv2d(2, 3, 3, stride=2, padding=1), torch.randn(1, 2, 7, 7)
    expected = layer(images)
    with safe_convolutions(layer, CPU):
        layer(images[..., :1, :1])
        torch.testing.assert_close(layer(images), expected)
