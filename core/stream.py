"""Views of images that stay files: decoded and cropped by worker processes, ahead of the training that asks for them.

The plan of a view stays replayable: the seed, the view and the number of the image decide crop and flip, whoever decodes it.
References: C. Szegedy et al., "Going Deeper with Convolutions", 2015 (random resized crops), as torchvision draws them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import functional as transforms

from core.config import ViewsConfig
from core.data.files import BAD_REMEDY, ImageFiles
from core.data.images import load_upright, quiet_decoder
from core.errors import Disturbed, UserError
from core.views import Normalisation, Order

ASPECT = (3 / 4, 4 / 3)
"""Narrowest and widest crop, width over height."""
TRIES = 10


class Crop(NamedTuple):
    """What a view shows of an image, in pixels of the file, before it is scaled."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


@dataclass(frozen=True)
class StreamedViews:
    """A training split as files: view v of image i is a random resized crop, mirrored in every other view."""

    files: ImageFiles
    labels: Tensor
    """int64 (N,), on the training device"""
    normalise: Normalisation
    plan: ViewsConfig
    seed: int

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, view: int) -> Tensor:
        """View `view` of the images at `indices`, decoded here and now."""
        return self._input(self.files.decoded(indices, partial(decode_view, self.files, self.plan, self.seed, view)))

    def plain(self, indices: Tensor) -> Tensor:
        """The images at `indices` without augmentation."""
        return self._input(self.files.take(indices))

    def batches(self, order: Order) -> Iterator[tuple[Tensor, Tensor, int]]:
        """(images, indices, view) of every batch of `order`, decoded ahead by `files.workers` processes.

        Raises UserError naming a file that cannot be decoded.
        """
        for images, indices, view, bad in self._read_ahead(order):
            if bad:
                raise Disturbed(f"{bad}; {BAD_REMEDY}")
            yield self._input(images), indices.to(self.labels.device, non_blocking=True), view

    def _read_ahead(self, order: Order) -> Iterator[tuple[Tensor, Tensor, int, str]]:
        """What `_Reader` gives for every batch of `order`, in that order."""
        with warnings.catch_warnings():
            # more workers than cores are the user's choice: reading from a slow disk takes none
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                _Reader(self.files, self.plan, self.seed),
                batch_size=None,  # an item of the order is a batch
                sampler=((indices.tolist(), view) for indices, view in order),
                num_workers=self.files.workers,
                pin_memory=self.labels.device.type == "cuda",
                generator=torch.Generator(),  # else its seeds are drawn from torch's own, of which dropout draws as well
            )
            return iter(loader)

    def _input(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) on the CPU -> what a network is given."""
        on_device = images.to(self.labels.device, non_blocking=True)
        return self.normalise(on_device).contiguous(memory_format=torch.channels_last)


class _Reader(Dataset[tuple[Tensor, Tensor, int, str]]):
    """Batch by (indices, view): uint8 images (B, C, S, S), the indices, the view, and what is wrong with the first bad file.

    An exception would come out of a worker with its traceback as the message.
    """

    def __init__(self, files: ImageFiles, plan: ViewsConfig, seed: int) -> None:
        self.files, self.plan, self.seed = files, plan, seed

    def __getitem__(self, key: tuple[list[int], int]) -> tuple[Tensor, Tensor, int, str]:
        indices, view = key
        try:
            with quiet_decoder():
                images = [decode_view(self.files, self.plan, self.seed, view, index) for index in indices]
        except UserError as error:
            return torch.empty(0), torch.empty(0), view, str(error)
        return torch.from_numpy(np.stack(images)), torch.tensor(indices), view, ""


def decode_view(files: ImageFiles, plan: ViewsConfig, seed: int, view: int, index: int) -> np.ndarray:
    """View `view` of image `index`: uint8 (C, S, S). Raises UserError naming a file that cannot be decoded."""
    image = load_upright(files.path(index), files.channels)
    crop = draw_crop(image.width, image.height, plan, seed, view, index)
    seen = transforms.resized_crop(image, crop.top, crop.left, crop.height, crop.width, [files.image_size] * 2)
    pixels = np.asarray(transforms.horizontal_flip(seen) if crop.flip else seen)
    return np.ascontiguousarray(pixels.reshape(*pixels.shape[:2], files.channels).transpose(2, 0, 1))


def draw_crop(width: int, height: int, plan: ViewsConfig, seed: int, view: int, index: int) -> Crop:
    """The crop of one view of an image of `width` x `height` pixels: a share of `plan.min_area` to 1 of its area, drawn uniformly.

    A picture too narrow or too flat for ten crops in a row gives its centre, as wide or as flat as allowed.
    """
    # RandomState's streams are frozen by numpy's policy, so views outlive numpy versions
    rng = np.random.RandomState([seed, view, index])
    first = np.random.RandomState([seed, index]).randint(2)
    flip = plan.flip and bool((first + view) % 2)
    for _ in range(TRIES):
        area = width * height * rng.uniform(plan.min_area, 1.0)
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            return Crop(rng.randint(height - high + 1), rng.randint(width - wide + 1), high, wide, flip)
    wide, high = min(width, round(height * ASPECT[1])), min(height, round(width / ASPECT[0]))
    return Crop((height - high) // 2, (width - wide) // 2, high, wide, flip)
