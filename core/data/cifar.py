"""CIFAR-10 and CIFAR-100 from their binary archives: records of label bytes and 3 x 32 x 32 pixel bytes; nothing is unpickled.

References: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009; https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import gzip
import http.client
import os
import socket
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from core.config import DataConfig
from core.data.images import adapt
from core.data.listing import is_image_folder
from core.data.types import ImageSet, RawData
from core.errors import UserError

NETWORK_TIMEOUT_S = 30.0
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Archive:
    """One of the two sets as it is published."""

    title: str
    name: str
    """Of the archive's file."""
    md5: str
    folder: str
    """Inside the archive."""
    train: tuple[str, ...]
    test: str
    names: str
    """The file of class names, a line each."""
    classes: int
    label_bytes: int
    """Of every record; the last one counts. CIFAR-100 has the superclass before it."""
    site: str = "https://www.cs.toronto.edu/~kriz"

    @property
    def url(self) -> str:
        return f"{self.site}/{self.name}"

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)

    @property
    def record(self) -> int:
        """Bytes of one image and its labels."""
        return self.label_bytes + PIXELS


CIFAR10 = Archive(
    title="CIFAR-10",
    name="cifar-10-binary.tar.gz",
    md5="c32a1d4ab5d03f1284b67883e8d87530",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names="batches.meta.txt",
    classes=10,
    label_bytes=1,
)
CIFAR100 = Archive(
    title="CIFAR-100",
    name="cifar-100-binary.tar.gz",
    md5="03b5dce01913d631647c71ecec9e9cb8",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    names="fine_label_names.txt",
    classes=100,
    label_bytes=2,
)


def load_cifar(archive: Archive, config: DataConfig, cache_dir: Path) -> RawData:
    """The set with its own test split, from `config.dir` (default ./data), downloaded there where it is missing.

    An image folder as `config.dir` is read in its place. Raises UserError for a damaged archive, or when it is neither there nor to be had.
    """
    root = config.dir if config.dir is not None else Path("data")
    if config.dir is not None and not root.is_dir():
        raise UserError(
            f"--data-dir must be a folder, but {root} is none; create it to download {archive.title} there, or name an image folder"
        )
    if config.dir is not None and is_image_folder(root):
        from core.data.folder import load_folder

        return load_folder(config, cache_dir)
    files = _read_files(archive, root)
    names = tuple(line for line in files[archive.names].decode("utf-8", "replace").split() if line)
    if len(names) != archive.classes:
        raise UserError(
            f"{archive.title} has {archive.classes} classes, but {archive.names} names {len(names)}; fetch {archive.name} again"
        )
    train = [parse_records(archive, files[name], name) for name in archive.train]
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    test = parse_records(archive, files[archive.test], archive.test)
    return RawData(_image_set(images, labels, config), _image_set(*test, config), names)


def parse_records(archive: Archive, data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one batch file. Raises UserError naming `where` for another layout."""
    if not data or len(data) % archive.record:
        raise UserError(
            f"a {archive.title} batch must hold records of {archive.record} bytes, but {where} has {len(data)} bytes;"
            f" fetch {archive.name} again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, archive.record)
    labels = records[:, archive.label_bytes - 1].astype(np.int64)
    if labels.max() >= archive.classes:
        raise UserError(
            f"{archive.title} labels must be 0..{archive.classes - 1}, but {where} has {labels.max()}; fetch {archive.name} again"
        )
    return records[:, archive.label_bytes :].reshape(-1, 3, 32, 32), labels


def _image_set(images: np.ndarray, labels: np.ndarray, config: DataConfig) -> ImageSet:
    # A copy where nothing was adapted: the pages of a `bytes` object are read-only, which torch refuses to promise.
    return ImageSet(torch.from_numpy(np.array(adapt(images, config.image_size, config.channels))), torch.from_numpy(labels))


def _read_files(archive: Archive, root: Path) -> dict[str, bytes]:
    for folder in (root / archive.folder, root):
        if all((folder / name).is_file() for name in archive.files):
            return {name: (folder / name).read_bytes() for name in archive.files}
    path = root / archive.name
    if not path.is_file():
        _download(archive, root)
    return _read_archive(archive, path)


def _read_archive(archive: Archive, path: Path) -> dict[str, bytes]:
    wanted, found = {*archive.files}, {}
    try:
        with gzip.open(path) as unzipped:
            # Members are read by name into memory, so no path in the archive can reach the disk.
            with tarfile.open(fileobj=unzipped, mode="r|") as tar:
                for member in tar:
                    name = PurePosixPath(member.name).name
                    content = tar.extractfile(member) if name in wanted else None
                    if content is not None:
                        found[name] = content.read()
            # gzip compares its CRC at the very end only, where tar has no reason to go.
            while unzipped.read(1 << 20):
                pass
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise UserError(
            f"{path} must be the {archive.title} binary version, but is damaged ({error}); delete it and start again"
        ) from error
    if missing := sorted(wanted - found.keys()):
        raise UserError(f"{path} must hold the {archive.title} binary version, but lacks {', '.join(missing)}; delete it and start again")
    return found


def _download(archive: Archive, root: Path) -> None:
    """Fetch the archive into `root`, whole or not at all; torchvision compares the MD5."""
    from torchvision.datasets.utils import download_url

    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".cifar-") as folder, _network_timeout():
            download_url(archive.url, folder, archive.name, archive.md5)
            os.replace(Path(folder) / archive.name, root / archive.name)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(
            f"{archive.title} must be in {root} or downloadable, but it is not there and the download failed ({error});"
            f" put the binary version, {archive.url} (md5 {archive.md5}), at {root / archive.name}, or point --data-dir at an image folder"
            " (train/<class>/*, test/<class>/*)"
        ) from error


@contextmanager
def _network_timeout() -> Iterator[None]:
    # torchvision sets none, so a firewall that drops packets would hang the command for ever.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
