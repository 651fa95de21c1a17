"""Any folder of images: decoded in parallel once and then read from one cache file, or left as files where that is too much."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from core.config import DataConfig
from core.data.cache import Arrays, cached_arrays
from core.data.files import image_files, in_threads, unreadable_files
from core.data.images import GREY_MODES, decode_image, image_header
from core.data.listing import Entry, Listing, list_images, require_images
from core.data.types import ImageSet, RawData
from core.errors import UserError

FORMAT = 1
"""Raised whenever the decoding changes, so that caches of another decoder are not read."""
DEFAULT_SIZE, LARGEST_SHARED_SIZE, SMALLEST_SIZE = 32, 64, 4

log = logging.getLogger(__name__)


def load_folder(config: DataConfig, cache_dir: Path) -> RawData:
    """All images of `config.dir`, with its test split where it has one.

    Image size and channels come from `config`, else from the headers of all files. Raises UserError for a layout that cannot
    be trained on, and for images that cannot be decoded unless `config.skip_bad` leaves them out.
    """
    if config.dir is None:
        raise UserError("the data set 'folder' needs a folder, but none is named; give --data-dir FOLDER")
    return load_listing(list_images(config.dir), config, cache_dir)


def load_listing(listing: Listing, config: DataConfig, cache_dir: Path) -> RawData:
    """The listed images: resident up to `config.resident_gb` of pixels, else streamed. Errors as of `load_folder`."""
    limit = config.resident_gb * 1e9
    count = len(listing.train) + len(listing.test or ())
    if count * (config.channels or 3) * (config.image_size or LARGEST_SHARED_SIZE) ** 2 > limit:  # else no header needs to be read
        size, channels = _kept_shape(listing, config, cache_dir)
        if count * channels * size**2 > limit:
            return streamed(listing, config, cache_dir, size, channels)
    return _resident(listing, config, cache_dir)


def streamed(listing: Listing, config: DataConfig, cache_dir: Path, size: int, channels: int) -> RawData:
    """The listed images as files of that size. Only `config.skip_bad` decodes all of them, once; else a bad one is named when met."""
    if config.skip_bad:
        listing = _without_bad(listing, config, cache_dir, size, channels)
    train, test = (
        None if entries is None else image_files(listing.root, entries, size, channels, config.workers)
        for entries in (listing.train, listing.test)
    )
    assert train is not None
    return RawData(train, test, listing.classes)


def _without_bad(listing: Listing, config: DataConfig, cache_dir: Path, size: int, channels: int) -> Listing:
    """The listing without files that cannot be decoded."""

    def find() -> Arrays:
        reasons = unreadable_files(listing.root, (*listing.train, *(listing.test or ())), size, channels)
        return {"reasons": np.array([reason or "" for reason in reasons], dtype=np.str_)}

    reasons = cached_arrays(cache_dir / f"unreadable-{cache_key(listing, config)}.npz", find)["reasons"].tolist()
    _report_bad([reason for reason in reasons if reason], skip_bad=True)
    sound = [not reason for reason in reasons]
    train = tuple(entry for entry, keep in zip(listing.train, sound, strict=False) if keep)
    test = tuple(entry for entry, keep in zip(listing.test or (), sound[len(listing.train) :], strict=True) if keep)
    require_images(train, listing.classes, listing.root / "train")
    if listing.test is not None:
        require_images(test, listing.classes, listing.root / "test")
    return replace(listing, train=train, test=None if listing.test is None else test)


def _resident(listing: Listing, config: DataConfig, cache_dir: Path) -> RawData:
    """The listed images, decoded once and kept in `cache_dir`."""

    def decode() -> Arrays:
        arrays = _decode_listing(listing, config)
        if not config.skip_bad:  # before anything is kept: a file whose permissions are mended is read again
            _report_bad(arrays["bad"].tolist(), skip_bad=False)
        return arrays

    arrays = cached_arrays(cache_dir / f"images-{cache_key(listing, config)}.npz", decode)
    _report_bad(arrays["bad"].tolist(), config.skip_bad)
    _require_classes(listing, arrays)
    test = None if listing.test is None else _image_set(arrays, "test")
    return RawData(_image_set(arrays, "train"), test, listing.classes)


def cache_key(listing: Listing, config: DataConfig) -> str:
    """16 hex digits over the files (place, size, time of change) and the asked size and channels."""
    files = [listing.train, listing.test, str(listing.root.resolve())]
    return hashlib.sha256(json.dumps([FORMAT, files, config.image_size, config.channels]).encode()).hexdigest()[:16]


def _decode_listing(listing: Listing, config: DataConfig) -> Arrays:
    size, channels = _shape(listing, config)
    arrays: Arrays = {}
    bad: list[str] = []
    for split, entries in (("train", listing.train), ("test", listing.test)):
        if entries is None:
            continue
        images, errors = _decode(listing.root, entries, size, channels)
        sound = np.array([error is None for error in errors])
        arrays[f"{split}_images"] = images if sound.all() else images[sound]
        arrays[f"{split}_labels"] = np.array([entry.label for entry in entries], np.int64)[sound]
        bad += [error for error in errors if error is not None]
    return {**arrays, "bad": np.array(bad, dtype=np.str_)}


def _decode(root: Path, entries: Sequence[Entry], size: int, channels: int) -> tuple[np.ndarray, list[str | None]]:
    """Images uint8 (N, C, S, S) and, per image, the reason why it could not be decoded."""
    images = np.zeros((len(entries), channels, size, size), np.uint8)

    def decode(index: int) -> str | None:
        try:
            images[index] = decode_image(root / entries[index].path, size, channels)
        except UserError as error:
            return str(error)
        return None

    return images, in_threads(decode, range(len(entries)))


def _kept_shape(listing: Listing, config: DataConfig, cache_dir: Path) -> tuple[int, int]:
    """`_shape`, which reads every header, from `cache_dir` where it is known."""
    if config.image_size is not None and config.channels is not None:
        return config.image_size, config.channels
    kept = cached_arrays(cache_dir / f"shape-{cache_key(listing, config)}.npz", lambda: {"shape": np.array(_shape(listing, config))})
    size, channels = kept["shape"].tolist()
    return size, channels


def _shape(listing: Listing, config: DataConfig) -> tuple[int, int]:
    """Side and channels: as configured, else what all headers agree on."""
    if config.image_size is not None and config.channels is not None:
        return config.image_size, config.channels
    paths = [listing.root / entry.path for entry in (*listing.train, *(listing.test or ()))]
    headers = [header for header in in_threads(_header, paths) if header is not None]
    sizes = {size for size, _ in headers}
    channels = 1 if headers and all(mode in GREY_MODES for _, mode in headers) else 3
    return config.image_size or _shared_size(sizes, listing.root), config.channels or channels


def _header(path: Path) -> tuple[tuple[int, int], str] | None:
    """None for a file without a sound header; decoding reports it."""
    try:
        return image_header(path)
    except UserError:
        return None


def _shared_size(sizes: set[tuple[int, int]], root: Path) -> int:
    width, height = next(iter(sizes)) if len(sizes) == 1 else (0, 0)
    if not 0 < width == height <= LARGEST_SHARED_SIZE:
        return DEFAULT_SIZE
    if width < SMALLEST_SIZE:
        raise UserError(
            f"image_size must be at least {SMALLEST_SIZE}, but all images in {root} are {width} x {width};"
            f" set data.image_size={DEFAULT_SIZE} to enlarge them"
        )
    return width


def _report_bad(bad: list[str], skip_bad: bool) -> None:
    if not bad:
        return
    if skip_bad:
        log.warning("skipped %d unreadable image(s); the first: %s", len(bad), bad[0])
        return
    more = f" ({len(bad) - 1} more like it)" if len(bad) > 1 else ""
    raise UserError(f"{bad[0]}{more}; repair or remove it, or leave such images out with --skip-bad")


def _require_classes(listing: Listing, arrays: Arrays) -> None:
    """Leaving bad images out must not have emptied a class."""
    for split in ("train", "test"):
        labels = arrays.get(f"{split}_labels")
        if labels is not None:
            require_images([Entry("", 0, 0, int(label)) for label in np.unique(labels)], listing.classes, listing.root / split)


def _image_set(arrays: Arrays, split: str) -> ImageSet:
    return ImageSet(torch.from_numpy(arrays[f"{split}_images"]), torch.from_numpy(arrays[f"{split}_labels"]))
