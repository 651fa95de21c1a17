"""An exported model gives the same classes wherever it runs: ONNX Runtime in Python, OpenVINO, and ONNX Runtime in Node.js."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from core.export import export_onnx
from core.quantise.graph import Grid
from core.runtimes import RUNTIMES, EngineOptions
from core.students import STUDENTS
from tests.tiny_nets import images as noise
from tests.tiny_nets import plan_of, quantised, settled

ROOT = Path(__file__).parents[2]
SHAPE = (3, 16, 16)
IMAGES = 100
CLEAR = 0.5
"""Least lead of the first class over the second, in standard deviations of the logits. The runtimes round INT8 sums differently: of an
untrained network, whose logits lie close, one of 100 images with a lead of 0.3 was seen to turn (AVX2 alone)."""


@functools.cache
def node_modules() -> str | None:
    """The folder that has onnxruntime-node; None where it or Node.js is missing (npm install --ignore-scripts onnxruntime-node)."""
    places = [os.environ.get("NODE_PATH", ""), str(ROOT / "node_modules")]
    if shutil.which("node") is None:
        return None
    return next((place for place in places if place and Path(place, "onnxruntime-node").is_dir()), None)


@pytest.fixture(scope="module", params=["uint8_relu", "int8"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """An exported network with layers in INT8 and float, 100 images, and their logits in Python's ONNX Runtime."""
    grid: Grid = request.param
    net = settled(STUDENTS["resnet8"](classes=10, channels=3, image_size=16, width=0.5), SHAPE)
    with torch.no_grad():  # untrained, it would name one class for everything
        net.classifier.bias -= net(noise(256, SHAPE, seed=9)).mean(0)
    plan = plan_of(net, SHAPE, bits={"classifier": 8}, execution={"conv1": "float"})
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    path.write_bytes(export_onnx(quantised(net, plan, SHAPE, grid), SHAPE).SerializeToString())
    images = np.random.default_rng(0).standard_normal((24 * IMAGES, *SHAPE), dtype=np.float32)
    logits = RUNTIMES["onnxruntime"]().load(str(path), EngineOptions(len(images), 1, "f32")).run(images)
    best = np.sort(logits, axis=1)
    plain = (best[:, -1] - best[:, -2] > CLEAR * logits.std()).nonzero()[0][:IMAGES]
    assert len(plain) == IMAGES
    return path, images[plain], logits[plain]


def test_openvino_names_the_same_classes(model: tuple[Path, np.ndarray, np.ndarray]) -> None:
    path, images, logits = model
    answers = RUNTIMES["openvino"]().load(str(path), EngineOptions(IMAGES, 1, "f32")).run(images)
    np.testing.assert_array_equal(answers.argmax(1), logits.argmax(1))
    assert len(set(answers.argmax(1))) > 2


@pytest.mark.skipif(node_modules() is None, reason="needs Node.js and npm install --ignore-scripts onnxruntime-node")
def test_node_names_the_same_classes(model: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    path, images, logits = model
    images.tofile(tmp_path / "images.f32")
    command = ["node", str(ROOT / "tests/core/node_logits.cjs"), str(path), str(tmp_path / "images.f32"), str(tmp_path / "logits.f32")]
    environment = {**os.environ, "NODE_PATH": str(node_modules())}
    subprocess.run([*command, *map(str, images.shape)], check=True, timeout=120, env=environment)
    answers = np.fromfile(tmp_path / "logits.f32", np.float32).reshape(logits.shape)
    np.testing.assert_array_equal(answers.argmax(1), logits.argmax(1))
