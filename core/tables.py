"""Extension tables: dict literals of functions, read by `lookup`, extended by `register`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from core.errors import UserError

T = TypeVar("T")


def lookup(table: dict[str, T], kind: str, name: str) -> T:
    """The entry `name` of `table`; an unknown name raises UserError with the known ones. `kind` is for the message."""
    if name not in table:
        raise UserError(f"unknown {kind} {name!r}{nearest(name, table)}; known: {', '.join(sorted(table))}")
    return table[name]


def register(table: dict[str, Callable[..., Any]], name: str, fn: Callable[..., Any]) -> None:
    """Add an entry from outside (`--plugin`). A taken name raises UserError."""
    if name in table:
        raise UserError(f"the name {name!r} is taken; register yours under another name")
    table[name] = fn


def nearest(name: str, known: Iterable[str]) -> str:
    """', did you mean ...?' when a known name is close, else ''."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f", did you mean {close[0]!r}?" if close else ""
