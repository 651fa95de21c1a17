"""Which image files a folder holds: `train/<class>/*` with `test/<class>/*` (or `val/`), or class folders alone. Opens no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from core.data.images import IMAGE_SUFFIXES
from core.errors import UserError

LAYOUT = "train/<class>/* and test/<class>/*, or one folder per class"


class Entry(NamedTuple):
    """One image file: path relative to the root with forward slashes, bytes, time of change, number of its class."""

    path: str
    size: int
    mtime_ns: int
    label: int


@dataclass(frozen=True)
class Listing:
    """Image files of a folder, sorted by class and path. `test` and `search` are None where the folder has no such split."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[Entry, ...]
    test: tuple[Entry, ...] | None
    search: tuple[Entry, ...] | None = None

    def splits(self) -> dict[str, tuple[Entry, ...]]:
        """The splits that are there, by name."""
        every = {"train": self.train, "test": self.test, "search": self.search}
        return {name: entries for name, entries in every.items() if entries is not None}


def is_image_folder(root: Path) -> bool:
    """Whether `root` is meant as an image folder: it has a train split, images of its own, or folders with images."""
    try:
        return _has_train_split(root) or _holds_images(root) or any(_holds_images(root / name) for name in _folders(root))
    except OSError:
        # Something unreadable inside says nothing; `list_images` names it if the folder is read as one.
        return False


SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
"""What people call splits, in lower case."""


def list_images(root: Path, heldout: Sequence[str] = ("test", "val")) -> Listing:
    """All image files by extension; hidden ones are ignored. Of the folders `heldout` that are there the first is the test split, a
    second one the search split.

    Raises UserError for every layout that cannot be trained on.
    """
    if not root.is_dir():
        raise UserError(f"an image folder must exist, but {root} is {'a file' if root.exists() else 'missing'}; expected {LAYOUT}")
    try:
        return _list_splits(root, heldout) if _has_train_split(root) else _list_alone(root)
    except OSError as error:
        raise UserError(f"an image folder must be readable, but {error.filename or root} is not: {error.strerror or error}") from error


def list_unlabelled(root: Path) -> Listing:
    """Every image file below `root`, whatever its folders are called, as one class. Raises UserError when there is none."""
    if not root.is_dir():
        raise UserError(f"an image folder must exist, but {root} is {'a file' if root.exists() else 'missing'}; name a folder of images")
    try:
        entries = tuple(sorted(_walk(root, root, 0)))
    except OSError as error:
        raise UserError(f"an image folder must be readable, but {error.filename or root} is not: {error.strerror or error}") from error
    if not entries:
        raise UserError(f"an image folder must hold images, but {root} has none; add files ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return Listing(root, ("unlabelled",), entries, None)


def require_images(entries: Sequence[Entry], classes: Sequence[str], where: Path) -> None:
    """Raise UserError naming the classes without a single image."""
    held = {entry.label for entry in entries}
    empty = [name for label, name in enumerate(classes) if label not in held]
    if empty:
        raise UserError(
            f"each class must have images, but {where} has none for {_names(empty)}; remove the folder or add files"
            f" ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )


def _list_splits(root: Path, names: Sequence[str]) -> Listing:
    classes, heldout = _classes(root / "train"), [name for name in names if (root / name).is_dir()]
    for name in _folders(root):
        if name not in ("train", *names) and name.lower() in SPLITS and set(_folders(root / name)) == {*classes}:
            unread = " and ".join(names)
            raise UserError(f"splits beside train are called {unread}, but {root} holds {name!r} with the same classes; rename or move it")
    for name in heldout:
        _require_equal(classes, tuple(_folders(root / name)), root, name)
    test, search, *_ = (*(_entries(root, name, classes) for name in heldout), None, None)
    return Listing(root, classes, _entries(root, "train", classes), test, search)


def _list_alone(root: Path) -> Listing:
    if any(_folders(root / name) for name in ("test", "val")):
        raise UserError(f"an image folder with a test split must have a train split, but {root}/train is missing; expected {LAYOUT}")
    classes = _classes(root)
    if all(name.lower() in SPLITS and not _holds_images(root / name) for name in classes):
        raise UserError(f"splits are called train, test and val, but {root} holds {_names(classes)}; rename them, or they would be classes")
    return Listing(root, classes, _entries(root, "", classes), None)


def _classes(folder: Path) -> tuple[str, ...]:
    classes = tuple(_folders(folder))
    if not classes:
        state = "has images but no class folders" if _holds_images(folder) else "has no class folders"
        raise UserError(f"an image folder must hold {LAYOUT}, but {folder} {state}")
    if odd := [name for name in classes if name.encode("utf-8", "replace").decode() != name]:
        raise UserError(f"a class must have a name in UTF-8, but {folder} holds {odd[0]!r}; rename that folder")
    if len(classes) == 1:
        raise UserError(f"a classifier needs at least 2 classes, but {folder} has only {classes[0]!r}; expected {LAYOUT}")
    return classes


def _require_equal(train: tuple[str, ...], test: tuple[str, ...], root: Path, heldout: str) -> None:
    if train == test:
        return
    sides = (("train", sorted({*train} - {*test})), (heldout, sorted({*test} - {*train})))
    differences = "; ".join(f"only in {side}: {_names(names)}" for side, names in sides if names)
    raise UserError(f"train and {heldout} must have the same classes, but in {root} they differ ({differences}); rename or remove folders")


def _entries(root: Path, split: str, classes: Sequence[str]) -> tuple[Entry, ...]:
    entries = tuple(entry for label, name in enumerate(classes) for entry in sorted(_walk(root, root / split / name, label)))
    require_images(entries, classes, root / split)
    return entries


def _walk(root: Path, folder: Path, label: int) -> Iterator[Entry]:
    """Files below one class folder. Links to files are followed, links to folders inside it are not: they may form a circle."""
    for place, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in filter(_is_image_name, files):
            path = os.path.join(place, name)
            # A dangling link stays in the list under its own size, so that decoding names it.
            status = os.stat(path) if os.path.exists(path) else os.lstat(path)
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                yield Entry(os.path.relpath(path, root).replace(os.sep, "/"), status.st_size, status.st_mtime_ns, label)


def _raise(error: OSError) -> None:
    raise error


def _has_train_split(root: Path) -> bool:
    """`train` is a split, unless it holds images directly: then it is a class (of vehicles, say)."""
    train = root / "train"
    return train.is_dir() and (bool(_folders(train)) or not _holds_images(train))


def _folders(root: Path) -> list[str]:
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(_is_image_name(entry.name) and entry.is_file() for entry in entries)


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
