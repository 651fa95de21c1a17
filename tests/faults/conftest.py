"""What the studies of these tests are made of, and a disk that may be filled."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.students import STUDENTS
from tests.faults.disk import SmallDisk
from tests.search.studies import Dot


@pytest.fixture
def dot(monkeypatch: pytest.MonkeyPatch) -> None:
    """The student `dot` is registered."""
    monkeypatch.setitem(STUDENTS, "dot", Dot)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """The working directory: a file system of its own. Skips where this user may mount none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    small = SmallDisk(folder)
    try:
        small.mount()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this user may not mount a tmpfs ({error})")
    try:
        monkeypatch.chdir(folder)
        yield small
    finally:
        monkeypatch.undo()
        small.unmount()
