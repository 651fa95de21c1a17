"""A run's folder is one study's, whatever other databases call theirs; and its files are those that were measured."""

from __future__ import annotations

from pathlib import Path

import onnx
import optuna
import pytest

from core.config import RuntimeConfig
from core.engines import EngineHost
from core.errors import UserError
from search import doctor
from search.identity import FILE, check_folder
from search.study import delete_study, open_study
from tests.search.studies import _answer, command, export, refused, search

Capture = pytest.CaptureFixture[str]
ELSEWHERE = "sqlite:///elsewhere.db"
LAW = "a run's folder holds the files of one study, but runs/tiny has those of one in sqlite:///runs/tiny/study.db, "


def files() -> set[Path]:
    return {path for path in Path("runs/tiny").rglob("*") if path.is_file()}


def test_no_run_writes_or_deletes_files_of_a_study_in_another_database(again: Path, capfd: Capture) -> None:
    before = files()
    for more in ([], ["--fresh"]):
        message = refused(search(capfd, *command("--trials", "1", "--storage", ELSEWHERE, *more)))
        assert message.startswith(f"{LAW}and this is {ELSEWHERE}; give that --storage")
    assert files() == before
    optuna.create_study(study_name="tiny", storage=ELSEWHERE)
    assert refused(_answer(capfd, doctor.main, ["--study", "tiny", "--storage", ELSEWHERE, "--repair"])).startswith(LAW)
    assert refused(export(capfd, "--study", "tiny", "--storage", ELSEWHERE)).startswith(LAW)
    assert files() == before


def test_a_study_that_moved_to_another_database_keeps_its_folder_and_one_that_was_deleted_leaves_it(again: Path) -> None:
    folder, url = Path("runs/tiny"), "sqlite:///runs/tiny/study.db"
    optuna.copy_study(from_study_name="tiny", from_storage=url, to_storage=ELSEWHERE)
    check_folder(optuna.load_study(study_name="tiny", storage=ELSEWHERE), folder, ELSEWHERE)
    with pytest.raises(UserError, match=r"move the folder away$"):
        check_folder(None, folder, "sqlite:///another.db")
    check_folder(None, folder, url)
    before = (folder / FILE).read_text()
    optuna.delete_study(study_name="tiny", storage=url)
    open_study(url, "tiny", "digest", {}, folder)
    assert (folder / FILE).read_text() != before


def test_a_studys_identity_is_drawn_when_it_is_first_met(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    first = open_study(url, "one", "digest", {}, tmp_path).user_attrs["identity"]
    assert open_study(url, "one", "digest", {}, tmp_path).user_attrs["identity"] == first
    assert first in (tmp_path / FILE).read_text()


def test_nothing_is_deleted_where_somebody_works_though_the_study_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "candidates").mkdir()
    with EngineHost(RuntimeConfig(name="onnxruntime"), tmp_path), pytest.raises(UserError, match="--fresh needs a study at rest"):
        delete_study(f"sqlite:///{tmp_path}/study.db", "one", tmp_path)
    assert (tmp_path / "candidates").exists()


def test_files_that_were_not_measured_are_not_exported_though_their_sizes_agree(again: Path, capfd: Capture) -> None:
    for path in Path("runs/tiny/candidates").glob("*/model.onnx"):
        model = onnx.load(path)
        model.doc_string = "of another study"
        onnx.save(model, path)
    assert "model.onnx must be the file that was measured, with the digest " in refused(export(capfd, "--rank", "0"))
