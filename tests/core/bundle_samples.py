"""A bundle whose network is known by heart: the logits are eight times the mean of each colour, so a red image is red."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from core.bundle import Preprocessing, write_bundle
from core.candidate import Candidate, GroupPlan

SIZE = 4
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
LABELS = tuple(COLOURS)
CANDIDATE = Candidate(student="light_cnn", width=0.5, groups=(GroupPlan(weight_bits=4, prune_ratio=0.25), GroupPlan()))
PLAIN = Preprocessing(image_size=SIZE, channels=3, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def colour_model(gain: float = 8.0) -> bytes:
    """ONNX of images (batch, 3, 4, 4) -> logits (batch, 3)."""
    weight = numpy_helper.from_array(gain * np.eye(3, dtype=np.float32), "weight")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weight"], ["logits"]),
        ],
        "colours",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [weight],
    )
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


def make_bundle(path: Path, **changes: Any) -> Path:
    """A valid bundle at `path`, `changes` being other arguments of write_bundle."""
    parts: dict[str, Any] = {
        "onnx": colour_model(),
        "packed": b"packed weights",
        "candidate": CANDIDATE,
        "measurement": {"test_accuracy": 0.97, "latency": {"p50_ms": 0.19, "threads": 1}},
        "labels": LABELS,
        "preprocessing": PLAIN,
        "runtime": "onnxruntime",
        "readme_facts": {"Test accuracy": "97.0 % of 360 images"},
    }
    write_bundle(path, **(parts | changes))
    return path


def save_image(path: Path, colour: str, size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    """An image file of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, COLOURS[colour]).save(path)
    return path
