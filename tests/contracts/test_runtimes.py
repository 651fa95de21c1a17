"""What every entry of RUNTIMES keeps to, in process and without the measuring child."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from core.errors import EngineBuildError, MissingRuntime, UserError
from core.hardware import gpu
from core.quantise.layers import ActivationQuantiser
from core.runtimes import (
    RUNTIMES,
    EngineOptions,
    Runtime,
    building_runtime,
    check_precision,
    on_grid,
    resolve_runtime,
    why_not_here,
)
from core.runtimes.types import installed_version
from tests.tiny_onnx import CLASSES, IMAGES, Classifier, quantised_images, save_model

ONE = EngineOptions(batch=1, threads=1, precision="f32")


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    entry = RUNTIMES[request.param]()
    reason = why_not_here(entry)
    if reason is not None:
        pytest.skip(reason)
    return entry


def classifier(runtime: Runtime) -> Classifier:
    """Quantised on the runtime's own grid."""
    return Classifier(quantised=True, signed=runtime.activation_grid == "int8")


def largest(runtime: Runtime, bits: int) -> Classifier:
    """Every weight the largest of its bits: with the largest activations, no sum of products can be larger."""
    model = Classifier(quantised=True, signed=runtime.activation_grid == "int8", bits=bits)
    top = 2 ** (bits - 1) - 1
    model.integers = [np.full_like(values, top) for values in model.integers]
    model.scales = [np.full_like(scales, per_sum / top) for scales, per_sum in zip(model.scales, (0.15, 0.0026, 0.1), strict=True)]
    return model


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_an_entry_describes_itself(name: str) -> None:
    entry = RUNTIMES[name]()
    assert entry.name == name
    assert entry.activation_grid in ("uint8_relu", "int8")
    assert "f32" in entry.precisions
    assert entry.pip_name
    assert entry.device in ("cpu", "cuda")
    assert entry.channel_multiple >= 1
    assert (entry.build is None) == (not entry.compute_capabilities)


def test_a_float_engine_computes_the_model(runtime: Runtime, tmp_path: Path) -> None:
    model = Classifier()
    engine = runtime.load(str(model.save(tmp_path / "m.onnx")), EngineOptions(batch=len(IMAGES), threads=1, precision="f32"))
    logits = engine.run(IMAGES)
    assert logits.dtype == np.float32
    assert logits.shape == (len(IMAGES), CLASSES)
    np.testing.assert_allclose(logits, model.logits(IMAGES), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [0, 40, -1], ids=["empty", "its first bytes", "all but the last byte"])
def test_what_is_no_whole_model_is_refused_by_an_error_that_commands_expect(runtime: Runtime, keep: int, tmp_path: Path) -> None:
    path = Classifier().save(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises((RuntimeError, EngineBuildError)):
        runtime.load(str(path), ONE)


def test_an_int8_engine_clips_no_sum(runtime: Runtime, tmp_path: Path) -> None:
    """x86 without VNNI adds pairs of products in 16 bits."""
    images = np.full_like(IMAGES, 127 / 32)
    for bits in {runtime.int8_bits, 8}:
        model = largest(runtime, bits)
        engine = runtime.load(str(model.save(tmp_path / "m.onnx")), EngineOptions(batch=len(images), threads=1, precision="f32"))
        np.testing.assert_allclose(engine.run(images), model.logits(images), rtol=0.01)


def test_an_int8_engine_computes_the_simulated_grid(runtime: Runtime, tmp_path: Path) -> None:
    model = classifier(runtime)
    engine = runtime.load(str(model.save(tmp_path / "m.onnx")), EngineOptions(batch=len(IMAGES), threads=1, precision="f32"))
    logits, expected = engine.run(IMAGES), model.logits(IMAGES)
    np.testing.assert_allclose(logits, expected, atol=0.05)  # a value on the edge of two levels may round either way
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


@pytest.mark.parametrize("scale", [0.0123, 0.01679992, 0.028564453, 0.09002686])
def test_near_ties_fall_on_the_side_that_the_simulation_says(runtime: Runtime, scale: float, tmp_path: Path) -> None:
    point = ActivationQuantiser(signed=True)
    point.by_reciprocal = runtime.by_reciprocal
    point.scale.fill_(scale)
    ties = ((np.arange(IMAGES[0].size) % 250 - 124.5) * np.float64(point.scale)).astype(np.float32)
    ties = np.stack([ties, *(np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf))]).reshape(3, *IMAGES.shape[1:])
    path = quantised_images(tmp_path / "m.onnx", point.scale.numpy())
    engine = runtime.load(str(path), EngineOptions(batch=len(ties), threads=1, precision="f32"))
    expected = point(torch.from_numpy(ties)).flatten(1).numpy()
    np.testing.assert_array_equal(np.rint(engine.run(ties) / scale), np.rint(expected / scale))
    point.by_reciprocal = not runtime.by_reciprocal
    assert not np.array_equal(point(torch.from_numpy(ties)).flatten(1).numpy(), expected)


def test_an_artifact_counts_the_layers_that_run_in_int8(runtime: Runtime, tmp_path: Path) -> None:
    plain = runtime.load(str(Classifier().save(tmp_path / "f.onnx")), ONE).artifact()
    assert plain == {"precision": "f32", "int8_layers": 0, "layers": 3}
    if runtime.name == "onnxruntime_cuda":
        return  # its CUDA kernels compute quantised layers in float
    quantised = runtime.load(str(classifier(runtime).save(tmp_path / "q.onnx")), ONE).artifact()
    assert quantised["layers"] == 3
    assert quantised["int8_layers"] is not None
    assert quantised["int8_layers"] >= 2


def test_logits_do_not_depend_on_the_batch(runtime: Runtime, tmp_path: Path) -> None:
    path = str(Classifier().save(tmp_path / "m.onnx"))
    single = runtime.load(path, ONE)
    assert single.input_shape == (1, *IMAGES.shape[1:])
    one_by_one = np.concatenate([single.run(image[None]) for image in IMAGES])
    together = runtime.load(path, EngineOptions(batch=len(IMAGES), threads=1, precision="f32")).run(IMAGES)
    np.testing.assert_allclose(one_by_one, together, atol=1e-4)


def test_logits_survive_the_next_run(runtime: Runtime, tmp_path: Path) -> None:
    engine = runtime.load(str(Classifier().save(tmp_path / "m.onnx")), ONE)
    first = engine.run(IMAGES[:1])
    kept = first.copy()
    engine.run(IMAGES[1:2])
    np.testing.assert_array_equal(first, kept)


def test_an_unknown_precision_is_refused_with_the_known_ones(runtime: Runtime) -> None:
    with pytest.raises(UserError, match="f32"):
        check_precision(runtime, "f8")


def test_a_model_with_open_image_size_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    from onnx import helper

    nodes = [helper.make_node("Flatten", ["images"], ["logits"])]
    with pytest.raises(EngineBuildError, match="C, H and W fixed"):
        runtime.load(str(save_model(tmp_path / "open.onnx", nodes, [], size="side")), ONE)


def test_a_runtime_gives_the_same_logits_in_every_precision_it_has(runtime: Runtime, tmp_path: Path) -> None:
    model = Classifier()
    for precision in runtime.precisions:
        engine = runtime.load(str(model.save(tmp_path / "m.onnx")), EngineOptions(batch=len(IMAGES), threads=1, precision=precision))
        assert engine.artifact()["precision"] == precision
        logits = engine.run(IMAGES)
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, model.logits(IMAGES), atol=1e-4 if precision == "f32" else 0.1)


def test_auto_resolves_to_a_runtime_that_runs_here() -> None:
    name = resolve_runtime("auto")
    assert why_not_here(RUNTIMES[name]()) is None
    if gpu() is None and RUNTIMES["openvino"]().version:
        assert name == "openvino"


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    gpu.cache_clear()
    yield
    gpu.cache_clear()


@pytest.mark.parametrize("name", [name for name, entry in RUNTIMES.items() if entry().device == "cuda"])
@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_runtime_is_refused_in_one_line_where_there_is_no_gpu(name: str) -> None:
    with pytest.raises(MissingRuntime, match="needs an NVIDIA GPU" if RUNTIMES[name]().version else "pip install") as refused:
        resolve_runtime(name)
    assert "\n" not in str(refused.value)


def test_only_a_runtime_that_builds_elsewhere_takes_targets() -> None:
    with pytest.raises(UserError, match="only tensorrt_rtx builds engines for GPUs that are not here, but the runtime is openvino"):
        building_runtime("openvino", ("SM89",))


def test_a_runtime_takes_the_signed_grid_but_tensorrt_takes_no_unsigned_one() -> None:
    assert on_grid(RUNTIMES["openvino"](), "int8").activation_grid == "int8"
    for name in ("tensorrt", "tensorrt_rtx"):
        with pytest.raises(UserError, match=r"symmetric INT8 activations only, but runtime\.activation_grid is uint8_relu"):
            on_grid(RUNTIMES[name](), "uint8_relu")


def test_an_unknown_runtime_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown runtime 'openvin', did you mean 'openvino'\?.*onnxruntime.*openvino"):
        resolve_runtime("openvin")


def test_a_runtime_that_is_not_installed_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Runtime("absent", installed_version("no-such-distribution"), "int8", False, RUNTIMES["openvino"]().load, pip_name="absent-cpu")
    monkeypatch.setitem(RUNTIMES, "absent", lambda: absent)
    with pytest.raises(MissingRuntime, match="pip install absent-cpu"):
        resolve_runtime("absent")


def test_the_table_imports_no_runtime_and_no_torch() -> None:
    late = {"torch", "openvino", "onnxruntime", "tensorrt_rtx_bindings", "tensorrt", "onnx", "pydantic"}
    code = f"import sys, core.engine_child; print({late!r} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_a_signal_finds_its_stack_after_openvino_engines_are_gone(tmp_path: Path) -> None:
    model = Classifier().save(tmp_path / "model.onnx")
    code = f"""
import signal, subprocess
from core.runtimes import RUNTIMES, EngineOptions
make = lambda: RUNTIMES["openvino"]().load({str(model)!r}, EngineOptions(batch=1, threads=1, precision="f32"))
first, second = make(), make()
del first
del second
signal.signal(signal.SIGCHLD, lambda *_: print("delivered"))
subprocess.run(["true"])"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "delivered\n"), result.stderr
