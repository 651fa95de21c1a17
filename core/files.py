"""Files that are whole or absent, and made by one process at a time."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from filelock import FileLock, Timeout

from core.errors import DiskRefused

TEMPORARY = ".*.tmp"
"""Glob of what a writer that was killed leaves behind."""


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write (text as UTF-8) as `whole_file` does."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write to, which is at `path` when the block has ended: a temporary name in the same folder, fsync, rename.

    Makes the folder. Raises DiskRefused when the disk or the folder refuses; what was at `path` is then still there.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # hosts that share a folder have equal process ids
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with suppress(OSError):  # a full disk keeps nothing
            partial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it `path` is written: DiskRefused where the disk or the folder refuses."""
    try:
        yield
    except OSError as error:  # numpy's have no number, only words
        raise DiskRefused(f"{path} must be writable, but: {error.strerror or error}; free space or mend its folder") from error


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; a missing or damaged file is empty: for what can be found out again."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def write_json(path: Path, known: dict[str, Any]) -> None:
    """Whole or not at all. Raises DiskRefused."""
    write_atomically(path, json.dumps(known, indent=1, sort_keys=True))


@contextmanager
def made_once(path: Path, on_wait: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Within it this process alone makes `path`; look again whether it is there. `on_wait` gets a line if another one is at it.

    The lock belongs to the operating system: it is free at once when its holder dies, and the next one makes the file.
    """
    lock = FileLock(lock_of(path))
    # a folder that refuses the lock refuses the file too, and its writer says so in its own words
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait(f"another process is making {path}; waiting for it")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def appending(path: Path, heading: str) -> Iterator[TextIO]:
    """The file (UTF-8, no newlines changed) open to add whole lines, by one process at a time; `heading` is its first line."""
    with FileLock(lock_of(path)), path.open("a", newline="", encoding="utf-8") as file:
        if file.tell() == 0:
            file.write(heading + "\n")
        yield file


def lock_of(path: Path) -> Path:
    """The file that the maker of `path` holds."""
    return path.with_name(f".{path.name}.lock")


def is_held(lock: Path) -> bool:
    """Whether a living process holds the lock file `lock`; also where that cannot be told, since the folder may not be written."""
    if not lock.exists():
        return False
    probe = FileLock(lock)
    try:
        probe.acquire(timeout=0)
    except OSError:  # of which Timeout is one
        return True
    probe.release()
    return False


def target_of(partial: Path) -> Path:
    """The file that `whole_file` was to write when it left `partial`."""
    return partial.with_name(partial.name[1:].rpartition(".tmp")[0].rpartition(".")[0])
