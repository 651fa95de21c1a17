"""Small ONNX classifiers with the shape of the exported ones, and what they compute, in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import TensorProto, helper, numpy_helper

from core.hardware import int8_bits_here

CHANNELS, SIZE, FILTERS, CLASSES = 3, 8, 16, 5
INPUT_SCALE, HIDDEN_SCALE, POOLED_SCALE = 0.03125, 0.0625, 0.03125
IMAGES = np.random.default_rng(1).standard_normal((7, CHANNELS, SIZE, SIZE)).astype(np.float32)


class Classifier:
    """conv 3x3, ReLU, conv 3x3, ReLU, global average pool, 1x1 conv as classifier; float, or Q/DQ on the UINT8 grid.

    `signed`: on the symmetric INT8 grid, with half as many levels above zero. `bits` of the weights.
    """

    def __init__(self, quantised: bool = False, seed: int = 0, signed: bool = False, bits: int | None = None) -> None:
        top = np.float32(2 ** ((bits or int8_bits_here()) - 1) - 1)
        rng = np.random.default_rng(seed)
        shapes = [(FILTERS, CHANNELS, 3, 3), (FILTERS, FILTERS, 3, 3), (CLASSES, FILTERS, 1, 1)]
        self.quantised = quantised
        self.kind: type[np.integer] = np.int8 if signed else np.uint8
        self.low, self.high = (-128, 127) if signed else (0, 255)
        self.weights = [rng.standard_normal(shape).astype(np.float32) / np.sqrt(np.prod(shape[1:])).astype(np.float32) for shape in shapes]
        self.scales = [np.abs(weight).max(axis=(1, 2, 3)) / top for weight in self.weights]
        self.integers = [np.round(w / s[:, None, None, None]).astype(np.int8) for w, s in zip(self.weights, self.scales, strict=True)]
        self.biases = [rng.standard_normal(shape[0]).astype(np.float32) for shape in shapes]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """The logits (N, classes) that an engine should give."""
        hidden = np.maximum(self._conv(0, self._grid(images, INPUT_SCALE, -128, 127), pad=1), 0)
        hidden = np.maximum(self._conv(1, self._grid(hidden, HIDDEN_SCALE, self.low, self.high), pad=1), 0)
        pooled = self._grid(hidden, HIDDEN_SCALE, self.low, self.high).mean(axis=(2, 3), keepdims=True)
        return self._conv(2, self._grid(pooled, POOLED_SCALE, self.low, self.high), pad=0)[:, :, 0, 0]

    def save(self, path: Path) -> Path:
        """Write the model, opset 21, batch open."""
        nodes, constants = [], []

        def constant(name: str, value: np.ndarray) -> str:
            constants.append(numpy_helper.from_array(value, name))
            return name

        def grid(x: str, scale: float, dtype: type) -> str:
            if not self.quantised:
                return x
            inputs = [constant(f"{x}_scale", np.array(scale, np.float32)), constant(f"{x}_zero", np.zeros((), dtype))]
            nodes.append(helper.make_node("QuantizeLinear", [x, *inputs], [f"{x}_q"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{x}_q", *inputs], [f"{x}_dq"]))
            return f"{x}_dq"

        def conv(index: int, x: str, out: str) -> None:
            weight = f"w{index}"
            if self.quantised:
                zeros = np.zeros(len(self.scales[index]), np.int8)
                inputs = [constant(f"{weight}_q", self.integers[index]), constant(f"{weight}_s", self.scales[index])]
                inputs.append(constant(f"{weight}_z", zeros))
                nodes.append(helper.make_node("DequantizeLinear", inputs, [weight], axis=0))
            else:
                constant(weight, self.weights[index])
            pad = self.weights[index].shape[-1] // 2
            nodes.append(helper.make_node("Conv", [x, weight, constant(f"b{index}", self.biases[index])], [out], pads=[pad] * 4))

        conv(0, grid("images", INPUT_SCALE, np.int8), "c0")
        nodes.append(helper.make_node("Relu", ["c0"], ["r0"]))
        conv(1, grid("r0", HIDDEN_SCALE, self.kind), "c1")
        nodes.append(helper.make_node("Relu", ["c1"], ["r1"]))
        nodes.append(helper.make_node("GlobalAveragePool", [grid("r1", HIDDEN_SCALE, self.kind)], ["pooled"]))
        conv(2, grid("pooled", POOLED_SCALE, self.kind), "map")
        nodes.append(helper.make_node("Flatten", ["map"], ["logits"]))
        return save_model(path, nodes, constants)

    def _grid(self, x: np.ndarray, scale: float, low: int, high: int) -> np.ndarray:
        return np.clip(np.round(x / np.array(scale, np.float32)), low, high) * np.float32(scale) if self.quantised else x

    def _conv(self, index: int, x: np.ndarray, pad: int) -> np.ndarray:
        weight = self.weights[index]
        if self.quantised:
            weight = self.integers[index] * self.scales[index][:, None, None, None]
        windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad))), weight.shape[2:], axis=(2, 3))
        return np.einsum("nchwij,ocij->nohw", windows, weight) + self.biases[index][:, None, None]


def save_model(
    path: Path, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto], size: int | str = SIZE, classes: int = CLASSES
) -> Path:
    """A model from "images" to "logits"."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", CHANNELS, size, size])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("nowhere", 1)]
    graph = helper.make_graph(nodes, "tiny", [images], [logits], constants)
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    return path


def quantised_images(path: Path, scale: np.float32) -> Path:
    """A model whose logits are the images on the INT8 grid of that scale, flat."""
    grid = [numpy_helper.from_array(np.array(scale), "scale"), numpy_helper.from_array(np.zeros((), np.int8), "zero")]
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["integers"]),
        helper.make_node("DequantizeLinear", ["integers", "scale", "zero"], ["rounded"]),
        helper.make_node("Flatten", ["rounded"], ["logits"]),
    ]
    return save_model(path, nodes, grid, classes=CHANNELS * SIZE**2)


def unsupported(path: Path) -> Path:
    """A model with an operator that no runtime knows."""
    return save_model(path, [helper.make_node("Teleport", ["images"], ["logits"], domain="nowhere")], [])


def greedy(path: Path) -> Path:
    """A model that is valid and needs 16 TiB."""
    shape = numpy_helper.from_array(np.array([2**42], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["most"], keepdims=1),
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Add", ["flat", "most"], ["logits"]),
    ]
    return save_model(path, nodes, [shape])


def not_finite(path: Path) -> Path:
    """A model that is valid and whose logits are NaN."""
    weight = numpy_helper.from_array(np.full((CLASSES, CHANNELS, SIZE, SIZE), np.nan, np.float32), "w")
    nodes = [helper.make_node("Conv", ["images", "w"], ["map"]), helper.make_node("Flatten", ["map"], ["logits"])]
    return save_model(path, nodes, [weight])
