"""Augmentation as a plan: view v of image i is the same in every trial, so that teacher logits can be kept.

A resident training split lies on the device as uint8 and gives augmented, normalised batches with one gather; a streamed one
(core/stream.py) decodes them ahead of the training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as F

from core.config import ViewsConfig
from core.data.files import ImageFiles
from core.data.types import DataInfo, Images, ImageSet, chunk_size

Moves = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Order = Iterable[tuple[torch.Tensor, int]]
"""Image indices int64 (B,) on the CPU and view of every batch, in the order in which they will be asked for."""


@dataclass(frozen=True)
class Normalisation:
    """x = (bytes / 255 - mean) / std per channel; both on the [0, 1] scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W), channels-last kept."""
        shift, scale = _constants(self.mean, self.std, images.device)
        return torch.addcmul(shift, images.to(torch.float32), scale)


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """-mean / std and 1 / (255 std), on the device once, not once per batch: a copy waits for the device."""
    means, stds = (torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1) for values in (mean, std))
    return (-means / stds).float().to(device), (1.0 / (255.0 * stds)).float().to(device)


class ViewedSet(Protocol):
    """A training split of N images and the plan of its V views; batches are float32 (B, C, H, W), channels-last, on the device of the
    labels."""

    @property
    def labels(self) -> torch.Tensor:
        """int64 (N,)"""

    @property
    def normalise(self) -> Normalisation: ...

    @property
    def plan(self) -> ViewsConfig: ...

    @property
    def seed(self) -> int: ...

    def __len__(self) -> int: ...

    def batch(self, indices: torch.Tensor, view: int) -> torch.Tensor:
        """View `view` of the images at `indices`: a pure function of both and the seed."""

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at `indices` without augmentation."""

    def batches(self, order: Order) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """(images, indices, view) of every batch of `order`, the indices on the device too."""


@dataclass(frozen=True)
class ResidentViews:
    """A training split in the memory of the device."""

    padded: torch.Tensor
    """uint8 (N, H + 2 shift, W + 2 shift, C), reflected at the border."""
    labels: torch.Tensor
    """int64 (N,)"""
    size: int
    normalise: Normalisation
    plan: ViewsConfig
    seed: int
    _kept: dict[int, Moves] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor, view: int) -> torch.Tensor:
        """View `view` of the images at `indices`."""
        if view not in self._kept:
            self._kept[view] = self._moves(view)
        flip, top, left = (moves[indices] for moves in self._kept[view])
        # (N, offsets, offsets, size, size, C) without a copy: the gather then moves whole rows, not pixels
        windows = self.padded.unfold(1, self.size, 1).unfold(2, self.size, 1).permute(0, 1, 2, 4, 5, 3)
        cut = windows[indices, top, left]
        cut = torch.where(flip[:, None, None, None], cut.flip(2), cut)
        return self.normalise(cut.permute(0, 3, 1, 2))

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at `indices` without augmentation."""
        pad = self.plan.shift
        inner = self.padded[indices, pad : pad + self.size, pad : pad + self.size]
        return self.normalise(inner.permute(0, 3, 1, 2))

    def batches(self, order: Order) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
        """(images, indices, view) of every batch of `order`, gathered when asked for."""
        for indices, view in order:
            on_device = indices.to(self.labels.device, non_blocking=True)
            yield self.batch(on_device, view), on_device, view

    def _moves(self, view: int) -> Moves:
        """Flip (bool), row and column offset of every image in this view, each (N,).

        An image is flipped in every other view, starting at random: with two views it is seen both ways
        (airbench's alternating flip).
        """
        count, device = len(self), self.padded.device
        first = torch.randint(2, (count,), generator=torch.Generator().manual_seed(self.seed))
        offsets = torch.randint(2 * self.plan.shift + 1, (2, count), generator=torch.Generator().manual_seed(self.seed * 1009 + view + 1))
        flip = ((first + view) % 2 == 1) & self.plan.flip
        return flip.to(device), offsets[0].to(device), offsets[1].to(device)


def viewed(images: Images, normalise: Normalisation, plan: ViewsConfig, seed: int, device: torch.device) -> ViewedSet:
    """The views of a training split, for a training on `device`."""
    if isinstance(images, ImageFiles):
        from core.stream import StreamedViews  # late: it builds on this module

        return StreamedViews(images, images.labels.to(device), normalise, plan, seed)
    assert isinstance(images, ImageSet), type(images)
    return _resident(images, normalise, plan, seed, device)


def _resident(images: ImageSet, normalise: Normalisation, plan: ViewsConfig, seed: int, device: torch.device) -> ResidentViews:
    """Put a training split on `device` and pad it for the plan's shifts."""
    pad = min(plan.shift, images.images.shape[-1] - 1)
    plan = plan.model_copy(update={"shift": pad})
    count, channels, height, width = images.images.shape
    padded = torch.empty(count, height + 2 * pad, width + 2 * pad, channels, dtype=torch.uint8)
    # reflect padding is not implemented for uint8; chunks keep the float copy small
    for part, chunk in zip(padded.split(size := chunk_size(images.shape) // 4 + 1), images.images.split(size), strict=True):
        part.copy_(F.pad(chunk.float(), (pad,) * 4, mode="reflect").permute(0, 2, 3, 1))
    padded = padded.to(device)
    return ResidentViews(padded, images.labels.to(device), images.images.shape[-1], normalise, plan, seed)


def normalisation_of(info: DataInfo) -> Normalisation:
    """Statistics of the training split."""
    return Normalisation(info.mean, info.std)
