"""What a runtime computes is what PyTorch simulates: students in mixed bits, and the ways in which people write networks."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from core.candidate import Execution, ShapePlan, WeightBits
from core.export import check_rebuilds, export_onnx, packed_tensors
from core.hardware import int8_bits_here
from core.pack import pack, unpack
from core.quantise.graph import round_as
from core.runtimes import RUNTIMES, EngineOptions, why_not_here
from core.students import STUDENTS
from tests.tiny_nets import PATTERNS, SHAPE, Pattern, images, plan_of, quantised, settled

COUNT = 64
DEPTHS = cast(tuple[WeightBits, ...], (8, 4, 16, 2, 6, 3, 16, 5))
KINDS = cast(tuple[Execution, ...], ("int8", "int8", "float", "int8", "float"))


def mixed(model: nn.Module, shape: tuple[int, int, int]) -> ShapePlan:
    """Every number of bits and both executions, in turn."""
    names = [layer.name for layer in plan_of(model, shape).layers]
    bits = {name: DEPTHS[index % len(DEPTHS)] for index, name in enumerate(names)}
    return plan_of(model, shape, bits, {name: KINDS[index % len(KINDS)] for index, name in enumerate(names)})


def check(graph: fx.GraphModule, shape: tuple[int, int, int], folder: Path, batches: tuple[int, ...] = (COUNT,)) -> None:
    model = export_onnx(graph, shape)
    check_rebuilds(model, unpack(pack(packed_tensors(graph))))
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    x = images(COUNT, shape, seed=9)
    with torch.no_grad():
        expected = graph(x)
    for name, runtime in RUNTIMES.items():
        if why_not_here(runtime()) or runtime().activation_grid != "uint8_relu":
            continue
        for batch in batches:
            engine = runtime().load(str(path), EngineOptions(batch=batch, threads=1, precision="f32"))
            logits = torch.cat([torch.from_numpy(engine.run(part.numpy())) for part in x.split(batch)])
            agree(name, logits, expected)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("width", [0.5, 0.75])  # 8 and 16, 12 and 24 channels before the two strides
def test_a_second_thread_changes_no_answer(name: str, width: float, tmp_path: Path) -> None:
    """OpenVINO's AVX2 kernels of strided 1x1 convolutions write into what another thread computes."""
    runtime, shape = RUNTIMES[name](), (3, 16, 16)
    torch.manual_seed(0)
    model = settled(STUDENTS["resnet8"](classes=10, image_size=16, width=width), shape)
    graph = quantised(model, plan_of(model, shape), shape, runtime.activation_grid, runtime.addends)
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(graph, shape).SerializeToString())
    x = images(COUNT, shape, seed=9).numpy()
    one, two = (runtime.load(str(path), EngineOptions(batch=COUNT, threads=threads, precision="f32")) for threads in (1, 2))
    expected = one.run(x)
    for _ in range(20):
        np.testing.assert_allclose(two.run(x), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def agree(runtime: str, actual: Tensor, expected: Tensor) -> None:
    """Equal top-1, but for images whose two best classes are closer than what one rounding of one activation moves."""
    assert actual.shape == expected.shape
    assert (actual - expected).norm() < 0.02 * expected.norm(), runtime
    best = expected.topk(2).values
    clear = best[:, 0] - best[:, 1] > 0.02 * expected.abs().max()
    assert clear.float().mean() > 0.5
    assert torch.equal(actual.argmax(1)[clear], expected.argmax(1)[clear]), runtime


@pytest.mark.parametrize("name", ["resnet8", "light_cnn", "airbench", "hybrid_serial", "hybrid_parallel"])
def test_an_engine_of_mixed_bits_and_execution_equals_the_simulation(name: str, tmp_path: Path) -> None:
    shape = (3, 16, 16)
    torch.manual_seed(0)
    model = settled(STUDENTS[name](classes=10, image_size=16, width=0.25), shape)
    plan = mixed(model, shape)
    assert {layer.weight_bits for layer in plan.layers} >= {2, 4, int8_bits_here(), 16}
    for once in (True, False):
        check(quantised(model, plan, shape, dequantises_once=once), shape, tmp_path, batches=(1, COUNT))


@pytest.mark.parametrize("student", ["resnet8", "mobilenet_v2", "shufflenet_v2"])
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_an_int8_engine_rounds_bit_for_bit_where_its_simulation_does(name: str, student: str, tmp_path: Path) -> None:
    """Its logits of most images are those of the simulation, up to the last digits; one value that rounds otherwise shows."""
    runtime, shape = RUNTIMES[name](), (3, 16, 16)
    torch.manual_seed(0)
    model = settled(STUDENTS[student](classes=10, image_size=16, width=0.5), shape)
    facts = (runtime.activation_grid, runtime.addends, runtime.dequantises_once)
    graph = quantised(model, plan_of(model, shape, bits=4), shape, *facts)
    round_as(graph, by_reciprocal=runtime.by_reciprocal, rounds_bias=runtime.rounds_bias)
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(graph, shape).SerializeToString())
    x = images(COUNT, shape, seed=9)
    logits = torch.from_numpy(runtime.load(str(path), EngineOptions(batch=COUNT, threads=1, precision="f32")).run(x.numpy()))
    with torch.no_grad():
        expected = graph(x)
    same = (logits - expected).abs().amax(1) < 1e-5 * expected.abs().max()
    assert same.float().mean() >= 0.8


@pytest.mark.parametrize("name", ["resnet8", "resnet20", "mobilenet_v2"])
@pytest.mark.slow
def test_openvino_rounds_a_residual_add_where_its_file_says(name: str, tmp_path: Path) -> None:
    """With Q/DQ on both inputs it leaves one rounding out, and the error is 0.006 to 0.02."""
    runtime, shape = RUNTIMES["openvino"](), (3, 16, 16)
    torch.manual_seed(0)
    model = settled(STUDENTS[name](classes=10, image_size=16, width=0.5), shape)
    graph = quantised(model, plan_of(model, shape, bits=4), shape, runtime.activation_grid, runtime.addends)
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(graph, shape).SerializeToString())
    x = images(COUNT, shape, seed=9)
    with torch.no_grad():
        expected = graph(x).numpy()
    logits = runtime.load(str(path), EngineOptions(batch=COUNT, threads=1, precision="f32")).run(x.numpy())
    assert np.abs(logits - expected).mean() < 0.003 * expected.std()


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_an_engine_equals_the_simulation(pattern: Pattern, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = settled(pattern.build())
    check(quantised(model, plan_of(model)), SHAPE, tmp_path)


def test_all_but_the_classifier_of_a_residual_network_runs_in_int8(tmp_path: Path) -> None:
    """A misplaced Q/DQ point shows here: the layer falls back to float, and the engine is slower, not wrong."""
    shape = (3, 16, 16)
    torch.manual_seed(0)
    model = settled(STUDENTS["resnet8"](classes=10, image_size=16, width=0.5), shape)
    path = tmp_path / "model.onnx"
    path.write_bytes(export_onnx(quantised(model, plan_of(model, shape), shape), shape).SerializeToString())
    for runtime in RUNTIMES.values():
        if why_not_here(runtime()) is None and runtime().device == "cpu":
            artifact = runtime().load(str(path), EngineOptions(batch=1, threads=1, precision="f32")).artifact()
            assert artifact["layers"] == 10
            assert artifact["int8_layers"] is None or artifact["int8_layers"] >= 9
