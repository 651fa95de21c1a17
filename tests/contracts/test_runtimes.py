"""What every entry of RUNTIMES keeps to, in process and without the measuring child."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core.errors import EngineBuildError, MissingRuntime, UserError
from core.runtimes import RUNTIMES, EngineOptions, Runtime, check_precision, resolve_runtime
from core.runtimes.types import installed_version
from tests.tiny_onnx import CLASSES, IMAGES, Classifier, save_model

ONE = EngineOptions(batch=1, threads=1, precision="f32")


@pytest.fixture(params=sorted(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> Runtime:
    entry = RUNTIMES[request.param]()
    if entry.version is None:
        pytest.skip(f"{entry.name} is not installed here")
    return entry


@pytest.mark.parametrize("name", sorted(RUNTIMES))
def test_an_entry_describes_itself(name: str) -> None:
    entry = RUNTIMES[name]()
    assert entry.name == name
    assert entry.activation_grid in ("uint8_relu", "int8")
    assert "f32" in entry.precisions
    assert entry.pip_name


def test_a_float_engine_computes_the_model(runtime: Runtime, tmp_path: Path) -> None:
    model = Classifier()
    engine = runtime.load(str(model.save(tmp_path / "m.onnx")), EngineOptions(batch=len(IMAGES), threads=1, precision="f32"))
    logits = engine.run(IMAGES)
    assert logits.dtype == np.float32
    assert logits.shape == (len(IMAGES), CLASSES)
    np.testing.assert_allclose(logits, model.logits(IMAGES), rtol=1e-4, atol=1e-4)


def test_an_int8_engine_computes_the_simulated_grid(runtime: Runtime, tmp_path: Path) -> None:
    model = Classifier(quantised=True)
    engine = runtime.load(str(model.save(tmp_path / "m.onnx")), EngineOptions(batch=len(IMAGES), threads=1, precision="f32"))
    logits, expected = engine.run(IMAGES), model.logits(IMAGES)
    np.testing.assert_allclose(logits, expected, atol=0.05)  # a value on the edge of two levels may round either way
    np.testing.assert_array_equal(logits.argmax(axis=1), expected.argmax(axis=1))


def test_an_artifact_counts_the_layers_that_run_in_int8(runtime: Runtime, tmp_path: Path) -> None:
    plain = runtime.load(str(Classifier().save(tmp_path / "f.onnx")), ONE).artifact()
    assert plain == {"precision": "f32", "int8_layers": 0, "layers": 3}
    quantised = runtime.load(str(Classifier(quantised=True).save(tmp_path / "q.onnx")), ONE).artifact()
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


def test_auto_resolves_to_an_installed_runtime() -> None:
    name = resolve_runtime("auto")
    assert RUNTIMES[name]().version
    assert name == "openvino" or RUNTIMES["openvino"]().version is None


def test_an_unknown_runtime_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"unknown runtime 'openvin', did you mean 'openvino'\?.*onnxruntime, openvino"):
        resolve_runtime("openvin")


def test_a_runtime_that_is_not_installed_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Runtime("absent", installed_version("no-such-distribution"), "int8", False, RUNTIMES["openvino"]().load, pip_name="absent-cpu")
    monkeypatch.setitem(RUNTIMES, "absent", lambda: absent)
    with pytest.raises(MissingRuntime, match="pip install absent-cpu"):
        resolve_runtime("absent")


def test_the_table_imports_no_runtime_and_no_torch() -> None:
    code = "import sys, core.engine_child; print({'torch', 'openvino', 'onnxruntime', 'pydantic'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
