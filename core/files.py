"""Files that are whole or absent, and made by one process at a time."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from core.errors import UserError

TEMPORARY = ".*.tmp"
"""Glob of what a writer that was killed leaves behind."""


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write (text as UTF-8) through a temporary name in the same folder, flush to disk, rename. Makes the folder.

    Raises UserError when the disk or the folder refuses; what was at `path` is then still there.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")  # hosts that share a folder have equal process ids
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"{path} must be writable, but: {error.strerror or error}; free space or mend its folder") from error
    finally:
        with suppress(OSError):  # a full disk keeps nothing
            partial.unlink(missing_ok=True)
    return path


@contextmanager
def made_once(path: Path, on_wait: Callable[[str], None] = lambda text: None) -> Iterator[None]:
    """Within it this process alone makes `path`; look again whether it is there. `on_wait` gets a line if another one is at it.

    The lock belongs to the operating system: it is free at once when its holder dies, and the next one makes the file.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"))
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
