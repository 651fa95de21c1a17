"""A study and its folder are checked, and what can be mended is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from search import doctor
from search.owner import OWNER_KEY, current_owner
from tests.search.studies import Answer, _answer, load, refused, states

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
    examine(capfd, "--repair")  # what a running trial held back
    assert examine(capfd).out == "tiny: nothing is wrong\n"
    left = {path.name for path in folder.iterdir()}
    assert not left & {"engines-abc", ".front.csv.1.tmp", "latency.json"}
    assert not (folder / "candidates" / "0123456789abcdef").exists()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "weights.pack").unlink(), "missing, so it cannot be exported: cannot be repaired here"),
        (lambda folder: (folder / "weights.pack").write_bytes(b"half"), "is damaged"),
        (lambda folder: (folder / "model.onnx").write_bytes(b"half a model"), "model.onnx is damaged"),
    ],
)
def test_files_that_an_export_would_miss_are_named(spoil, words: str, again: Path, capfd: Capture) -> None:
    spoil(next(Path("runs/tiny/candidates").glob("[!.]*")))
    answer = examine(capfd, "--repair")
    assert answer.code == 1
    assert words in answer.out


def test_a_study_that_is_not_there(empty: Path, capfd: Capture) -> None:
    assert "there is no run in runs/" in refused(examine(capfd))
