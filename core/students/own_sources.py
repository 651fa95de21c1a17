"""The files of a user's network: the one that is named, and the modules beside it that it imports."""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import UserError

OURS = frozenset({"core", "objectives", "results", "search"})
"""A network's file may lie in a checkout of this project: its packages are no part of the network."""
CHECKOUT = Path(__file__).resolve().parents[2]

_brought: dict[str, tuple[Path, str]] = {}
"""Modules that users' files have brought into this process: place and digest by name."""


def helpers(path: Path) -> dict[str, Path]:
    """Name -> file of the modules in the folder of `path` that it imports, itself or through another one, by name."""
    found: dict[str, Path] = {}
    waiting = [(path, "")]
    while waiting:
        file, package = waiting.pop()
        for name, there in _beside(path.parent, _imported(file, package)):
            if name not in found and there != path:
                found[name] = there
                waiting.append((there, name if there.stem == "__init__" else name.rpartition(".")[0]))
    return dict(sorted(found.items()))


def source_digest(path: Path) -> str:
    """64 hex digits over what `path` and its helpers say; where they lie does not matter."""
    digest = hashlib.sha256(path.read_bytes())
    for name, file in helpers(path).items():
        digest.update(f"\0{name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def importable(path: Path) -> Iterator[None]:
    """Modules beside the user's file can be imported inside, as `python file.py` would allow: these, in their present state.

    One of the same name that another user's file has brought, or that was changed since, gives way. UserError where our
    packages hide one.
    """
    _check_names(path)
    own = {name: (file, hashlib.sha256(file.read_bytes()).hexdigest()) for name, file in helpers(path).items()}
    changed = {name.partition(".")[0] for name, state in own.items() if _brought.get(name, state) != state}
    for name in [name for name in _brought if name.partition(".")[0] in changed]:
        sys.modules.pop(name, None)
        del _brought[name]
    sys.path.insert(0, str(path.parent))
    try:
        yield
    finally:
        sys.path.remove(str(path.parent))
        loaded = {name: getattr(sys.modules.get(name), "__file__", None) for name in own}
        _brought.update({name: state for name, state in own.items() if loaded[name] == str(state[0])})


def _check_names(path: Path) -> None:
    """Raises UserError where `path`, or a module that it imports, imports one beside it that our package of that name hides."""
    for file in (path, *helpers(path).values()):
        for name in _imported(file, ""):
            theirs = _file_of(path.parent, name)
            if name.partition(".")[0] in OURS and theirs is not None and _file_of(CHECKOUT, name) is None:
                law = f"modules beside a network must not lie in folders called {', '.join(sorted(OURS))}, as this program's packages are"
                raise UserError(f"{law}, but {file} imports {theirs}; rename its folder")


def _file_of(folder: Path, name: str) -> Path | None:
    """The source of the module `name` in `folder`."""
    place = folder.joinpath(*name.split("."))
    return next((file for file in (place / "__init__.py", place.with_name(f"{place.name}.py")) if file.is_file()), None)


def _imported(file: Path, package: str) -> Iterator[str]:
    """Full names of what a file of `package` may import; of `from a import b` both a and a.b. Nothing where it is no Python."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return  # whoever runs it will say so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            yield from filter(None, [base, *(f"{base}.{each.name}".strip(".") for each in node.names)])


def _beside(folder: Path, names: Iterator[str]) -> Iterator[tuple[str, Path]]:
    """Those of the modules `names`, and of the packages around them, that have a file in `folder`."""
    for name in names:
        parts = name.split(".")
        if parts[0] in OURS:
            continue
        for whole in (".".join(parts[:count]) for count in range(1, len(parts) + 1)):
            if (file := _file_of(folder, whole)) is not None:
                yield whole, file
