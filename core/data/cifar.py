"""CIFAR-10 from its binary archive: records of one label byte and 3 x 32 x 32 pixel bytes; nothing is unpickled.

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
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from core.config import DataConfig
from core.data.images import adapt
from core.data.listing import is_image_folder
from core.data.types import ImageSet, RawData
from core.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
ARCHIVE = "cifar-10-binary.tar.gz"
UNPACKED = "cifar-10-batches-bin"
TRAIN_FILES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILE = "test_batch.bin"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RECORD = 1 + 3 * 32 * 32
NETWORK_TIMEOUT_S = 30.0


def load_cifar10(config: DataConfig, cache_dir: Path) -> RawData:
    """CIFAR-10 with its own test split, from `config.dir` (default ./data), downloaded there where it is missing.

    An image folder as `config.dir` is read in its place. Raises UserError for a damaged archive, or when it is neither there nor to be had.
    """
    root = config.dir if config.dir is not None else Path("data")
    if config.dir is not None and not root.is_dir():
        raise UserError(f"--data-dir must be a folder, but {root} is none; create it to download CIFAR-10 there, or name an image folder")
    if config.dir is not None and is_image_folder(root):
        from core.data.folder import load_folder

        return load_folder(config, cache_dir)
    batches = _read_batches(root)
    train = [parse_records(batches[name], name) for name in TRAIN_FILES]
    images, labels = (np.concatenate(parts) for parts in zip(*train, strict=True))
    return RawData(_image_set(images, labels, config), _image_set(*parse_records(batches[TEST_FILE], TEST_FILE), config), CLASSES)


def parse_records(data: bytes, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,) of one batch file. Raises UserError naming `where` for another layout."""
    if not data or len(data) % RECORD:
        raise UserError(f"a CIFAR-10 batch must hold records of {RECORD} bytes, but {where} has {len(data)} bytes; fetch {ARCHIVE} again")
    records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise UserError(f"CIFAR-10 labels must be 0..9, but {where} has {records[:, 0].max()}; fetch {ARCHIVE} again")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _image_set(images: np.ndarray, labels: np.ndarray, config: DataConfig) -> ImageSet:
    # A copy where nothing was adapted: the pages of a `bytes` object are read-only, which torch refuses to promise.
    return ImageSet(torch.from_numpy(np.array(adapt(images, config.image_size, config.channels))), torch.from_numpy(labels))


def _read_batches(root: Path) -> dict[str, bytes]:
    for folder in (root / UNPACKED, root):
        if all((folder / name).is_file() for name in (*TRAIN_FILES, TEST_FILE)):
            return {name: (folder / name).read_bytes() for name in (*TRAIN_FILES, TEST_FILE)}
    archive = root / ARCHIVE
    if not archive.is_file():
        _download(root)
    return _read_archive(archive)


def _read_archive(archive: Path) -> dict[str, bytes]:
    wanted, found = {*TRAIN_FILES, TEST_FILE}, {}
    try:
        with gzip.open(archive) as unzipped:
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
        raise UserError(f"{archive} must be the CIFAR-10 binary version, but is damaged ({error}); delete it and start again") from error
    if missing := sorted(wanted - found.keys()):
        raise UserError(f"{archive} must hold the CIFAR-10 binary version, but lacks {', '.join(missing)}; delete it and start again")
    return found


def _download(root: Path) -> None:
    """Fetch the archive into `root`, whole or not at all; torchvision compares the MD5."""
    from torchvision.datasets.utils import download_url

    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".cifar10-") as folder, _network_timeout():
            download_url(URL, folder, ARCHIVE, MD5)
            os.replace(Path(folder) / ARCHIVE, root / ARCHIVE)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UserError(
            f"CIFAR-10 must be in {root} or downloadable, but it is not there and the download failed ({error}); put the binary version,"
            f" {URL} (md5 {MD5}), at {root / ARCHIVE}, or point --data-dir at an image folder (train/<class>/*, test/<class>/*)"
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
