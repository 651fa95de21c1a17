"""The script inside a bundle: what it derives anew, without this project, and what it says when something differs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from core import bundle_verify
from core.bundle import MANIFEST, EngineFacts, Preprocessing, digest, read_bundle, requirements
from core.candidate import DistilPlan, GroupPlan
from core.config import RuntimeConfig
from core.data.images import decode_image
from core.engines import EngineHost
from core.errors import UserError
from core.hardware import device_facts
from core.runtimes.openvino import _beyond_seven_bits, _core
from core.runtimes.types import installed_version
from tests.core.bundle_samples import CANDIDATE, COLOURS, PLAIN, colour_model, make_bundle, save_image
from tests.tiny_onnx import Classifier

MEASURED: dict[str, Any] = {
    "search": {
        "accuracy": 0.9,
        "images": 20,
        "size_bytes": len(b"packed weights"),
        "latency": {"p50_ms": 0.19, "batch": 1, "threads": 1},
    },
    "test": {"accuracy": 1.0, "images": 30, "interval": [0.89, 1.0]},
    "latency": {"p50_ms": 1000.0, "batch": 1, "threads": 1},
    "device": {"cpu": "another processor", "runtime_version": "1.0"},
}


def verify(bundle: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """Away from this project, as whoever got the folder runs it."""
    command = [sys.executable, "-I", str(bundle / "verify.py"), "--seconds", "0.1", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=bundle.parent)


def images(folder: Path, wrong: int = 0) -> Path:
    """Ten images of every class, the first `wrong` of them in another class's folder."""
    names = list(COLOURS)
    for index in range(30):
        true = names[index % 3]
        shown = names[(index + 1) % 3] if index < wrong else true
        save_image(folder / shown / f"{index}.png", true)
    return folder


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_bundle_that_does_what_it_says_agrees(tmp_path: Path, runtime: str) -> None:
    bundle = make_bundle(tmp_path / "out", measurement=MEASURED, runtime=runtime)
    answer = verify(bundle, str(images(tmp_path / "images")))
    assert answer.returncode == 0, answer
    assert "found 100.00 % of 30 images" in answer.stdout
    assert f"found {runtime} {installed_version(runtime)}".split("-")[0] in answer.stdout
    assert "not another processor" in answer.stdout
    assert answer.stdout.splitlines()[-1] == "all that was checked agrees"


def test_worse_answers_changed_files_and_another_size_are_named(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "out", measurement=MEASURED)
    (bundle / "weights.pack").write_bytes(b"other weights")
    answer = verify(bundle, str(images(tmp_path / "images", wrong=20)))
    assert answer.returncode == 1, answer
    assert answer.stdout.splitlines()[-1] == "differs: weights.pack, size, accuracy"


def test_on_the_machine_of_the_measurement_another_latency_differs(tmp_path: Path) -> None:
    here = MEASURED | {"device": {"cpu": device_facts()["cpu"]}}
    answer = verify(make_bundle(tmp_path / "out", measurement=here))
    assert answer.returncode == 1, answer
    assert answer.stdout.splitlines()[-1] == "differs: latency"


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"ci_ms": [0.0, 1000.0]}, 0), ({"ci_ms": [999.0, 1001.0]}, 1), ({"stable": False}, 0), ({"stable": True}, 1)],
)
def test_a_stated_latency_that_wavered_is_no_reason_to_differ(changes: dict[str, object], code: int, tmp_path: Path) -> None:
    here = {"device": {"cpu": device_facts()["cpu"]}, "latency": {**MEASURED["latency"], **changes}}
    answer = verify(make_bundle(tmp_path / "out", measurement=MEASURED | here))
    assert answer.returncode == code, answer
    assert ("1000.0000 ms median (unstable)" in answer.stdout) == (changes.get("stable") is False)


def test_an_agreement_with_the_teacher_is_not_compared_with_labels(tmp_path: Path) -> None:
    unlabelled = MEASURED | {"search": {**MEASURED["search"], "judged_by": "teacher"}}
    bundle = make_bundle(tmp_path / "out", measurement=unlabelled)
    answer = verify(bundle, str(images(tmp_path / "images", wrong=20)))
    assert answer.returncode == 0, answer
    assert "stated 100.00 % as the teacher answers" in answer.stdout
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "Test agreement with the teacher's top-1: 100.00 %" in card
    assert "the test agreement with the teacher's top-1 is the one to quote" in card
    assert "how often the network is right is not known" in card


def test_nothing_is_sent_from_where_a_bundle_is_verified(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "out", measurement=MEASURED, runtime="openvino")
    code = "import sys, verify; verify.load(verify.read('bundle.json'), 1, 1); print(sys.modules['openvino_telemetry'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=bundle, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_a_card_says_how_the_network_was_made_and_whose_latency_it_states(tmp_path: Path) -> None:
    made = {"groups": (GroupPlan(),), "distil": DistilPlan(loss="ce")}
    own, others = {"fingerprint": "here"}, {"fingerprint": "there"}
    timed = {
        "latency": {**MEASURED["latency"], **own},
        "search": {**MEASURED["search"], "latency": {**MEASURED["search"]["latency"], **others}},
    }
    bundle = make_bundle(tmp_path / "a", candidate=CANDIDATE.model_copy(update=made), measurement=MEASURED | timed | own)
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "`light_cnn` at width 0.5, not pruned, trained on labels alone, its weights" in card
    assert "1000.0000 ms a call of 1 image(s) on 1 thread(s)." in card
    untimed = {key: value for key, value in (MEASURED | timed | own).items() if key != "latency"}
    card = (make_bundle(tmp_path / "b", measurement=untimed) / "MODEL_CARD.md").read_text()
    assert "`light_cnn` at width 0.5, pruned, distilled from its teacher by `kd`, its weights" in card
    assert "0.1900 ms a call of 1 image(s) on 1 thread(s) on the search's device." in card


def with_blob(path: Path, model: bytes, **changes: object) -> Path:
    """A bundle with OpenVINO's compiled form of `model`, two images a call; `changes` of its facts."""
    source = path.parent / "source.onnx"
    source.write_bytes(model)
    with EngineHost(RuntimeConfig(name="openvino", batch=2), path.parent / "work") as host:
        files, version = host.files(source), str(host.runtime.version)
    facts = {"files": tuple(files), "runtime": "openvino", "version": version, "device": "this processor", "batch": 2}
    engine = EngineFacts.model_validate(facts | changes)
    return make_bundle(path, measurement=MEASURED, runtime="openvino", engine=engine, engine_files=files)


def engine_row(answer: subprocess.CompletedProcess[str]) -> str:
    return next(line for line in answer.stdout.splitlines() if line[8:].startswith("engine"))


def test_an_engine_file_is_loaded_and_answers_as_the_model_does(tmp_path: Path) -> None:
    bundle = with_blob(tmp_path / "out", colour_model())
    answer = verify(bundle)
    assert answer.returncode == 0, answer
    assert engine_row(answer).endswith("found loads, the same logits")
    assert read_bundle(bundle).runtime == "openvino"
    (bundle / "model.blob").unlink()
    with pytest.raises(UserError, match=r"model\.blob is missing"):
        read_bundle(bundle)


def test_an_engine_of_another_version_is_stale_and_one_of_another_network_differs(tmp_path: Path) -> None:
    stale = verify(with_blob(tmp_path / "stale", colour_model(), version="1.0"))
    assert (stale.returncode, stale.stdout.splitlines()[-1]) == (1, "differs: engine")
    assert "stale here, use model.onnx" in engine_row(stale)
    other = verify(with_blob(tmp_path / "other", colour_model(gain=9.0)))
    assert "other logits: use model.onnx" in engine_row(other)


def test_an_engine_of_a_runtime_that_is_not_here_gets_no_verdict(tmp_path: Path) -> None:
    facts = {"files": ("model.engine", "timing.cache"), "runtime": "tensorrt", "version": "10.13", "device": "NVIDIA L4", "batch": 1}
    files = {"model.engine": b"plan", "timing.cache": b"timings"}
    bundle = make_bundle(tmp_path / "out", measurement=MEASURED, engine=EngineFacts.model_validate(facts), engine_files=files)
    answer = verify(bundle)
    assert answer.returncode == 0, answer
    assert engine_row(answer).startswith("        engine")
    (bundle / "timing.cache").write_bytes(b"of another driver")
    assert verify(bundle).stdout.splitlines()[-1] == "differs: timing.cache"


def test_what_cannot_be_checked_is_one_line(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "out", measurement=MEASURED)
    (tmp_path / "nothing").mkdir()
    for answer in (verify(bundle, str(tmp_path / "nothing")), _without(bundle, "labels.json", tmp_path)):
        assert answer.returncode == 2, answer
        assert len(answer.stderr.splitlines()) == 1
        assert answer.stderr.startswith("error: this bundle cannot be checked: ")


def _without(bundle: Path, name: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (bundle / name).unlink()
    return verify(bundle, str(folder / "nothing"))


def test_the_script_imports_nothing_of_this_project_and_the_rest_is_required() -> None:
    tree = ast.parse(Path(bundle_verify.__file__).read_text(encoding="utf-8"))
    modules = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    foreign = {name.partition(".")[0] for name in modules} - set(sys.stdlib_module_names)
    assert foreign == {"numpy", "PIL", "openvino", "onnxruntime"}
    listed = requirements("openvino")
    assert listed.split() == [f"{name}=={installed_version(name)}" for name in ("openvino", "onnxruntime", "numpy", "pillow")]
    assert requirements("tensorrt").startswith("onnxruntime==")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "1"])
def test_the_script_sees_the_pixels_that_the_program_sees(tmp_path: Path, mode: str, channels: int) -> None:
    rng = np.random.default_rng(0)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65535, (13, 22), dtype=np.uint16))
    else:
        bands = {"RGB": (3,), "RGBA": (4,)}.get(mode, ())
        plain = Image.fromarray(rng.integers(0, 255, (13, 22, *bands), dtype=np.uint8))
        image = plain.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "image.png"
    image.save(path, exif=exif)
    inputs = Preprocessing(image_size=8, channels=channels, mean=(0.4,) * channels, std=(0.2,) * channels)  # type: ignore[arg-type]
    expected = inputs.normalise(decode_image(path, 8, channels)[None])[0]
    np.testing.assert_array_equal(bundle_verify.prepare(path, inputs.model_dump()), expected)


def test_brightness_in_fractions_is_refused_and_not_taken_for_black(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 0.5, np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(ValueError, match=r"float\.tiff: its brightness is in fractions without a range; save it with 8 or 16 bits"):
        bundle_verify.prepare(tmp_path / "float.tiff", PLAIN.model_dump())


def test_the_runtime_for_gpus_is_required_by_the_name_that_every_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, version in (("onnxruntime_gpu", "1.22.0"), ("numpy", "2.0.0")):
        (tmp_path / f"{name}-{version}.dist-info").mkdir()
        (tmp_path / f"{name}-{version}.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert requirements("onnxruntime_cuda") == "onnxruntime==1.22.0\nnumpy==2.0.0\n"


def test_the_manifest_lists_the_script_and_the_card(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "out", measurement=MEASURED)
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    for name in ("verify.py", "requirements.txt", "MODEL_CARD.md"):
        assert files[name] == digest((bundle / name).read_bytes())
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "Test accuracy: 100.00 % of 30 images, 95 % interval 89.00 to 100.00." in card
    assert "`light_cnn` at width 0.5" in card
    assert "not stated training images" in card


@pytest.mark.parametrize("bits", [7, 8])
def test_a_bundle_knows_as_the_engine_does_which_sums_a_processor_without_vnni_clips(bits: int, tmp_path: Path) -> None:
    path = Classifier(quantised=True, bits=bits).save(tmp_path / "m.onnx")
    network = _core().read_model(str(path))
    assert any(map(bundle_verify.beyond_seven_bits, network.get_ordered_ops())) == _beyond_seven_bits(network) == (bits == 8)
    float_layers = _core().read_model(str(Classifier(quantised=False).save(tmp_path / "f.onnx")))
    assert not _beyond_seven_bits(float_layers)
