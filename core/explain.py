"""pydantic's list of errors as one line: the law, the value, the place."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from core.errors import one_line
from core.tables import nearest

UNKNOWN_KEY = "extra_forbidden"

_LAWS: dict[str, Callable[[dict[str, Any]], str]] = {
    "literal_error": lambda ctx: "must be one of " + ctx["expected"].replace(" or ", ", "),
    "greater_than": lambda ctx: f"must be greater than {ctx['gt']:g}",
    "greater_than_equal": lambda ctx: f"must be at least {ctx['ge']:g}",
    "less_than": lambda ctx: f"must be less than {ctx['lt']:g}",
    "less_than_equal": lambda ctx: f"must be at most {ctx['le']:g}",
    "int_type": lambda _: "must be a whole number",
    "int_from_float": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number",
    "bool_type": lambda _: "must be true or false",
    "string_type": lambda _: "must be text",
    "path_type": lambda _: "must be a path",
    "tuple_type": lambda _: "must be a list",
    "model_type": lambda _: "must be a section of 'key: value' lines",
    "too_short": lambda ctx: f"must have at least {ctx['min_length']} entries",
    "union_tag_invalid": lambda _: "must be a value or a list of values",
}


def explain(model: type[BaseModel], error: ValidationError, where: str) -> str:
    """The first error of validating data as `model`, and how many more there are; `where` names the file."""
    errors = error.errors(include_url=False)
    # A misspelt key often causes a missing one too: name the misspelling.
    first = min(errors, key=lambda each: each["type"] != UNKNOWN_KEY)
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return _explain_one(model, first, where) + more


def _explain_one(model: type[BaseModel], error: ErrorDetails, where: str) -> str:
    kind, ctx, loc = error["type"], error.get("ctx", {}), _keys(error)
    leaf = next((part for part in reversed(loc) if isinstance(part, str)), "file")
    place = f"({where}, {_dotted(loc)})" if loc else f"({where})"
    if kind == UNKNOWN_KEY:
        known = sorted(_known_keys(model, loc))
        section = f" at {_dotted(loc[:-1])}" if loc[:-1] else ""
        return f"unknown key {leaf!r} in {where}{section}{nearest(leaf, known) or ';'} known: {', '.join(known)}"
    if kind == "missing":
        return f"`{leaf}` must be given {place}"
    if kind == "value_error":
        law = f"{one_line(ctx['error'])} {place}"
        return f"`{leaf}` {law}" if loc else law  # a law of the whole names its keys
    law = _LAWS[kind](ctx) if kind in _LAWS else f"is not valid: {error['msg']}"
    return f"`{leaf}` {law}, but got {show(error['input'])} {place}"


def _keys(error: ErrorDetails) -> list[str | int]:
    # Names in <> are branches of a union (search/space.py); only as the last part of an unknown key are they the user's.
    last = len(error["loc"]) - 1 if error["type"] == UNKNOWN_KEY else None
    return [part for i, part in enumerate(error["loc"]) if i == last or not (isinstance(part, str) and part.startswith("<"))]


def _known_keys(model: type[BaseModel], loc: Sequence[str | int]) -> set[str]:
    models = [model]
    for part in loc[:-1]:
        if isinstance(part, str):
            fields = [owner.model_fields[part] for owner in models if part in owner.model_fields]
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    return {key for owner in models for key in owner.model_fields}


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models_in(inner)


def _dotted(loc: Sequence[str | int]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")


def show(value: Any) -> str:
    """A value as the user wrote it, shortened to one line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
