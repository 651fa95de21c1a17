"""Three splits, stratified, by seed: the test split is cut first, then the search split from the rest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from core.config import DataConfig
from core.data import DATASETS
from core.data.types import DataInfo, Images, ImageSet, RawData, SearchData, chunk_size
from core.errors import UserError
from core.tables import lookup


def load_raw(config: DataConfig, cache_dir: Path) -> RawData:
    """All images of the set `config.name`. Raises UserError for an unknown set or one that breaks the table's contract."""
    raw = lookup(DATASETS, "data set", config.name)(config, cache_dir)
    _check(raw, config.name)
    return raw


def split_search(raw: RawData, config: DataConfig) -> SearchData:
    """Training and search split; the latter is the set's own, else cut off. Test images stay out; only `train` heeds `train_limit`."""
    rest = raw.train if raw.test is not None else raw.train.subset(_cut_test(raw, config)[0])
    groups, names = _groups(rest, raw)
    if raw.search is not None:
        train_at, search = np.arange(len(rest)), raw.search
    else:
        train_at, search_at = cut(groups, config.search_fraction, names, (config.seed, 1), "search")
        search = rest.subset(search_at)
    train = rest.subset(_limited(train_at, groups, config))
    return SearchData(_describe(train, search, raw, config), train, search)


def split_test(raw: RawData, config: DataConfig) -> Images:
    """The set's own test split, else the one cut off by seed."""
    return raw.test if raw.test is not None else raw.train.subset(_cut_test(raw, config)[1])


def cut(labels: np.ndarray, fraction: float, classes: Sequence[str], seed: tuple[int, int], purpose: str) -> tuple[np.ndarray, np.ndarray]:
    """Indices (rest, held) in ascending order: disjoint, together all, each class on both sides, `held` the `fraction` rounded up.

    `seed` is the user's and the number of the cut. Raises UserError when a class has fewer than 2 images.
    """
    counts = np.bincount(labels, minlength=len(classes))
    poorest = int(counts.argmin())
    if counts[poorest] < 2:
        raise UserError(
            f"cutting off the {purpose} split takes at least 2 images per class, but class {classes[poorest]!r} has {counts[poorest]} left;"
            f" add images (a set without a test split needs 3 per class) or remove the class"
        )
    # 1e-9: 0.1 * 30 is 3.0000000000000004 in binary and must not round up to 4.
    quotas = np.minimum(allot(counts, math.ceil(len(labels) * fraction - 1e-9)), counts - 1)
    held = _draw(labels, quotas, seed)
    return np.setdiff1d(np.arange(len(labels)), held), held


def allot(counts: np.ndarray, total: int) -> np.ndarray:
    """Whole quotas per class in proportion to `counts`: largest remainders, at least 1 each, `total` (or 1 each) in all."""
    total = max(total, len(counts))
    share = counts * (total / counts.sum())
    quotas = np.floor(share).astype(np.int64)
    largest_remainders = np.argsort(quotas - share, kind="stable")
    quotas[largest_remainders[: total - quotas.sum()]] += 1
    quotas = np.maximum(quotas, 1)
    while quotas.sum() > total:
        quotas[quotas.argmax()] -= 1
    return quotas


def _cut_test(raw: RawData, config: DataConfig) -> tuple[np.ndarray, np.ndarray]:
    groups, names = _groups(raw.train, raw)
    return cut(groups, config.test_fraction, names, (config.seed, 0), "test")


def _groups(images: Images, raw: RawData) -> tuple[np.ndarray, Sequence[str]]:
    """Group of every image (N,) and names of the groups, each of which is on all sides of a cut: classes, or all as one without labels."""
    labels = images.labels.numpy()
    return (labels, raw.classes) if raw.labelled else (np.zeros_like(labels), ("unlabelled",))


def _draw(labels: np.ndarray, quotas: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    """Ascending indices of `quotas[c]` images of each class c."""
    # RandomState's streams are frozen by numpy's policy, so a study's splits outlive numpy versions; Generator's are not.
    rng = np.random.RandomState([seed[0] % 2**32, seed[1]])
    drawn = [rng.permutation(np.flatnonzero(labels == label))[:quota] for label, quota in enumerate(quotas)]
    return np.sort(np.concatenate(drawn))


def _limited(indices: np.ndarray, groups: np.ndarray, config: DataConfig) -> np.ndarray:
    if config.train_limit is None or config.train_limit >= len(indices):
        return indices
    labels = groups[indices]
    counts = np.bincount(labels)
    if config.train_limit < len(counts):
        raise UserError(
            f"data.train_limit must leave an image of each of the {len(counts)} classes, but is {config.train_limit};"
            f" set it to {len(counts)} or more"
        )
    return indices[_draw(labels, allot(counts, config.train_limit), (config.seed, 2))]


def _describe(train: Images, search: Images, raw: RawData, config: DataConfig) -> DataInfo:
    mean, std = channel_statistics(train.survey())
    return DataInfo(
        name=config.name,
        classes=raw.classes,
        channels=train.shape[0],
        image_size=train.shape[-1],
        mean=mean,
        std=std,
        digest=_digest(train, search, raw.classes, config.seed),
        labelled=raw.labelled,
    )


def channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation per channel of uint8 (N, C, H, W) on the [0, 1] scale; the deviation is at least 1/255."""
    sums = torch.zeros(2, images.shape[1], dtype=torch.float64)
    for chunk in images.split(chunk_size((images.shape[1], images.shape[2], images.shape[3])) // 16 + 1):
        # Sums of whole numbers below 2**53 are exact in float64, so the result does not depend on chunks or threads.
        pixels = chunk.to(torch.float64)
        sums += torch.stack([pixels.sum((0, 2, 3)), pixels.square().sum((0, 2, 3))])
    mean, square = sums / (images.numel() / images.shape[1])
    std = (square - mean.square()).clamp(min=1.0).sqrt()
    return tuple((mean / 255).tolist()), tuple((std / 255).tolist())


def _digest(train: Images, search: Images, classes: tuple[str, ...], seed: int) -> str:
    content = hashlib.sha256(repr((classes, seed)).encode())
    for split in (train, search):
        for part in split.content():
            content.update(part)
    return content.hexdigest()[:16]


def _check(raw: RawData, name: str) -> None:
    """Refuse what a registered loader got wrong before it costs a study."""
    for split, images in (("train", raw.train), ("test", raw.test), ("search", raw.search)):
        broken = _broken_law(images, raw) if images is not None else None
        if broken is not None:
            raise UserError(f"{broken}, but the {split} split of data set {name!r} breaks that; correct its loader")
    if any(images is not None and images.shape != raw.train.shape for images in (raw.test, raw.search)):
        raise UserError(f"images of all splits must have one shape, but those of data set {name!r} differ; correct its loader")


def _broken_law(split: Images, raw: RawData) -> str | None:
    if isinstance(split, ImageSet):  # what is decoded when asked for has the asked shape
        images = split.images
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or images.shape[2] != images.shape[3]:
            return f"images must be square uint8 (N, 1 or 3, S, S), not {images.dtype} {tuple(images.shape)}"
        if len(images) != len(split.labels):
            return f"labels must be of the images' number, {len(images)}, not {len(split.labels)}"
    labels, classes = split.labels, len(raw.classes)
    if labels.dtype != torch.int64 or labels.ndim != 1 or len(labels) == 0:
        return f"labels must be int64 (N,) and not none, not {labels.dtype} {tuple(labels.shape)}"
    first, last = (0, classes - 1) if raw.labelled else (-1, -1)
    if classes < 2 or labels.min() < first or labels.max() > last:
        return f"labels must be {first}..{last} of at least 2 classes, not {labels.min()}..{labels.max()}"
    return None
