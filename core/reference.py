"""The pinned reference network: what runs between the blocks of every measurement to tell whether the machine was quiet.

It never changes, so its time on a device tells of the device alone. A change here is a change of the protocol: count VERSION up.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from core.files import write_atomically

VERSION = 1
SIZE, CLASSES = 32, 10
CHANNELS = (3, 16, 16, 16, 32)
STRIDES = (1, 1, 1, 2)


def write_reference(path: Path) -> Path:
    """Write the network: four 3x3 convolutions with ReLU, mean, 1x1 classifier, in float; 6.4 million MACs on (batch, 3, 32, 32)."""
    rng = np.random.default_rng(VERSION)
    nodes, constants, name = [], [], "images"
    for index, (inputs, outputs, stride) in enumerate(zip(CHANNELS, CHANNELS[1:], STRIDES, strict=False)):
        constants.append(_weight(rng, f"w{index}", (outputs, inputs, 3, 3)))
        nodes.append(helper.make_node("Conv", [name, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1], strides=[stride, stride]))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        name = f"r{index}"
    constants.append(_weight(rng, "head", (CLASSES, CHANNELS[-1], 1, 1)))
    nodes.append(helper.make_node("GlobalAveragePool", [name], ["pooled"]))
    nodes.append(helper.make_node("Conv", ["pooled", "head"], ["map"]))
    nodes.append(helper.make_node("Flatten", ["map"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        f"reference_{VERSION}",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", CHANNELS[0], SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return write_atomically(path, model.SerializeToString(deterministic=True))


def _weight(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> onnx.TensorProto:
    scale = np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
    return numpy_helper.from_array(rng.standard_normal(shape, dtype=np.float32) * scale, name)
