"""Files that are whole or absent."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from core.errors import UserError


def write_atomically(path: Path, content: bytes | str) -> Path:
    """Write (text as UTF-8) through a temporary name in the same folder, flush to disk, rename. Makes the folder.

    Raises UserError when the disk or the folder refuses; what was at `path` is then still there.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
