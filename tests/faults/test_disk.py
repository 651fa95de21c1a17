"""A disk that is full or may not be written: one line, a consistent study, and the same command goes on when it is mended."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path

import numpy as np
import pytest

from core.checkpoint import keep
from core.data.cache import cached_arrays
from core.engine_child import _answer as child_answer
from core.errors import DiskRefused
from core.files import TEMPORARY
from results.record import read_records
from search import doctor, report
from search.study import count_finished, count_running
from tests.faults.disk import SmallDisk
from tests.search.studies import DOT, _answer, command, export, load, refused, search
from tests.tiny_onnx import IMAGES, Classifier

Capture = pytest.CaptureFixture[str]
WRITERS = {
    "database": r"study\.db$",
    "teacher": r"/teachers/.*\.tmp",
    "teacher's engine": r"/teacher/\..*\.tmp",
    "latencies": r"/\.latency\.json\..*\.tmp",
    "account": r"/\.run\.json\..*\.tmp",
    "draft": r"/draft/.*\.tmp",
    "answers": r"/logits/.*\.tmp",
    "parent's checkpoint": r"/parents/.*\.part\..*\.tmp",
    "parent": r"/parents/.*\.safetensors\..*\.tmp",
    "epochs": r"epochs\.csv$",
    "checkpoint": r"/candidates/.*\.part\..*\.tmp",
    "weights": r"/candidates/.*weights\.pack\..*\.tmp",
    "model": r"/candidates/.*model\.onnx\..*\.tmp",
    "scored images": r"/images\.npy$",
    "table": r"/\.front\.csv\..*\.tmp",
    "plot": r"/\.front\.html\..*\.tmp",
}
"""What is written -> its file, in the order in which a run first comes to them."""
FEW = ("teacher", "checkpoint", "weights")
TRIALS = 3
COMMAND = command("--trials", str(TRIALS), settings=[*DOT, "teacher.train.epochs=1", "parent.train.epochs=1"])


def stumble(disk: SmallDisk, writer: str, capfd: Capture) -> None:
    """A run whose disk is full when it comes to `writer`: one line, and what was finished stays as it was."""
    before = finished()
    with disk.full_at(WRITERS[writer]) as met:
        answer = search(capfd, *COMMAND)
    assert met, f"{writer}: nothing was written to {WRITERS[writer]}"
    line = refused(answer)
    assert "must be" in line, line
    assert "writable" in line, line
    assert not list(disk.folder.rglob(TEMPORARY))
    assert {number: record for number, record in finished().items() if number in before} == before


def finished() -> dict[int, str]:
    """Trial -> record; {} before there is a study."""
    path = Path("runs/tiny/study.db")
    if not path.exists() or path.stat().st_size == 0:
        return {}
    return {record.number: record.model_dump_json() for record in read_records(load())}


def goes_on(capfd: Capture) -> None:
    """The same command ends with the number, and the doctor finds nothing that it cannot mend."""
    answer = search(capfd, *COMMAND)
    assert answer.code == 0, answer.err
    assert count_finished(load()) == TRIALS
    assert count_running(load()) == 0
    assert _answer(capfd, doctor.main, ["--study", "tiny", "--repair"]).code == 0


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_a_study_whose_disk_fills_up_says_so_and_goes_on_when_there_is_room(disk: SmallDisk, capfd: Capture) -> None:
    for writer in FEW:
        stumble(disk, writer, capfd)
    goes_on(capfd)
    repeated = [trial.user_attrs.get("requeued_from") for trial in load().trials]
    assert {0} < set(repeated), "a trial that a full disk ended is run again with its parameters"


@pytest.mark.faults
@pytest.mark.usefixtures("dot")
def test_every_writer_of_a_run_meets_a_full_disk_and_the_study_ends_with_its_number(disk: SmallDisk, capfd: Capture) -> None:
    for writer in WRITERS:
        stumble(disk, writer, capfd)
    goes_on(capfd)


def test_decoded_images_that_do_not_fit_are_told_with_their_size(disk: SmallDisk) -> None:
    disk.fill()
    with pytest.raises(DiskRefused, match=r"decoded images need 0\.1 MB in .*: .* must be writable, but: No space left"):
        cached_arrays(disk.folder / "images.npz", lambda: {"images": np.zeros(100_000, np.uint8)})
    assert [entry.name for entry in disk.folder.iterdir() if entry.suffix != ".lock"] == ["ballast"]


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(disk: SmallDisk) -> None:
    path = disk.folder / "distil.part"
    keep(path, 1, {}, "")
    whole = path.read_bytes()
    disk.fill()
    with pytest.raises(DiskRefused, match=r"distil.part must be writable, but: No space left on device"):
        keep(path, 2, {}, "")
    assert path.read_bytes() == whole


def test_logits_that_the_measuring_child_cannot_write_are_the_disks_fault_and_not_the_engines(disk: SmallDisk) -> None:
    model, images = Classifier().save(disk.folder / "model.onnx"), disk.folder / "images.npy"
    np.save(images, IMAGES[:4])
    disk.fill()
    request = {
        "op": "predict", "model": str(model), "runtime": "onnxruntime", "images": str(images), "out": str(disk.folder / "logits.npy"),
        "options": {"batch": 4, "threads": 1, "precision": "f32", "cache": None},
    }  # fmt: skip
    answer = child_answer(json.dumps(request))
    assert answer["error"] == "disk", answer
    assert "logits.npy must be writable" in answer["message"]


@pytest.mark.usefixtures("dot")
@pytest.mark.slow
def test_a_folder_of_runs_that_may_not_be_written_is_one_line_and_can_still_be_read(disk: SmallDisk, capfd: Capture) -> None:
    assert search(capfd, *COMMAND).code == 0
    before = finished()
    with disk.read_only() as folder, contextlib.chdir(folder):
        for answer in (
            search(capfd, *COMMAND, "--trials", "9"),
            search(capfd, *COMMAND, "--study", "another"),
            search(capfd, *COMMAND, "--fresh"),
            _answer(capfd, report.main, []),
            export(capfd, "--rank", "0"),
        ):
            assert re.search("must be (writable|able to write)", refused(answer))
        assert _answer(capfd, report.main, ["--out", str(disk.folder / "report")]).code == 0
        assert _answer(capfd, doctor.main, []) == (0, "tiny: nothing is wrong\n", "")
    assert finished() == before
    goes_on(capfd)
