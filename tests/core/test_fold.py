"""Negative gains of batch norms are turned before they are folded: the function stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from core.quantise.fold import make_gains_positive
from tests.tiny_nets import CLASSES, SHAPE, Residual, images, settled

LAYERS = ("stem", "conv1", "conv2", "project", "head")


def network() -> nn.Module:
    torch.manual_seed(0)
    return settled(Residual())


def test_turning_negative_gains_leaves_the_function_unchanged() -> None:
    model = network()
    model.conv1.bias = nn.Parameter(torch.randn(12))
    model.norm.weight.data[::2] *= -1.0
    model.norm1.weight.data *= -1.0
    x = images(16)
    with torch.no_grad():
        expected = model(x)
        make_gains_positive(model, LAYERS, SHAPE)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    assert all((norm.weight >= 0).all() for norm in (model.norm, model.norm1, model.norm2, model.norm3))


@pytest.mark.parametrize("shared", ["weight", "bias", "gain"])
def test_turning_negative_gains_leaves_what_layers_share_to_each_of_them(shared: str) -> None:
    torch.manual_seed(0)
    a, norm_a, b, norm_b = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
    model = settled(nn.Sequential(nn.Conv2d(3, 8, 1), a, norm_a, nn.ReLU(), b, norm_b, nn.Flatten(), nn.Linear(128, CLASSES)))
    norm_a.weight.data[::2] *= -1.0
    norm_b.weight.data[1:4] *= -1.0
    owner, other, name = {"weight": (a, b, "weight"), "bias": (a, b, "bias"), "gain": (norm_a, norm_b, "weight")}[shared]
    setattr(other, name, getattr(owner, name))
    x = images(16)
    with torch.no_grad():
        expected = model(x)
        make_gains_positive(model, ("0", "1", "4", "7"), SHAPE)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
    assert all((norm.weight >= 0).all() for norm in (norm_a, norm_b))


def test_without_a_negative_gain_norms_go_on_sharing() -> None:
    model = network()
    model.norm2.weight = shared = model.norm3.weight
    make_gains_positive(model, LAYERS, SHAPE)
    assert model.norm3.weight is shared
    assert model.norm2.weight is shared


def test_gains_behind_a_weight_that_is_computed_are_not_turned() -> None:
    model = network()
    model.norm1.weight.data *= -1.0
    weight_norm(model.conv1)
    x = images(16)
    with torch.no_grad():
        expected = model(x)
        make_gains_positive(model, LAYERS, SHAPE)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-5)
