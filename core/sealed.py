"""Arrays on disk that say whose they are: .npy files with a seal behind the array, which numpy reads past.

The seal is the SHA-256 of the folder's name, the file's name and every byte before it. So a copy from elsewhere, pages that a disk lost
and flipped bits are all seen, and a file is still whole or absent: there is no second one that could miss or be late.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from core.files import write_atomically

SEAL_BYTES = 32
HEADER_BYTES = 4096
"""At most, of numpy's header."""


def write_array(path: Path, array: np.ndarray) -> None:
    """Write `array` as `whole_file` does. The names of file and folder are what it belongs to."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    file.write(_seal(path, file.getbuffer()))
    write_atomically(path, file.getvalue())


def read_array(path: Path) -> np.ndarray | None:
    """The array, mapped copy-on-write, so that processes share its pages; None where there is none, or not the one written to `path`."""
    try:
        stored = np.memmap(path, np.uint8, "c")
    except (OSError, ValueError):  # absent, empty
        return None
    content = stored[:-SEAL_BYTES]
    if stored[-SEAL_BYTES:].tobytes() != _seal(path, content.data):
        return None
    header = io.BytesIO(content[:HEADER_BYTES].tobytes())
    assert np.lib.format.read_magic(header) == (1, 0), path
    shape, _, dtype = np.lib.format.read_array_header_1_0(header)
    return content[header.tell() :].view(dtype).reshape(shape)


def _seal(path: Path, content: memoryview) -> bytes:
    digest = hashlib.sha256(f"{path.parent.name}/{path.name}\n".encode())
    digest.update(content)
    return digest.digest()
