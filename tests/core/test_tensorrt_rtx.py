"""Engines of TensorRT-RTX, built without a GPU; the whole matrix of students is benchmarks/matrix.py. What needs a GPU is not here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.matrix import rows
from core.candidate import BuildReport, Candidate, GroupPlan, milliseconds
from core.cli import run_main
from core.compress import draft, resolve
from core.config import RuntimeConfig
from core.engines import EngineHost, main
from core.errors import EngineBuildError, UserError
from core.runtimes import RUNTIMES, EngineOptions
from core.runtimes.trt_build import count_layers
from core.runtimes.trt_run import _Caches
from core.runtimes.types import Precision
from core.students import STUDENTS
from tests.tiny_onnx import IMAGES, Classifier, unsupported

RUNTIME = RUNTIMES["tensorrt_rtx"]()
pytestmark = pytest.mark.skipif(RUNTIME.version is None, reason="tensorrt_rtx is not installed: pip install -e '.[tensorrt-rtx]'")


def options(precision: Precision = "f32") -> EngineOptions:
    return EngineOptions(batch=2, threads=1, precision=precision)


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Classifier(quantised=True, signed=True).save(tmp_path_factory.mktemp("models") / "signed.onnx")


# Students


@pytest.mark.parametrize(("student", "execution"), [("mobilenet_v2", "mixed"), ("hybrid_serial", "mixed")])
@pytest.mark.slow
def test_a_student_builds_without_a_warning_and_its_int8_layers_run_in_int8(student: str, execution: str) -> None:
    for row in rows(student, execution, ("SM75", "SM89"), width=0.5):
        assert (row["error"], row["warnings"]) == (None, [])
        assert row["layers"] >= 10
        if row["target"] != "SM75":  # where this library computes them in float
            assert row["int8_layers"] == row["planned_int8"]


def test_a_search_on_the_cpu_can_make_models_that_build(tmp_path: Path) -> None:
    groups = (GroupPlan(weight_bits=4, execution="float"), *[GroupPlan(weight_bits=4)] * 4)
    candidate, shape = Candidate(student="resnet8", groups=groups), (1, 8, 8)
    with EngineHost(RuntimeConfig(name="onnxruntime", activation_grid="int8"), tmp_path / "work") as host:
        dense = STUDENTS["resnet8"](classes=10, channels=1, image_size=8).eval()
        pruned, plan = resolve(dense, candidate, shape, host.runtime)
        model = draft(pruned, plan, shape, host.runtime).save(tmp_path)
        assert host.predict(model, np.ones((2, *shape), np.float32))[0].shape == (2, 10)
    assert RUNTIME.build is not None
    built = RUNTIME.build(str(model), options(), ("SM86",))
    planned = sum(layer.execution == "int8" for layer in plan.layers)
    assert 0 < planned < 10
    assert (built.artifact["int8_layers"], built.artifact["layers"], built.warnings) == (planned, 10, ())


# One model


def test_an_engine_tells_which_layers_run_in_int8(signed: Path, tmp_path: Path) -> None:
    assert RUNTIME.build is not None
    built = RUNTIME.build(str(signed), options(), ("SM89",))
    assert built.artifact == {"precision": "f32", "int8_layers": 3, "layers": 3}
    assert built.warnings == ()
    plain = RUNTIME.build(str(Classifier().save(tmp_path / "float.onnx")), options(), ("SM89",))
    assert plain.artifact == {"precision": "f32", "int8_layers": 0, "layers": 3}


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_float_layers_take_the_precision_asked_for(signed: Path, precision: Precision) -> None:
    assert RUNTIME.build is not None
    assert RUNTIME.build(str(signed), options(precision), ("SM80",)).artifact == {"precision": precision, "int8_layers": 3, "layers": 3}


def test_a_precision_that_a_gpu_lacks_is_refused_by_name(signed: Path) -> None:
    assert RUNTIME.build is not None
    with pytest.raises(EngineBuildError, match="cannot build it for SM75"):
        RUNTIME.build(str(signed), options("bf16"), ("SM75",))


def test_what_the_builder_warns_of_is_reported(signed: Path) -> None:
    assert RUNTIME.build is not None
    assert any("scales" in warning for warning in RUNTIME.build(str(signed), options("f16"), ("SM89",)).warnings)


def test_a_model_on_the_unsigned_grid_is_refused_with_the_remedy(tmp_path: Path) -> None:
    assert RUNTIME.build is not None
    with pytest.raises(EngineBuildError, match=r"UINT8 zero points .* export the model for runtime.name tensorrt_rtx"):
        RUNTIME.build(str(Classifier(quantised=True).save(tmp_path / "unsigned.onnx")), options(), ("SM89",))


def test_an_operator_that_the_parser_does_not_know_is_named(tmp_path: Path) -> None:
    assert RUNTIME.build is not None
    with pytest.raises(EngineBuildError, match=r"cannot parse it: .*Teleport"):
        RUNTIME.build(str(unsupported(tmp_path / "u.onnx")), options(), ("SM89",))


@pytest.mark.parametrize(
    ("first", "int8"),
    [
        ("Name: x, Dimensions: [1,4], Datatype: Int8, Format: (NHWC)", 1),
        ("Name: x, Location: Device, Dimensions: [1,4], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format", 1),
        ("Name: x, Dimensions: [1,4], Datatype: Half", 0),
    ],
)
def test_both_styles_of_the_inspector_are_read(first: str, int8: int) -> None:
    line = f"Name: conv + relu, LayerType: CaskConvolution, Inputs: [ {{ {first} }}], Outputs: [ {{ Name: y, Datatype: Int8 }}]"
    shuffle = f"Name: other, LayerType: Reformat, Inputs: [ {{ {first} }}], Outputs: [ {{ Name: z, Datatype: Int8 }}]"
    assert count_layers(f"{line}\n{shuffle}", "f32") == {"precision": "f32", "int8_layers": int8, "layers": 1}


def test_a_description_without_layers_counts_none() -> None:
    assert count_layers("", "f32") == {"precision": "f32", "int8_layers": None, "layers": None}


# Host and command


def test_a_host_with_targets_builds_in_its_child(signed: Path, tmp_path: Path) -> None:
    with EngineHost(RuntimeConfig(name="auto", build_for=("SM80", "SM89")), tmp_path / "work") as host:
        built = [host.build(signed, (target,), tmp_path / f"{target}.engine") for target in ("SM80", "SM89")]
        with pytest.raises(EngineBuildError, match="tensorrt_rtx cannot build or run"):
            host.build(tmp_path / "missing.onnx", ("SM89",), tmp_path / "none.engine")
    for file in built:
        assert file.path.stat().st_size == file.size_bytes
        assert (file.artifact.runtime, file.artifact.int8_layers, file.artifact.layers) == ("tensorrt_rtx", 3, 3)
    assert not (tmp_path / "none.engine").exists()


def test_a_host_that_only_builds_answers_by_onnxruntime_and_times_nothing(signed: Path, tmp_path: Path) -> None:
    with EngineHost(RuntimeConfig(name="tensorrt_rtx", precision="f16", build_for=("SM80", "SM120")), tmp_path / "work") as host:
        report = host.latency(signed)
        assert isinstance(report, BuildReport)
        assert (report.compute_capability, report.int8_layers, report.precision) == (("SM80", "SM120"), 3, "f16")
        assert milliseconds(report) == ()
        logits, artifact = host.predict(signed, IMAGES)
        np.testing.assert_allclose(logits, Classifier(quantised=True, signed=True).logits(IMAGES), atol=0.05)
        assert (artifact.runtime, artifact.precision) == ("onnxruntime", "f32")
        assert list(host.files(signed)) == ["model.engine"]
        with pytest.raises(UserError, match="an engine is timed where it runs"):
            host.time_model(signed)


def test_an_engine_for_several_gpus_keeps_its_int8_layers(signed: Path) -> None:
    assert RUNTIME.build is not None
    assert RUNTIME.build(str(signed), options(), ("SM80", "SM86", "SM89", "SM120")).artifact["int8_layers"] == 3


def test_the_command_writes_an_engine_per_gpu(signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["build", str(signed), "--sm", "89", "--sm", "12.0", "--out", str(tmp_path / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["signed.SM120.engine", "signed.SM89.engine"]
    assert capsys.readouterr().out.count("3 of 3 layers in INT8, the others in f32") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sm", "90"], "builds for one or more of SM75, SM80, SM86, SM89, SM120, SM121, but got SM90"),
        (["--sm", "89", "--runtime", "openvino"], "only tensorrt_rtx builds engines"),
        (["--sm", "89", "--batch", "0"], "--batch must be at least 1"),
        (["--sm", "75", "--precision", "bf16"], "cannot build it for SM75"),
    ],
)
def test_the_command_refuses_in_one_line(
    signed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run_main(main, ["build", str(signed), "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_command_names_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*none\.onnx"):
        main(["build", str(tmp_path / "none.onnx"), "--sm", "89"])


# Caches of a device


def test_a_cache_is_kept_per_library_gpu_driver_and_kind(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1000)
    caches = _Caches(str(tmp_path), "tensorrt_rtx", "1.7", "NVIDIA T4", "550.54")
    assert caches.read("timing") == b""
    caches.write("timing", content)
    assert caches.read("timing") == content
    assert caches.read("kernels") == b""
    assert _Caches(str(tmp_path), "tensorrt_rtx", "1.7", "NVIDIA T4", "550.54").read("timing") == content
    for other in (("1.8", "NVIDIA T4", "550.54"), ("1.7", "NVIDIA L4", "550.54"), ("1.7", "NVIDIA T4", "580.65")):
        assert _Caches(str(tmp_path), "tensorrt_rtx", *other).read("timing") == b""


def test_a_damaged_cache_counts_as_empty(tmp_path: Path) -> None:
    caches = _Caches(str(tmp_path), "device")
    caches.write("timing", b"x" * 100)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-1])
    assert caches.read("timing") == b""


def test_without_a_folder_nothing_is_kept() -> None:
    caches = _Caches(None, "device")
    caches.write("timing", b"x")
    assert caches.read("timing") == b""
