"""Whole files or none: what a reader opens is never half written."""

from __future__ import annotations

import os
from pathlib import Path

from core.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) under a temporary name, then move it to `path`; UserError when the disk or the folder refuses."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} must be writable, but: {error.strerror or error}; free space or mend its folder") from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself is what refused; the first error says more
        return
