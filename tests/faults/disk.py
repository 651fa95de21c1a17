"""A small disk that is full, or read-only, at the moment when a certain file is written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MB = 240
"""More than a run wants to find free before it begins (search/preflight.py)."""
BALLAST = "ballast"


@dataclass
class SmallDisk:
    """A tmpfs at `folder`."""

    folder: Path

    def mount(self) -> None:
        """CalledProcessError or OSError where that is not allowed."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={MB}m", "tmpfs", str(self.folder)], check=True, capture_output=True)

    @contextmanager
    def read_only(self) -> Iterator[Path]:
        """Another folder with the same files, that not even root may write to."""
        twin = self.folder.with_name("read-only")
        twin.mkdir()
        subprocess.run(["mount", "--bind", str(self.folder), str(twin)], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", str(twin)], check=True)
            yield twin
        finally:
            subprocess.run(["umount", "--lazy", str(twin)], check=True)

    def unmount(self) -> None:
        """Also while somebody still looks at it."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def fill(self) -> None:
        """Not a byte is left."""
        with (self.folder / BALLAST).open("wb") as file:
            left = os.statvfs(self.folder)
            os.posix_fallocate(file.fileno(), 0, left.f_bavail * left.f_frsize)

    def free(self) -> None:
        """As it was."""
        (self.folder / BALLAST).unlink(missing_ok=True)

    @contextmanager
    def full_at(self, pattern: str) -> Iterator[list[str]]:
        """Full from the moment on when this process opens a file that `pattern` matches to write to it; yields that file, once it is."""
        stumble = _Stumble(self, re.compile(pattern))
        _WATCHED.append(stumble)
        if not _HOOKED:  # a hook is for ever
            sys.addaudithook(_watch)
            _HOOKED.append(True)
        try:
            yield stumble.met
        finally:
            _WATCHED.remove(stumble)
            self.free()


@dataclass
class _Stumble:
    disk: SmallDisk
    pattern: re.Pattern[str]
    met: list[str] = field(default_factory=list)


_WATCHED: list[_Stumble] = []
_HOOKED: list[bool] = []
WRITES = os.O_WRONLY | os.O_RDWR


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: `open` has path, mode and flags; `sqlite3.connect` a path."""
    if not _WATCHED or event not in ("open", "sqlite3.connect") or (event == "open" and not arguments[2] & WRITES):
        return
    for stumble in _WATCHED:
        if not stumble.met and stumble.pattern.search(str(arguments[0])) and BALLAST not in str(arguments[0]):
            stumble.met.append(str(arguments[0]))
            stumble.disk.fill()
