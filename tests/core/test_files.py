"""A file is the old one or the whole new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import UserError
from core.files import write_atomically


def test_text_and_bytes_are_written_and_folders_made(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "a" / "b.txt", "grün")
    assert path.read_text(encoding="utf-8") == "grün"
    assert write_atomically(path, b"\x00").read_bytes() == b"\x00"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_a_place_that_refuses_is_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match=r"must be writable, but: .*; free space or mend its folder"):
        write_atomically(tmp_path / "file" / "below", "new")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="must be writable"):
        write_atomically(tmp_path / "folder", "new")
    assert {entry.name for entry in tmp_path.iterdir()} == {"file", "folder"}
    assert (tmp_path / "file").read_text() == "old"
