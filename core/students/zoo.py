"""Networks of other libraries by name: `torchvision:<name>`, `timm:<name>`. Importing this module imports neither them nor torch."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli import run_main
from core.errors import UserError
from core.students import STUDENTS
from core.tables import lookup, nearest

if TYPE_CHECKING:
    from torch import nn

    from core.students.zoo_net import LibraryNetwork

REGISTERED = re.compile(r"^@register_model\b.*?^def (\w+)\(", re.MULTILINE | re.DOTALL)
"""How both libraries mark a function that builds a network; other decorators may stand between."""


def torchvision(name: str, *, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0) -> LibraryNetwork:
    """A classifier of torchvision; see core/students/zoo_torchvision.py."""
    from core.students.zoo_torchvision import build

    return build(name, classes=classes, channels=channels, image_size=image_size, width=width)


def timm(name: str, *, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0) -> LibraryNetwork:
    """A classifier of timm; see core/students/zoo_timm.py."""
    from core.students.zoo_timm import build

    return build(name, classes=classes, channels=channels, image_size=image_size, width=width)


ZOOS: dict[str, Callable[..., LibraryNetwork]] = {
    "torchvision": torchvision,
    "timm": timm,
}
"""By prefix, which is also the package's name."""


def in_zoo(name: str) -> bool:
    """Whether `name` is that of another library's network (or is meant to be one)."""
    return ":" in name and name not in STUDENTS


def find_student(name: str) -> Callable[..., nn.Module]:
    """The builder of a student or teacher: an entry of STUDENTS, or a library's network. Raises UserError for an unknown name."""
    if not in_zoo(name):
        return lookup(STUDENTS, "student", name)
    check_zoo_name(name)
    prefix, _, inner = name.partition(":")
    return partial(ZOOS[prefix], inner)


def check_zoo_name(name: str, where: str = "") -> None:
    """UserError unless `name` is a network of an installed library; `where` is for the message. Takes milliseconds."""
    place = f" ({where})" if where else ""
    prefix, _, inner = name.partition(":")
    if prefix not in ZOOS:
        kinds = " or ".join(f"{zoo}:<name>" for zoo in ZOOS)
        raise UserError(f"a library's network must be named {kinds}, but got {name!r}{nearest(prefix, ZOOS)}{place}")
    if find_spec(prefix) is None:
        raise UserError(f"{name} needs the package {prefix}, but it is not installed; run: python -m pip install {prefix}{place}")
    # timm names published weights after a dot; which there are, only timm itself knows
    known, model = zoo_names(prefix), inner.partition(".")[0]
    if model not in known:
        near = nearest(model, known).replace("'", f"'{prefix}:", 1)
        count = f"{prefix} has {len(known)} networks, listed by python -m core.students.zoo {prefix}"
        raise UserError(f"unknown student {name!r}{near or ';'} {count}{place}")


@lru_cache
def zoo_names(library: str) -> tuple[str, ...]:
    """Every classifier that the installed `library` registers, sorted. Read from its source: importing it takes seconds."""
    spec = find_spec(library)
    assert spec is not None, library
    folders = spec.submodule_search_locations or []
    files = [path for folder in folders for path in (Path(folder) / "models").glob("*.py")]
    return tuple(sorted({name for path in files for name in REGISTERED.findall(path.read_text(encoding="utf-8"))}))


def main(argv: list[str]) -> int:
    """Print the names of the libraries given, one a line."""
    for library in argv or list(ZOOS):
        lookup(ZOOS, "library", library)
        check_zoo_name(f"{library}:resnet18")  # installed?
        print("\n".join(f"{library}:{name}" for name in zoo_names(library)))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
