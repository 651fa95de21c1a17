"""Random images whose class is plain to see: the brighter quarter of the image."""

from __future__ import annotations

import torch

from core.config import ViewsConfig
from core.data.types import DataInfo, ImageSet, SearchData
from core.views import ViewedSet, normalisation_of, viewed

CLASSES = 4
SIZE = 8


def image_set(count: int, seed: int = 0, channels: int = 1) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 100, (count, channels, SIZE, SIZE), generator=generator)
    labels = torch.arange(count) % CLASSES
    for index, label in enumerate(labels.tolist()):
        top, left = divmod(label, 2)
        images[index, :, 4 * top : 4 * top + 4, 4 * left : 4 * left + 4] += 140
    return ImageSet(images.to(torch.uint8), labels)


def search_data(count: int = 96, seed: int = 0, channels: int = 1) -> SearchData:
    info = DataInfo("tiny", tuple("abcd"), channels, SIZE, (0.3,) * channels, (0.25,) * channels, f"{seed:016x}")
    return SearchData(info, image_set(count, seed, channels), image_set(48, seed + 1, channels))


def view_set(count: int = 96, plan: ViewsConfig | None = None, seed: int = 0, channels: int = 1) -> ViewedSet:
    data = search_data(count, channels=channels)
    return viewed(data.train, normalisation_of(data.info), plan or ViewsConfig(number=2, flip=False, shift=0), seed, torch.device("cpu"))
