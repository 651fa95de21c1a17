"""CUB-200-2011 in its own layout, with its own test split: a folder, or the archive as it is published.

    images.txt              <image> <class folder>/<file>, below images/
    image_class_labels.txt  <image> <class>
    train_test_split.txt    <image> <1: training, 0: test>
    classes.txt             <class> <name>

References: C. Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", CNS-TR-2011-001; https://www.vision.caltech.edu/datasets/cub_200_2011/
"""

from __future__ import annotations

import hashlib
import os
import tarfile
import tempfile
import zlib
from pathlib import Path

from core.config import DataConfig
from core.data.folder import load_listing
from core.data.listing import Entry, Listing, require_images
from core.data.types import RawData
from core.errors import UserError
from core.files import made_once

IMAGE_SIZE = 224
FOLDER = "CUB_200_2011"
TABLES = ("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt")
LAYOUT = f"{', '.join(TABLES)} and images/"


def load_cub200(config: DataConfig, cache_dir: Path) -> RawData:
    """All images with the published split, at 224 pixels unless `config.image_size` says otherwise.

    `config.dir` is the folder, one that holds it, or the .tgz, which is unpacked into `cache_dir` once. Raises UserError for a file of
    the layout that is missing or contradicts another one.
    """
    if config.dir is None:
        raise UserError("the data set 'cub200' needs its folder or archive, but none is named; give --data-dir CUB_200_2011.tgz")
    root = _root(_unpacked(config.dir, cache_dir) if config.dir.is_file() else config.dir)
    shaped = config.model_copy(update={"image_size": config.image_size or IMAGE_SIZE, "channels": config.channels or 3})
    return load_listing(list_cub200(root), shaped, cache_dir)


def list_cub200(root: Path) -> Listing:
    """The images of the published split. Raises UserError naming the table that is wrong."""
    images, labels, training, classes = (_table(root / name) for name in TABLES)
    for name, table in zip(TABLES[1:3], (labels, training), strict=True):
        if table.keys() != images.keys():
            odd = sorted(table.keys() ^ images.keys())
            raise UserError(
                f"{root / name} must name the images of images.txt, but {len(odd)} are in one only, the first {odd[0]}; unpack it again"
            )
    numbers = {key: number for number, key in enumerate(classes)}
    splits: dict[str, list[Entry]] = {"1": [], "0": []}
    for key, path in images.items():
        if training[key] not in splits or labels[key] not in numbers:
            raise UserError(
                f"an image must have split 1 or 0 and a class of classes.txt, but image {key} of {root} has split {training[key]!r}"
                f" and class {labels[key]!r}; unpack it again"
            )
        splits[training[key]].append(_entry(root, path, numbers[labels[key]]))
    train, test = (tuple(sorted(splits[side], key=lambda entry: (entry.label, entry.path))) for side in ("1", "0"))
    names = tuple(classes.values())
    for entries in (train, test):
        require_images(entries, names, root)
    return Listing(root, names, train, test)


def _table(path: Path) -> dict[str, str]:
    """First word of every line -> the rest."""
    try:
        rows = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return {key: value.strip() for key, value in rows}
    except FileNotFoundError as error:
        raise UserError(f"CUB-200-2011 must hold {LAYOUT}, but {path} is missing; name the folder that has them") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must hold lines of two words, but does not ({error}); unpack it again") from error


def _entry(root: Path, path: str, label: int) -> Entry:
    place = f"images/{path}"
    if ".." in Path(place).parts:
        raise UserError(f"images.txt must name files below images/, but names {path}; unpack it again")
    try:
        status = os.stat(root / place)
    except OSError as error:
        raise UserError(
            f"every image of images.txt must be there, but {root / place} is not: {error.strerror or error}; unpack it again"
        ) from error
    return Entry(place, status.st_size, status.st_mtime_ns, label)


def _root(folder: Path) -> Path:
    """The folder of the tables: `folder` itself, or the one that the archive makes inside it."""
    return folder / FOLDER if (folder / FOLDER).is_dir() else folder


def _unpacked(archive: Path, cache_dir: Path) -> Path:
    """The archive's content below `cache_dir`, whole or not at all."""
    status = archive.stat()
    key = hashlib.sha256(f"{archive.resolve()} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    place = cache_dir / f"cub200-{key}"
    if place.is_dir():
        return place
    cache_dir.mkdir(parents=True, exist_ok=True)
    try:
        with made_once(place), tempfile.TemporaryDirectory(dir=cache_dir, prefix=".cub200-") as folder:
            if place.is_dir():
                return place
            content = Path(folder, "content")
            with tarfile.open(archive) as tar:
                tar.extractall(content, filter="data")
            os.replace(content, place)
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"{archive} must be the archive CUB_200_2011.tgz, but cannot be unpacked into {cache_dir} ({error}); fetch it or free space"
        ) from error
    return place
