"""One finished study, made once; tests work on copies of its folder."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path

import pytest

from core.students import STUDENTS
from search.run import main
from tests.search.studies import Dot, command


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/tiny: two trials of a real search."""
    folder, before = tmp_path_factory.mktemp("finished"), Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(command("--trials", "2")) == 0
    finally:
        os.chdir(before)
    (folder / "stdout.txt").write_text(out.getvalue())
    return folder


@pytest.fixture
def again(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: a copy of the finished study."""
    folder = tmp_path / "again"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def _short_dry_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """They measure fewer candidates than there is time for in half a minute."""
    monkeypatch.setattr("search.foresee.DRAWS_S", 1.0)


@pytest.fixture
def dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student `dot` is registered."""
    monkeypatch.setitem(STUDENTS, "dot", Dot)
