"""A file is the old one or the whole new one."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from core.errors import UserError
from core.files import appending, made_once, write_atomically


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


HOLDER = """
import sys, time
from pathlib import Path
from core.files import made_once
with made_once(Path(sys.argv[1])):
    print("making", flush=True)
    time.sleep(60)
"""


def test_what_another_process_makes_is_waited_for_and_a_maker_that_dies_is_replaced(tmp_path: Path) -> None:
    path, said = tmp_path / "teacher", []
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as maker:
        assert maker.stdout is not None
        assert maker.stdout.readline() == b"making\n"
        threading.Timer(0.3, maker.kill).start()
        with made_once(path, said.append):
            assert maker.wait(10) == -signal.SIGKILL
    assert said == [f"another process is making {path}; waiting for it"]
    assert not path.exists()


def test_a_folder_that_refuses_the_lock_is_left_to_the_writer(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with made_once(tmp_path / "file" / "teacher"):
        pass


def test_whoever_begins_a_file_of_lines_it_has_one_heading(tmp_path: Path) -> None:
    """Also where another one has opened it, and written nothing yet."""
    path = tmp_path / "lines.csv"
    path.touch()

    def append(number: int) -> None:
        for _ in range(5):
            with appending(path, "number") as file:
                file.write(f"{number}\n")

    threads = [threading.Thread(target=append, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    heading, *lines = path.read_text().splitlines()
    assert heading == "number"
    assert sorted(lines) == sorted(str(number) for number in range(4) for _ in range(5))
