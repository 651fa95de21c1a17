"""Arrays kept on disk once under a key of their sources; what is damaged is built again."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DiskRefused
from core.files import made_once, whole_file

Arrays = dict[str, np.ndarray]

# What numpy and zipfile raise on truncated or altered files; the CRC of the archive catches the rest.
_DAMAGE = (OSError, ValueError, SyntaxError, KeyError, EOFError, MemoryError, RuntimeError, struct.error, zlib.error, zipfile.BadZipFile)


def cached_arrays(path: Path, build: Callable[[], Arrays]) -> Arrays:
    """The arrays in the .npz at `path`, else those of `build`, which are then written there, whole or not at all.

    Arrays of objects are never read (no pickle). Raises DiskRefused when they cannot be written.
    """
    arrays = _read(path)
    if arrays is None:
        with made_once(path):
            arrays = _read(path)
            if arrays is None:
                arrays = build()
                _write(path, arrays)
    return arrays


def _read(path: Path) -> Arrays | None:
    """None where the file is missing or damaged."""
    try:
        # numpy leaves a file that it opened itself open when it fails.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except _DAMAGE:
        return None


def _write(path: Path, arrays: dict[str, Any]) -> None:
    try:
        with whole_file(path) as file:
            np.savez(file, **arrays)
    except DiskRefused as error:
        megabytes = sum(array.nbytes for array in arrays.values()) / 1e6
        raise DiskRefused(f"decoded images need {megabytes:.1f} MB in {path.parent}: {error}") from error
