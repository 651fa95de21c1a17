"""Modules of the quantised graph: integer weights, and Q/DQ points for activations.

In PyTorch they simulate; while `exporting()` they emit the ONNX operators, so both come from one place.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import RangeConfig
from core.quantise.integer import SMALLEST_SCALE, IntegerWeight, largest_of, per_channel
from core.quantise.stored import StoredWeight, half

OPSET = 21
LEAST_ERROR = RangeConfig()
_exporting: ContextVar[bool] = ContextVar("exporting", default=False)


@contextmanager
def exporting() -> Iterator[None]:
    """Within it the modules below emit QuantizeLinear and DequantizeLinear instead of simulating them."""
    token = _exporting.set(True)
    try:
        yield
    finally:
        _exporting.reset(token)


def _dequantise(values: Tensor, scales: Tensor, zero: Tensor, axis: int | None = None) -> Tensor:
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", (values, scales, zero), attributes, dtype=torch.float32, shape=values.shape, version=OPSET
    )


def on_grid(x: Tensor, scale: Tensor, low: int, high: int, *, by_reciprocal: bool) -> Tensor:
    """The nearest multiple of `scale`, a tensor (), from `low` to `high` times; ties fall as they do with engines that multiply with
    1 / scale (`by_reciprocal`) or divide by it. torch's own fake quantisation is not vectorised on CPUs.
    """
    steps = x * scale.reciprocal() if by_reciprocal else x / scale
    return steps.round_().clamp_(low, high).mul_(scale)


class _IntegerLayer(nn.Module):
    """Weights as integers (out, ...) with scales (out,) and a bias in float. 16-bit integers and codebooks are exported
    dequantised: no runtime takes INT16 weights or a table for a convolution. `as_product`: integers are exported as what a runtime computes
    once, when it loads, that would run a DequantizeLinear in each call (`Runtime.dequantises_once`).
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    zero: Tensor

    def __init__(self, layer: nn.Conv2d | nn.Linear, weight: StoredWeight, *, as_product: bool) -> None:
        super().__init__()
        self.as_product = as_product
        self._points: tuple[ActivationQuantiser, ...] = ()  # in a tuple: no part of this module
        self.rounds_bias = False  # as of `Runtime`, for a layer that this concerns
        self.has_bias = layer.bias is not None
        self.register_buffer("bias", half(layer.bias) if layer.bias is not None else torch.zeros(len(weight.scales)))
        self.take(weight)

    def take(self, weight: StoredWeight) -> None:
        """Compute with `weight` from now on."""
        self.stored: StoredWeight = weight
        self.bits = weight.bits
        self.on_grid = isinstance(weight, IntegerWeight) and weight.bits <= 8
        self.register_buffer("scale", weight.scales.clone())
        if isinstance(weight, IntegerWeight) and self.on_grid:
            self.register_buffer("weight", weight.values.to(torch.int8))
            self.register_buffer("zero", torch.zeros(len(weight.scales), dtype=torch.int8))
        else:
            self.register_buffer("weight", weight.dequantised())

    def read_from(self, point: ActivationQuantiser) -> None:
        """Every call is on values of this Q/DQ point: from now on what an INT8 kernel adds up, integers, is added up here."""
        self._points = (point,)

    def forward(self, x: Tensor) -> Tensor:
        """Images or tokens float32 -> the same with other channels. Sums of integers are exact below 2^24, as those of INT8 kernels are."""
        point = next((point for point in self._points if not (point.calibrating or _exporting.get())), None)
        if point is None:
            return self._sums(x, self.float_weight(), self.bias)
        sums = self._sums((x / point.scale).round_(), self.weight.float(), None)
        scale = self.scale * point.scale
        if self.rounds_bias:
            return sums.add_(self._by_channel((self.bias / scale).round_())).mul_(self._by_channel(scale))
        return sums.mul_(self._by_channel(scale)).add_(self._by_channel(self.bias))

    def _sums(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def _by_channel(self, values: Tensor) -> Tensor:
        """(out,) so that it broadcasts over what `forward` returns."""
        raise NotImplementedError

    def float_weight(self) -> Tensor:
        """float32 (out, ...): what the engine multiplies with."""
        if not self.on_grid:
            return self.weight
        if _exporting.get() and not self.as_product:
            return _dequantise(self.weight, self.scale, self.zero, axis=0)
        return self.weight.float() * per_channel(self.scale, self.weight)

    def integer_values(self) -> Tensor:
        """int8 or int16 (out, ...), of a layer on a grid of at most 16 bits."""
        assert isinstance(self.stored, IntegerWeight)
        return self.weight if self.on_grid else self.stored.values


class IntegerConv2d(_IntegerLayer):
    """Conv2d on integer weights."""

    def __init__(self, layer: nn.Conv2d, weight: StoredWeight, *, as_product: bool = False) -> None:
        super().__init__(layer, weight, as_product=as_product)
        self.stride, self.dilation, self.groups = layer.stride, layer.dilation, layer.groups
        self.padding = cast(tuple[int, int], layer.padding)  # or "same": conv2d takes both
        # networks may ask
        self.in_channels, self.out_channels, self.kernel_size = layer.in_channels, layer.out_channels, layer.kernel_size
        self.border = None if layer.padding_mode == "zeros" else (layer._reversed_padding_repeated_twice, layer.padding_mode)

    def _sums(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """float32 (B, in, H, W) -> (B, out, H', W')."""
        if self.border:
            amounts, mode = self.border
            return F.conv2d(F.pad(x, amounts, mode), weight, bias, self.stride, 0, self.dilation, self.groups)
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1)


class IntegerLinear(_IntegerLayer):
    """Linear on integer weights. With `as_conv` it keeps (out, in, 1, 1) integers and is a 1x1 convolution on (B, in, 1, 1):
    TensorRT-RTX builds no FP32 or INT8 Gemm for SM75."""

    def __init__(self, layer: nn.Linear, weight: StoredWeight, *, as_conv: bool, as_product: bool = False) -> None:
        super().__init__(layer, weight.as_kernel() if as_conv else weight, as_product=as_product)
        self.as_conv = as_conv
        # networks may ask
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def _sums(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """float32 (B, ..., in) -> (B, ..., out), or (B, in, 1, 1) -> (B, out, 1, 1)."""
        if self.as_conv:
            return F.conv2d(x, weight, bias)
        if _exporting.get():
            assert bias is not None
            # three dimensions: ONNX Runtime 1.31 makes a Gemm of two and a sum, and then mistypes the Q/DQ in front of it
            return torch.matmul(x, weight.t().unsqueeze(0)) + bias
        return F.linear(x, weight, bias)

    def _by_channel(self, values: Tensor) -> Tensor:
        return values.view(-1, 1, 1) if self.as_conv else values


class ActivationQuantiser(nn.Module):
    """One Q/DQ point: 8 bits, per tensor, zero point 0; unsigned [0, 255] where values cannot be negative, else [-128, 127].

    Passes values through while `calibrating`, and keeps a sample of them.
    """

    SAMPLE = 50_000
    scale: Tensor
    zero: Tensor
    by_reciprocal = False
    """As of `Runtime`: with what its engines turn values into steps."""

    def __init__(self, *, signed: bool) -> None:
        super().__init__()
        self.low, self.high = (-128, 127) if signed else (0, 255)
        self.signed = signed
        self.register_buffer("scale", torch.tensor(1.0 / self.high).half().float())
        self.register_buffer("zero", torch.tensor(0, dtype=torch.int8 if signed else torch.uint8))
        self.calibrating = False
        self.samples: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """float32, any shape -> the same, on the grid."""
        if self.calibrating:
            flat = x.detach().flatten()
            count = min(len(flat), self.SAMPLE)
            # a whole step would meet the same columns of every map again and again
            self.samples.append(flat[torch.arange(count, device=flat.device) * len(flat) // count])
            self.samples.append(flat.abs().max().view(1))
            return x
        if _exporting.get():
            kind = self.zero.dtype
            values = torch.onnx.ops.symbolic("QuantizeLinear", (x, self.scale, self.zero), {}, dtype=kind, shape=x.shape, version=OPSET)
            return _dequantise(values, self.scale, self.zero)
        return on_grid(x, self.scale, self.low, self.high, by_reciprocal=self.by_reciprocal)

    def fit_scale(self, rule: RangeConfig = LEAST_ERROR) -> None:
        """Choose the scale over the sample, as `rule` says."""
        values = torch.cat(self.samples)
        if rule.range == "mse":
            best = self._least_error(values)
        else:
            share = 1.0 if rule.range == "minmax" else rule.percentile / 100
            best = largest_of(values[None], share)[0].clamp_min(1e-6) / self.high
        # a float16 value: two bytes in the packed file, whatever was trained
        self.scale.copy_(best.clamp(SMALLEST_SCALE, 65504.0).half())
        self.samples = []

    def _least_error(self, values: Tensor, steps: int = 40) -> Tensor:
        """The scale of least squared error on shrink factors 1.0 down to 0.2 of the largest value."""
        largest = values.abs().max().clamp_min(1e-6)
        best, best_error = largest / self.high, torch.tensor(torch.inf)
        for factor in torch.linspace(1.0, 0.2, steps).tolist():
            scale = factor * largest / self.high
            error = ((values / scale).round_().clamp_(self.low, self.high).mul_(scale) - values).square_().mean()
            if error < best_error:
                best, best_error = scale, error
        return best


def activation_quantisers(model: nn.Module) -> list[ActivationQuantiser]:
    """Every Q/DQ point of a quantised graph, each once."""
    return [module for module in model.modules() if isinstance(module, ActivationQuantiser)]


def integer_layers(model: nn.Module) -> dict[str, IntegerConv2d | IntegerLinear]:
    """Every integer layer by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, IntegerConv2d | IntegerLinear)}
