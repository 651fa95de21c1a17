"""The frozen values of the data package."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images resident in memory: `images` uint8 (N, C, H, W) in 0..255, `labels` int64 (N,), both on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray | torch.Tensor) -> ImageSet:
        """A copy of the images at `indices` (int64), in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return ImageSet(self.images[chosen], self.labels[chosen])

    def to(self, device: torch.device | str) -> ImageSet:
        """The same images on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class RawData:
    """A set as its source holds it. `test` is None where the source has no test split. Label i means `classes[i]`."""

    train: ImageSet
    test: ImageSet | None
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DataInfo:
    """What everything downstream needs to know of a set without holding it."""

    name: str
    classes: tuple[str, ...]
    channels: int
    image_size: int
    mean: tuple[float, ...]
    """Per channel over the training split, pixels scaled to [0, 1]."""
    std: tuple[float, ...]
    """Per channel over the training split, at least 1/255."""
    digest: str
    """16 hex digits over the pixels and labels of both splits, the class names and the split's seed."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.channels, self.image_size, self.image_size


@dataclass(frozen=True, eq=False)
class SearchData:
    """All that a search may see: `train` to learn from, `search` to choose on."""

    info: DataInfo
    train: ImageSet
    search: ImageSet
