"""A point of the front as a folder that runs; what is asked for and is not there gets one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from core.agent import AgentServer
from core.agent_client import TOKEN_VARIABLE
from core.bundle_verify import interval
from core.engines import EngineHost
from core.errors import UserError
from core.pack import pack, unpack
from core.runtimes import RUNTIMES
from search.export_best import _check_engine, newest_run
from search.final_score import optimism, score, wilson
from tests.core.test_agent import TOKEN, server, through
from tests.search.studies import export, load, predict, refused

__all__ = ["server"]
Capture = pytest.CaptureFixture[str]


def test_rank_0_is_a_bundle_that_answers_for_its_test_accuracy(again: Path, capfd: Capture) -> None:
    answer = export(capfd, "--rank", "0")
    assert answer.code == 0, answer
    assert answer.out.splitlines()[-1] == "written: exported/tiny-rank0"
    assert "this model: " in answer.out
    assert "the same network in float, f32: " in answer.out
    bundle = Path("exported/tiny-rank0")
    measured = json.loads((bundle / "measurement.json").read_text())
    best = max(load().best_trials, key=lambda trial: trial.values[0])
    assert measured["trial"] == best.number
    assert measured["search"]["size_bytes"] == (bundle / "weights.pack").stat().st_size == best.values[1]
    assert measured["test"]["images"] == 360
    assert {"p50_ms", "p95_ms", "fingerprint"} <= measured["search"]["latency"].keys()
    assert measured["versions"]["onnx"]
    floats = [f"the same network in float, {kind}" for kind in RUNTIMES["openvino"]().precisions]
    *twins, eager = (twin["what"] for twin in measured["twins"])
    assert twins == ["this model", *floats]
    assert eager.startswith("the same network in PyTorch 2.")
    assert eager.endswith(", eager, f32")
    # where this machine computes the tiny network faster in float, its first trial asks for no INT8 either
    asks = any(group["execution"] == "int8" for group in json.loads(best.user_attrs["record"])["candidate"]["groups"])
    int8_layers = [twin["engine"]["int8_layers"] for twin in measured["twins"][:2]]
    assert int8_layers == [best.user_attrs["engine"]["int8_layers"], 0]
    assert (int8_layers[0] > int8_layers[1]) == asks
    assert measured["latency"] == measured["twins"][0]["latency"]
    stated = measured["latency"]["p50_ms"]  # beside the device that it was timed on
    assert f"- latency: {stated:.3f} ms median" in (bundle / "README.md").read_text()
    assert f"{stated:.4f} ms a call" in (bundle / "MODEL_CARD.md").read_text()
    chosen = sorted(measured["calibration"])
    assert chosen[0] == 0
    assert len(set(chosen)) == len(chosen)
    assert measured["calibration"] != chosen  # class by class is no order to calibrate in
    assert load().user_attrs["test_accuracy"] == {json.loads(best.user_attrs["record"])["fingerprint"]: measured["test"]}

    # the bundle, on the test images as files, gives the accuracy that the export states
    assert predicted_right(capfd, bundle) == round(measured["test"]["accuracy"] * 360)


def test_a_search_accuracy_above_the_test_interval_gets_a_line() -> None:
    test = score(np.eye(2)[[0] * 40 + [1] * 60], np.zeros(100, dtype=int))
    assert optimism(0.40, test) == optimism(0.45, test) == ""
    assert "above the test interval" in optimism(0.55, test)


@pytest.mark.slow
def test_another_runtime_gets_the_same_weights_scored_and_timed_there(again: Path, capfd: Capture) -> None:
    assert export(capfd, "--rank", "0").code == 0
    answer = export(capfd, "--rank", "0", "--runtime", "onnxruntime")
    assert answer.code == 0, answer
    there, own = Path("exported/tiny-rank0-onnxruntime"), Path("exported/tiny-rank0")
    assert "from openvino to onnxruntime: search " in answer.out
    packed, same = (unpack((folder / "weights.pack").read_bytes()) for folder in (there, own))
    assert all(name.startswith("quantise_") for name in packed.keys() - same.keys())  # points before residual adds, for onnxruntime alone
    assert pack({name: packed[name] for name in same}) == (own / "weights.pack").read_bytes()  # one grid, so the same scales again
    measured = json.loads((there / "measurement.json").read_text())
    assert measured["search"]["latency"]["runtime"] == measured["device"]["runtime"] == "onnxruntime"
    assert json.loads((there / "bundle.json").read_text())["runtime"] == "onnxruntime"
    fingerprint = measured["candidate_fingerprint"]
    assert load().user_attrs["test_accuracy"].keys() == {fingerprint, f"{fingerprint}@onnxruntime"}


@pytest.mark.slow
def test_an_engine_is_exported_where_it_is_asked_for(again: Path, capfd: Capture) -> None:
    assert export(capfd, "--rank", "0", "--engine").code == 0
    bundle = Path("exported/tiny-rank0")
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert (manifest["engine"]["files"], manifest["engine"]["runtime"]) == (["model.blob"], "openvino")
    answer = subprocess.run(
        [sys.executable, "-I", "verify.py", "--seconds", "0.1"], cwd=bundle, capture_output=True, text=True, check=False
    )
    assert "found loads, the same logits" in answer.stdout, answer
    message = refused(export(capfd, "--rank", "0", "--engine", "--runtime", "onnxruntime"))
    assert message == "--engine writes the runtime's own files, but onnxruntime has none; leave it out"
    assert len(load().user_attrs["test_accuracy"]) == 1  # the test split stayed closed
    assert export(capfd, "--rank", "0").code == 0
    assert not (bundle / "model.blob").exists()  # an export replaces the whole bundle


def test_files_of_an_agents_device_are_not_asked_for(server: AgentServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with EngineHost(through(server), tmp_path) as there:
        _check_engine(there, asked=False)
        with pytest.raises(UserError, match=r"--engine writes the runtime's own files, but it runs at an agent, whose files stay there"):
            _check_engine(there, asked=True)


def predicted_right(capfd: Capture, bundle: Path) -> int:
    from core.data.heldout import load_test_data
    from core.yaml_io import load_config
    from tests.search.studies import ROOT

    test = load_test_data(load_config("digits", [], ROOT).data, Path("unused"))
    Path("images").mkdir()
    for index, (image, label) in enumerate(zip(test.images.numpy(), test.labels.tolist(), strict=True)):
        Image.fromarray(image[0].astype(np.uint8)).save(f"images/{index:04d}_{label}.png")
    answer = predict(capfd, "--bundle", str(bundle), "--top-k", "1", "images")
    assert answer.code == 0, answer
    rows = [line.split("  ") for line in answer.out.splitlines()]
    return sum(Path(path).stem.split("_")[1] == guess.split()[0] for path, guess in rows)


@pytest.mark.slow
def test_the_test_split_is_scored_once(again: Path, capfd: Capture) -> None:
    assert export(capfd, "--rank", "0").code == 0
    study = load()
    logged = {key: {**value, "accuracy": 0.5} for key, value in study.user_attrs["test_accuracy"].items()}
    study.set_user_attr("test_accuracy", logged)
    assert "test accuracy 50.00 %" in export(capfd, "--rank", "0").out


def test_limits_choose_the_point_or_name_the_nearest_miss(again: Path, capfd: Capture) -> None:
    smallest = min(load().best_trials, key=lambda trial: trial.values[1])
    assert f"(trial {smallest.number})" in export(capfd, "--max-size-kb", str(smallest.values[1] / 1000)).out
    message = refused(export(capfd, "--max-size-kb", "0.5"))
    assert "nearest miss: rank" in message
    assert "binding limit: --max-size-kb" in message


@pytest.mark.parametrize(
    ("argv", "law"),
    [
        (["--rank", "99"], "--rank must be between 0 and "),
        (["--rank", "-1"], "--rank must be between 0 and "),
        (["--rank", "one"], "argument --rank: invalid int value: 'one'; see "),
        (["--rank", "0", "--max-size-kb", "9"], "--rank names a point and limits choose one: give one or the other"),
        (
            ["--study", "absent"],
            "there is no study 'absent' in sqlite:///runs/absent/study.db; run search.run first, or name another --study",
        ),
        (["--study", "a/b"], "a study's name has letters, digits, "),
        (
            ["--runtime", "tensor"],
            "unknown runtime 'tensor', did you mean 'tensorrt'?; known: onnxruntime, onnxruntime_cuda, openvino, tensorrt, tensorrt_rtx",
        ),
        (["--min-accuracy", "97"], "--min-accuracy must be between 0 and 1, but got 97; for 97 % give 0.97"),
        (["--data-dir", "nowhere"], "an export scores the point on the search's own test images, but there is no folder nowhere; "),
        (["--out", "runs"], "runs"),
        (["--out", "runs/tiny/run.json/there"], "a bundle's folder must be writable, but "),
        (["--out", "x" * 300], "File name too long"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_a_line(argv: list[str], law: str, again: Path, capfd: Capture) -> None:
    assert law in refused(export(capfd, *argv))
    assert not Path("exported").exists()
    assert "test_accuracy" not in load().user_attrs


def test_nothing_run_yet_is_said(empty: Path, capfd: Capture) -> None:
    assert refused(export(capfd)) == "there is no run in runs/; run search.run first, or name a --study and its --storage"


def test_files_of_the_run_that_are_missing_or_not_whole_are_named(again: Path, capfd: Capture) -> None:
    shutil.move("runs/tiny/candidates", "elsewhere")
    assert "candidates/" in refused(export(capfd))
    shutil.move("elsewhere", "runs/tiny/candidates")
    for text, lacking in (("{}", "data, device, normalisation, seed, teacher, versions"), ("[]", "everything"), ("{", "everything")):
        Path("runs/tiny/run.json").write_text(text)
        assert f"an export needs runs/tiny/run.json, but it lacks {lacking}; " in refused(export(capfd))


def test_a_study_of_another_program_is_not_exported(again: Path, capfd: Capture) -> None:
    optuna.create_study(study_name="foreign", storage="sqlite:///runs/tiny/study.db").optimize(lambda trial: 1.0, n_trials=1)
    Path("runs/foreign").mkdir()
    message = refused(export(capfd, "--study", "foreign", "--storage", "sqlite:///runs/tiny/study.db"))
    assert "the front is empty" in message or "was not made by this program" in message


def test_the_newest_run_is_the_one_that_ran_last_whatever_was_exported_since(tmp_path: Path) -> None:
    for age, name in enumerate(("new", "old")):
        (tmp_path / name).mkdir()
        for file in ("run.json", "study.db"):
            (tmp_path / name / file).touch()
        os.utime(tmp_path / name / "run.json", (1000 - age, 1000 - age))
    assert newest_run(tmp_path) == "new"


@given(st.integers(1, 10_000).flatmap(lambda count: st.tuples(st.integers(0, count), st.just(count))))
def test_the_interval_holds_the_share_and_narrows_with_the_number(pair: tuple[int, int]) -> None:
    right, count = pair
    low, high = wilson(right, count)
    assert 0 <= low <= right / count + 1e-12
    assert right / count - 1e-12 <= high <= 1
    wide, narrow = wilson(right, count), wilson(4 * right, 4 * count)
    assert narrow[1] - narrow[0] < wide[1] - wide[0]


@pytest.mark.parametrize("count", [10, 50, 360, 5000])
def test_all_right_is_within_the_interval_of_all_right(count: int) -> None:
    assert wilson(count, count)[1] == interval(count, count)[1] == 1.0
    assert wilson(0, count)[0] == interval(0, count)[0] == 0.0
    assert optimism(1.0, {"interval": wilson(count, count)}) == ""
