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
from core.data.files import BAD_REMEDY, image_files, in_threads, unreadable_files
from core.data.images import GREY_MODES, decode_image, image_header
from core.data.listing import Entry, Listing, list_images, require_images
from core.data.types import ImageSet, RawData
from core.errors import UserError

FORMAT = 2
"""Raised whenever the decoding or what is kept changes, so that caches of another decoder are not read."""
DEFAULT_SIZE, LARGEST_SHARED_SIZE, SMALLEST_SIZE = 32, 64, 4
FOLDERS = {"train": "train", "test": "test", "search": "val"}
"""Of the splits, for messages."""

log = logging.getLogger(__name__)


def load_folder(config: DataConfig, cache_dir: Path) -> RawData:
    """All images of `config.dir`, with its own test and search splits where it has them.

    Image size and channels come from `config`, else from the headers of all files. Raises UserError for a layout that cannot
    be trained on, and for images that cannot be decoded unless `config.skip_bad` leaves them out.
    """
    if config.dir is None:
        raise UserError("the data set 'folder' needs a folder, but none is named; give --data-dir FOLDER")
    return load_listing(list_images(config.dir), config, cache_dir)


def load_listing(listing: Listing, config: DataConfig, cache_dir: Path) -> RawData:
    """The listed images: resident up to `config.resident_gb` of pixels, else streamed. Errors as of `load_folder`."""
    limit = config.resident_gb * 1e9
    count = sum(map(len, listing.splits().values()))
    if count * (config.channels or 3) * (config.image_size or LARGEST_SHARED_SIZE) ** 2 > limit:  # else no header needs to be read
        size, channels = _kept_shape(listing, config, cache_dir)
        if count * channels * size**2 > limit:
            return streamed(listing, config, cache_dir, size, channels)
    return _resident(listing, config, cache_dir)


def streamed(listing: Listing, config: DataConfig, cache_dir: Path, size: int, channels: int) -> RawData:
    """The listed images as files of that size. Only `config.skip_bad` decodes all of them, once; else a bad one is named when met."""
    if config.skip_bad:
        listing = _without_bad(listing, config, cache_dir, size, channels)
    files = {name: image_files(listing.root, entries, size, channels, config.workers) for name, entries in listing.splits().items()}
    return RawData(files["train"], files.get("test"), listing.classes, search=files.get("search"))


def _without_bad(listing: Listing, config: DataConfig, cache_dir: Path, size: int, channels: int) -> Listing:
    """The listing without files that cannot be decoded."""

    splits = listing.splits()

    def find() -> Arrays:
        reasons = unreadable_files(listing.root, [entry for entries in splits.values() for entry in entries], size, channels)
        return {"reasons": np.array([reason or "" for reason in reasons], dtype=np.str_)}

    reasons = iter(cached_arrays(cache_dir / f"unreadable-{cache_key(listing, config)}.npz", find)["reasons"].tolist())
    bad, sound = list[str](), dict[str, tuple[Entry, ...]]()
    for name, entries in splits.items():
        told = [next(reasons) for _ in entries]
        bad += [reason for reason in told if reason]
        sound[name] = tuple(entry for entry, reason in zip(entries, told, strict=True) if not reason)
    _report_bad(bad, skip_bad=True)
    for name, entries in sound.items():
        require_images(entries, listing.classes, listing.root / FOLDERS[name])
    return replace(listing, train=sound["train"], test=sound.get("test"), search=sound.get("search"))


def _resident(listing: Listing, config: DataConfig, cache_dir: Path) -> RawData:
    """The listed images, decoded once and kept in `cache_dir`."""

    def decode() -> Arrays:
        arrays = _decode_listing(listing, config)
        if not config.skip_bad:  # before anything is kept: a file whose permissions are mended is read again
            _report_bad(arrays["bad"].tolist(), skip_bad=False)
        return arrays

    arrays = cached_arrays(cache_dir / f"images-{cache_key(listing, config)}.npz", decode)
    _tell_shrinking(arrays["train_images"].shape[-1], int(arrays["largest"]))
    _report_bad(arrays["bad"].tolist(), config.skip_bad)
    _require_classes(listing, arrays)
    sets = {name: _image_set(arrays, name) for name in listing.splits()}
    return RawData(sets["train"], sets.get("test"), listing.classes, search=sets.get("search"))


def cache_key(listing: Listing, config: DataConfig) -> str:
    """16 hex digits over the files (place, size, time of change) and the asked size and channels."""
    files = [listing.train, listing.test, str(listing.root.resolve()), *([listing.search] if listing.search else [])]
    return hashlib.sha256(json.dumps([FORMAT, files, config.image_size, config.channels]).encode()).hexdigest()[:16]


def _decode_listing(listing: Listing, config: DataConfig) -> Arrays:
    size, channels, largest = _shape(listing, config)
    arrays: Arrays = {"largest": np.array(largest)}
    bad: list[str] = []
    for split, entries in listing.splits().items():
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
    size, channels, largest = kept["shape"].tolist()
    _tell_shrinking(size, largest)
    return size, channels


def _shape(listing: Listing, config: DataConfig) -> tuple[int, int, int]:
    """Side and channels: as configured, else what all headers agree on. And the side of the largest image, 0 where it is not asked for."""
    if config.image_size is not None and config.channels is not None:
        return config.image_size, config.channels, 0
    paths = [listing.root / entry.path for entries in listing.splits().values() for entry in entries]
    headers = [header for header in in_threads(_header, paths) if header is not None]
    sizes = {size for size, _ in headers}
    channels = 1 if headers and all(mode in GREY_MODES for _, mode in headers) else 3
    if config.image_size is not None:
        return config.image_size, config.channels or channels, 0
    return _shared_size(sizes, listing.root), config.channels or channels, max(map(min, sizes), default=0)


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


def _tell_shrinking(size: int, largest: int) -> None:
    """At every start, for nobody asked for it."""
    if largest > size:
        told = "images of up to %d px are scaled to %d px, as data.image_size is not set; set it to what your network was trained at"
        log.warning(told, largest, size)


def _report_bad(bad: list[str], skip_bad: bool) -> None:
    if not bad:
        return
    if skip_bad:
        log.warning("skipped %d unreadable image(s); the first: %s", len(bad), bad[0])
        return
    more = f" ({len(bad) - 1} more like it)" if len(bad) > 1 else ""
    raise UserError(f"{bad[0]}{more}; {BAD_REMEDY}")


def _require_classes(listing: Listing, arrays: Arrays) -> None:
    """Leaving bad images out must not have emptied a class."""
    for split in listing.splits():
        labels = np.unique(arrays[f"{split}_labels"])
        require_images([Entry("", 0, 0, int(label)) for label in labels], listing.classes, listing.root / FOLDERS[split])


def _image_set(arrays: Arrays, split: str) -> ImageSet:
    return ImageSet(torch.from_numpy(arrays[f"{split}_images"]), torch.from_numpy(arrays[f"{split}_labels"]))
