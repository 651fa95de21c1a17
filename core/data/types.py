"""The frozen values of the data package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

CHUNK_VALUES = 64_000_000
"""Of images that are looked at together: 256 MB once they are float32."""


class Images(Protocol):
    """N square images of one shape with labels int64 (N,): resident (`ImageSet`) or files that are decoded when asked for
    (core/data/files.py). Pixels are uint8 in 0..255."""

    @property
    def labels(self) -> torch.Tensor: ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    def __len__(self) -> int: ...

    def subset(self, indices: np.ndarray | torch.Tensor) -> Images:
        """The images at `indices` (int64), in that order."""

    def labelled(self, labels: torch.Tensor) -> Images:
        """The same images with other labels (N,)."""

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W): the images at `indices` (B,)."""

    def chunks(self) -> Iterator[torch.Tensor]:
        """All images in order, uint8 (B, C, H, W), in parts that fit into memory as floats."""

    def survey(self) -> torch.Tensor:
        """uint8 (M, C, H, W): what statistics are taken of."""

    def content(self) -> Iterator[bytes | memoryview]:
        """What tells these images and labels from others, for a digest."""


def chunk_size(shape: tuple[int, int, int]) -> int:
    """How many images of that shape are looked at together; at least 1."""
    return max(1, CHUNK_VALUES // int(np.prod(shape)))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images resident in memory: `images` uint8 (N, C, H, W) in 0..255, `labels` int64 (N,), both on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def subset(self, indices: np.ndarray | torch.Tensor) -> ImageSet:
        """A copy of the images at `indices` (int64), in that order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64, device=self.labels.device)
        return ImageSet(self.images[chosen], self.labels[chosen])

    def labelled(self, labels: torch.Tensor) -> ImageSet:
        """The same images with other labels (N,)."""
        return ImageSet(self.images, labels)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W): the images at `indices` (B,)."""
        return self.images[indices.to(self.images.device)]

    def chunks(self) -> Iterator[torch.Tensor]:
        """All images in order, in parts that fit into memory as floats."""
        return iter(self.images.split(chunk_size(self.shape)))

    def survey(self) -> torch.Tensor:
        """All images."""
        return self.images

    def content(self) -> Iterator[bytes | memoryview]:
        """Shape, pixels and labels."""
        yield repr(tuple(self.images.shape)).encode()
        yield self.images.contiguous().numpy().data
        yield self.labels.numpy().data

    def to(self, device: torch.device | str) -> ImageSet:
        """The same images on `device`."""
        return ImageSet(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class RawData:
    """A set as its source holds it. `test` and `search` are None where the source has no such split. Label i means `classes[i]`.

    A set that is not `labelled` has labels -1 until a teacher answers for them.
    """

    train: Images
    test: Images | None
    classes: tuple[str, ...]
    labelled: bool = True
    search: Images | None = None


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
    """16 hex digits over the pixels (of streamed sets: names and bytes of the files) and labels of both splits, the class names and the
    split's seed."""
    labelled: bool = True
    """Whether people named the classes of the images; else the teacher's answers are what a network is judged by."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.channels, self.image_size, self.image_size


@dataclass(frozen=True, eq=False)
class SearchData:
    """All that a search may see: `train` to learn from, `search` to choose on."""

    info: DataInfo
    train: Images
    search: Images
