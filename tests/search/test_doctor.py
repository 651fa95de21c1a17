"""A study and its folder are checked, and what can be mended is."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from core.config import RuntimeConfig
from core.engines import EngineHost
from core.files import made_once
from results.record import RECORD_KEY, read_records
from results.refined import Refinement, write_refined
from search import doctor
from search.owner import OWNER_KEY, current_owner
from tests.search.studies import Answer, _answer, command, load, refused, search, states

Capture = pytest.CaptureFixture[str]


def examine(capfd: Capture, *argv: str) -> Answer:
    """`python -m search.doctor ARGV`, in this process."""
    return _answer(capfd, doctor.main, argv)


def test_a_finished_study_is_well(again: Path, capfd: Capture) -> None:
    answer = examine(capfd)
    assert (answer.code, answer.out, answer.err) == (0, "tiny: nothing is wrong\n", "")


def test_what_a_killed_run_leaves_is_named_and_then_mended(again: Path, capfd: Capture) -> None:
    folder, trial = Path("runs/tiny"), load().ask()
    trial.set_user_attr(OWNER_KEY, current_owner() | {"start": 0})
    trial.suggest_categorical("student", ["resnet8"])
    shutil.copytree(next((folder / "candidates").glob("[!.]*")), folder / "candidates" / "0123456789abcdef")
    (folder / "engines-abc").mkdir()
    (folder / ".front.csv.1.tmp").write_text("half")
    (folder / "latency.json").write_text("{")
    next((folder / "parents").glob("*.safetensors")).write_bytes(b"half")
    first = examine(capfd)
    assert first.code == 1
    assert "trial 2: its worker has died, and it is not queued again: can be repaired\n" in first.out
    mended = examine(capfd, "--repair")
    assert mended.code == 0, mended
    again_states = states(load())
    assert again_states[:3] == ["COMPLETE", "COMPLETE", "FAIL"]
    assert load().trials[-1].system_attrs["fixed_params"]["student"] == "resnet8"
    assert examine(capfd).out == "tiny: nothing is wrong\n"
    left = {path.name for path in folder.iterdir()}
    assert not left & {"engines-abc", ".front.csv.1.tmp", "latency.json"}
    assert (folder / "candidates" / "0123456789abcdef").exists(), "what is queued again goes on from its files"


def test_what_no_trial_will_ask_for_goes(again: Path, capfd: Capture) -> None:
    folder = Path("runs/tiny")
    (folder / "candidates" / "0123456789abcdef").mkdir()
    (folder / "parents" / "resnet8-1-0123.part").write_text("half")
    assert "of no finished trial: can be repaired" in examine(capfd).out
    assert examine(capfd, "--repair").code == 0
    assert not (folder / "candidates" / "0123456789abcdef").exists()
    assert not list(folder.rglob("*.part"))


def test_what_belongs_to_a_living_process_stays_also_before_its_first_trial(again: Path, capfd: Capture) -> None:
    cache = Path("runs/.cache/teachers")
    (Path("runs/tiny/candidates") / "0123456789abcdef").mkdir()
    (cache / ".dead.safetensors.0123456789ab.tmp").write_text("half")
    (cache / ".mine.safetensors.0123456789ab.tmp").write_text("half")
    with EngineHost(RuntimeConfig(name="onnxruntime"), Path("runs/tiny")) as host, made_once(cache / "mine.safetensors"):
        answer = examine(capfd, "--repair")
        assert answer.code == 0
        assert host.scratch.exists()
        assert (Path("runs/tiny/candidates") / "0123456789abcdef").exists()
        assert refused(search(capfd, *command("--trials", "1", "--fresh"))).startswith("--fresh needs a study at rest")
    assert [path.name for path in cache.glob("*.tmp")] == [".mine.safetensors.0123456789ab.tmp"]
    assert examine(capfd, "--repair").code == 0
    assert not list(cache.glob("*.tmp"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "weights.pack").unlink(), "missing, so it cannot be exported: cannot be repaired here"),
        (lambda folder: (folder / "weights.pack").write_bytes(b"half"), "weights.pack is damaged"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"half a model"), "model.onnx is damaged"),
        (lambda folder: flip_a_bit(folder / "weights.pack"), "weights.pack is damaged (its digest is "),
        (lambda folder: flip_a_bit(folder / "model.onnx"), "model.onnx is damaged (its digest is "),
    ],
)
def test_files_that_an_export_would_miss_are_named(spoil, words: str, again: Path, capfd: Capture) -> None:
    spoil(next(Path("runs/tiny/candidates").glob("[!.]*")))
    answer = examine(capfd, "--repair")
    assert answer.code == 1
    assert words in answer.out


def test_studies_of_a_version_that_kept_no_digests_are_checked_by_what_the_files_say(again: Path, capfd: Capture) -> None:
    for trial in (trial for trial in load().trials if RECORD_KEY in trial.user_attrs):
        record = json.loads(trial.user_attrs[RECORD_KEY])
        assert record.pop("files").keys() == {"weights.pack", "model.onnx"}
        without = json.dumps(record)
        with sqlite3.connect("runs/tiny/study.db") as database:
            database.execute(
                "UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = ? AND key = ?",
                (json.dumps(without), trial._trial_id, RECORD_KEY),
            )
    assert examine(capfd).code == 0
    path = next(Path("runs/tiny/candidates").glob("*/weights.pack"))
    path.write_bytes(b"half")
    answer = examine(capfd)
    assert "weights.pack is damaged" in answer.out
    assert "weights.pack has 4 bytes, but was measured with" in answer.out


def test_refined_points_and_the_teachers_model_are_looked_at(again: Path, capfd: Capture) -> None:
    run = Path("runs/tiny")
    record = next(record for record in read_records(load()) if record.measurement is not None)
    assert record.path is not None
    assert record.measurement is not None
    places = [Path(shutil.copytree(run / record.path, run / "refined" / f"seed{seed}")) for seed in range(2)]
    for place in places:
        (place / "measurement.json").write_text(record.measurement.model_dump_json())
    moved = record.model_copy(update={"path": "refined/seed0"})
    teacher = json.loads((run / "run.json").read_text())["teacher"]
    whole = {"command": (), "runtime": "openvino", "device": {}, "fingerprint": "f", "epochs": 1.0, "teacher": teacher, "finalists": ()}
    write_refined(run, Refinement.model_validate({**whole, "records": (moved,)}))
    assert examine(capfd).out == "tiny: nothing is wrong\n"
    flip_a_bit(places[0] / "model.onnx")
    (places[1] / "measurement.json").write_text("{")
    (run / "teacher" / "model.onnx").write_bytes(b"half a model")
    answer = examine(capfd, "--repair")
    assert answer.code == 1
    assert f"refined trial {record.number}: runs/tiny/refined/seed0/model.onnx is damaged (its digest is " in answer.out
    assert "runs/tiny/refined/seed1/measurement.json: damaged, or its model is missing: repaired" in answer.out
    assert "runs/tiny/teacher/model.onnx: damaged: repaired" in answer.out
    assert "runs/tiny/teacher/model.onnx: missing; the search's own command writes it again: cannot be" in examine(capfd).out


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_database_that_is_none_is_one_line(content: bytes, again: Path, capfd: Capture) -> None:
    Path("runs/tiny/study.db").write_bytes(content)
    message = refused(examine(capfd))
    assert "study.db is not (file is not a database); restore it" in message or "there is no study 'tiny'" in message


def test_kept_networks_and_answers_that_are_damaged_are_removed(again: Path, capfd: Capture) -> None:
    damaged = [next(Path("runs/.cache/teachers").glob("*.safetensors")), next(Path("runs/.cache/logits").rglob("*.npy"))]
    for path in damaged:
        path.write_bytes(path.read_bytes()[:50])
    said = examine(capfd, "--repair").out
    assert said.count(": damaged: repaired\n") == said.count(": damaged, or of an earlier version: repaired\n") == 1
    assert not any(path.exists() for path in damaged)


def test_a_study_that_is_not_there(empty: Path, capfd: Capture) -> None:
    assert "there is no run in runs/" in refused(examine(capfd))
