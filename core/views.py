"""Augmentation as a plan: view v of image i is the same in every trial, so that teacher logits can be kept.

`ViewedSet` holds a training split on the device as uint8 and yields augmented, normalised batches with one gather.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F

from core.config import ViewsConfig
from core.data.types import DataInfo, ImageSet

Moves = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Normalisation:
    """x = (bytes / 255 - mean) / std per channel; both on the [0, 1] scale."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) -> float32 (B, C, H, W), channels-last kept."""
        mean, std = _constants(self.mean, self.std, images.device)
        return (images.to(torch.float32) / 255.0 - mean) / std


@lru_cache(maxsize=16)
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """On the device once, not once per batch: a copy waits for the device."""
    return torch.tensor(mean, device=device).view(1, -1, 1, 1), torch.tensor(std, device=device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class ViewedSet:
    """A resident training split of N images and the plan of its V views."""

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
        """View `view` of the images at `indices`: float32 (B, C, H, W), channels-last."""
        if view not in self._kept:
            self._kept[view] = self._moves(view)
        flip, top, left = self._kept[view]
        steps = torch.arange(self.size, device=self.padded.device)
        rows = top[indices, None] + steps
        columns = torch.where(flip[indices, None], self.size - 1 - steps, steps) + left[indices, None]
        cut = self.padded[indices[:, None, None], rows[:, :, None], columns[:, None, :]]
        return self.normalise(cut.permute(0, 3, 1, 2))

    def plain(self, indices: torch.Tensor) -> torch.Tensor:
        """The images at `indices` without augmentation: float32 (B, C, H, W)."""
        pad = self.plan.shift
        inner = self.padded[indices, pad : pad + self.size, pad : pad + self.size]
        return self.normalise(inner.permute(0, 3, 1, 2))

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


def viewed(images: ImageSet, normalise: Normalisation, plan: ViewsConfig, seed: int, device: torch.device) -> ViewedSet:
    """Put a training split on `device` and pad it for the plan's shifts."""
    pad = min(plan.shift, images.images.shape[-1] - 1)
    plan = plan.model_copy(update={"shift": pad})
    # reflect padding is not implemented for uint8; chunks keep the float copy small
    chunks = [F.pad(part.float(), (pad,) * 4, mode="reflect").to(torch.uint8) for part in images.images.split(4096)]
    padded = torch.cat(chunks).permute(0, 2, 3, 1).contiguous().to(device)
    return ViewedSet(padded, images.labels.to(device), images.images.shape[-1], normalise, plan, seed)


def normalisation_of(info: DataInfo) -> Normalisation:
    """Statistics of the training split."""
    return Normalisation(info.mean, info.std)
