"""What a teacher answers: from the kept logits of every view, or by running in every step."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.answers import Answers, MixedLogits
from core.candidate import fingerprint
from core.config import Config, TrainConfig, ViewsConfig
from core.data.types import DataInfo
from core.errors import UserError
from core.files import made_once
from core.layers import evaluating
from core.losses import scales_fit, scales_of
from core.sealed import SEAL_BYTES, read_array, write_array
from core.teacher import Teacher
from core.train import Device, at_size_of
from core.views import Normalisation, ViewedSet

LARGEST_KEPT = 64
"""Side in pixels. Larger images come in large sets with many classes: one view of ImageNet's would be 2.6 GB."""
HALF = 2
"""Bytes of a kept logit."""


def open_answers(
    teachers: Sequence[Teacher], config: Config, data: ViewedSet, info: DataInfo, device: Device, cache_dir: Path, grid: int
) -> Answers:
    """The answers of a study's teachers, kept or live as `views.cache` says. Raises UserError where the disk has no room for them."""
    if not is_kept(config.views, info.image_size):
        return _mixed([LiveLogits(teacher, data, device) for teacher in teachers], config)
    kept = [TeacherLogits(teacher, data, info.digest, device, cache_dir, grid) for teacher in teachers]
    check_room(sum(answers.missing_bytes(len(info.classes)) for answers in kept), cache_dir)
    return _mixed(kept, config)


def _mixed(answers: Sequence[Answers], config: Config) -> Answers:
    if len(answers) == 1:
        return answers[0]
    weights = config.teacher_mix.weights or (1.0,) * len(answers)
    return MixedLogits(tuple(answers), tuple(weight / sum(weights) for weight in weights), config.teacher_mix.rule)


# --- one teacher -----------------------------------------------------------------------------------------------------


class LiveTeacher:
    """Runs a teacher under inference mode and autocast on images that are normalised as `data` are, and counts them."""

    def __init__(self, teacher: Teacher, normalise: Normalisation, device: Device) -> None:
        self.teacher, self.device = teacher, device
        self.forward_images = 0
        before, after = normalise, teacher.normalise
        pairs = list(zip(before.mean, before.std, after.mean, after.std, strict=True))
        self._same = before == after
        self._scale = _per_channel([std / own_std for _, std, _, own_std in pairs], device)
        self._shift = _per_channel([(mean - own_mean) / own_std for mean, _, own_mean, own_std in pairs], device)

    def cells(self, images: Tensor, grid: int) -> Tensor:
        """Logits float32 (B, K, grid * grid) of every cell of the feature map; grid 1 takes any network."""
        model: Any = self.teacher.model
        with torch.inference_mode(), self.device.autocast():
            if grid == 1:
                found = model(self._seen(images)).unsqueeze(2)
            else:
                pooled = F.adaptive_avg_pool2d(model.features(self._seen(images)), grid).flatten(2)
                found = model.classifier(pooled.transpose(1, 2)).transpose(1, 2)
        return found.float().clone()  # autograd keeps no tensor that was made under inference mode

    def maps(self, images: Tensor) -> Tensor:
        """The last feature map float32 (B, C, h, w)."""
        model: Any = self.teacher.model
        with torch.inference_mode(), self.device.autocast():
            found = model.features(self._seen(images))
        return found.float().clone()

    def _seen(self, images: Tensor) -> Tensor:
        self.forward_images += len(images)
        return images if self._same else images * self._scale + self._shift


def _per_channel(values: Sequence[float], device: Device) -> Tensor:
    return torch.tensor(values, device=device.device).view(1, -1, 1, 1)


class _OneTeacher:
    """What kept and live answers of a teacher have in common."""

    def __init__(self, teacher: Teacher, data: ViewedSet, device: Device) -> None:
        self.teacher, self.data, self.device = teacher, data, device
        self.live = LiveTeacher(teacher, data.normalise, device)

    @property
    def digest(self) -> str:
        """Of the teacher."""
        return self.teacher.digest

    @property
    def forward_images(self) -> int:
        """Images that the teacher really saw."""
        return self.live.forward_images

    def maps(self, images: Tensor) -> Tensor:
        """float32 (B, C, h, w): feature maps are too large to keep."""
        return self.live.maps(images)

    def softened(self, temperature: float) -> Self:
        """Itself: one teacher's logits are the same at every temperature."""
        return self


class TeacherLogits(_OneTeacher):
    """Teacher logits of every view of the training split, float16 (V, N, K, G * G), computed when first asked for and kept on disk.

    G is the finest grid of SDD that the study may ask for: coarser regions are averages of it, as the classifier is linear.
    The key holds teacher, data, view plan and G, not how many views there are: with more of them those that are kept stay. A file appears
    complete or not at all, so workers may share the folder, and is sealed: one of another key, or not as it was written, is made anew.
    With `views.average` the answer to a whole image is the mean over all its views; no view is computed for that alone.
    """

    def __init__(self, teacher: Teacher, data: ViewedSet, data_digest: str, device: Device, cache_dir: Path, grid: int = 1) -> None:
        """`grid` > 1 takes a teacher that `check_regions` lets pass."""
        super().__init__(teacher, data, device)
        key = fingerprint(teacher.digest, data_digest, data.plan.one_view(), data.seed, len(data), str(device.amp), grid)
        self.folder, self.grid = cache_dir / "logits" / key, grid
        self.views: dict[int, Tensor] = {}
        self._mean: Tensor | None = None

    def __call__(self, indices: Tensor, view: int, images: Tensor | None = None) -> Tensor:
        """float32 (B, K) for the images at `indices` under view `view`, or over all views with `views.average`."""
        if self.data.plan.average:
            return self._mean_of_views()[indices]
        return self._cells(indices, view).mean(2)

    def regions(self, indices: Tensor, view: int, grid: int, images: Tensor | None = None) -> Tensor:
        """float32 (B, K, N) for the scales up to `grid` <= G."""
        return _at_scales(self._cells(indices, view), grid)

    def missing_bytes(self, classes: int) -> int:
        """What is still to be written to disk."""
        missing = sum(not (self.folder / _file_name(view)).exists() for view in range(self.data.plan.number))
        return missing * view_bytes(len(self.data), classes, self.grid)

    def _mean_of_views(self) -> Tensor:
        """(N, K); a view is read, added and let go."""
        if self._mean is None:
            total = torch.zeros(())
            for view in range(self.data.plan.number):
                total = total.to(self.data.labels.device) + self._load(view).float().mean(2)
            self._mean = total / self.data.plan.number
        return self._mean

    def _cells(self, indices: Tensor, view: int) -> Tensor:
        if view not in self.views:
            self.views[view] = self._load(view)
        return self.views[view][indices].float()

    def _load(self, view: int) -> Tensor:
        path = self.folder / _file_name(view)
        logits = read_array(path)
        if logits is None:
            with made_once(path):
                logits = read_array(path)  # it may have been made while waiting
                if logits is None:
                    logits = self._compute(view).cpu().numpy().astype(np.float16)
                    write_array(path, logits)
        return torch.from_numpy(logits).to(self.data.labels.device)

    def _compute(self, view: int, batch: int = 500) -> Tensor:
        """float32 (N, K, G * G) within float16's range. Raises UserError where the teacher overflows: no trial could learn from that."""
        order = [(indices, view) for indices in torch.arange(len(self.data)).split(batch)]
        logits = torch.cat([self.live.cells(images, self.grid) for images, _, _ in self.data.batches(order)])
        wrong = int((~logits.isfinite().flatten(1).all(1)).sum())
        if wrong:
            raise UserError(
                f"a teacher's logits must be finite, but those of {self.teacher.name} are not for {wrong} of {len(logits)} images in "
                f"{self.device.amp or torch.float32}; set hardware.amp=off where it is on, or mend the teacher's weights"
            )
        return logits.clamp(-60000.0, 60000.0)


class LiveLogits(_OneTeacher):
    """A teacher that runs on every batch: for images too large or too many to keep its logits (`views.cache: off`)."""

    def __call__(self, indices: Tensor, view: int, images: Tensor | None = None) -> Tensor:
        """float32 (B, K); without `images` the batch is cut anew."""
        return self.live.cells(self._batch(indices, view, images), 1)[..., 0]

    def regions(self, indices: Tensor, view: int, grid: int, images: Tensor | None = None) -> Tensor:
        """float32 (B, K, N) for the scales up to `grid`."""
        return _at_scales(self.live.cells(self._batch(indices, view, images), grid), grid)

    def _batch(self, indices: Tensor, view: int, images: Tensor | None) -> Tensor:
        return self.data.batch(indices, view) if images is None else images


def _at_scales(cells: Tensor, grid: int) -> Tensor:
    """(B, K, G * G) of the finest grid -> (B, K, N) of the scales up to `grid` <= G."""
    side = round(cells.shape[2] ** 0.5)
    square = cells.unflatten(2, (side, side))
    return torch.cat([F.adaptive_avg_pool2d(square, scale).flatten(2) for scale in scales_of(grid)], 2)


def _file_name(view: int) -> str:
    return f"view_{view:02d}.npy"


# --- laws ------------------------------------------------------------------------------------------------------------


def is_kept(plan: ViewsConfig, image_size: int) -> bool:
    """Whether teacher logits are computed once and kept: `views.cache`, where `auto` means images of at most LARGEST_KEPT pixels a side."""
    return plan.cache == "on" or (plan.cache == "auto" and image_size <= LARGEST_KEPT)


def check_average(plan: ViewsConfig, image_size: int) -> None:
    """Raises UserError where answers are to be averaged over views of which nothing is kept."""
    if plan.average and not is_kept(plan, image_size):
        side = f"images of {image_size} pixels"
        raise UserError(f"views.average needs kept logits, but those of {side} are not kept; set views.cache=on, or leave average out")


def view_bytes(count: int, classes: int, grid: int) -> int:
    """Bytes on disk of one teacher's logits of one view of `count` images; the header is counted with 128, and the seal is behind."""
    return count * classes * grid**2 * HALF + 128 + SEAL_BYTES


def check_room(needed: int, folder: Path, spare: int = 0) -> None:
    """Raises UserError unless the disk of `folder` has `needed` bytes free for logits; `spare` are bytes that count as free."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free + spare
    if free < needed:
        raise UserError(
            f"kept teacher logits must fit on the disk, but need {needed:,} bytes and {folder} has {free:,} free; "
            f"set views.cache=off (the teacher then runs in every step), a smaller views.number or distil.grid, or free some"
        )


@torch.no_grad()
def check_regions(model: Any, images: Tensor, grid: int, who: str, method: str = "SDD") -> None:
    """Raises UserError unless SDD can look at the regions of `model` on images (B, C, H, W): logits of regions average to its logits.

    Losses on feature maps (`method`) ask the same of a network: its map, and logits that are made of it.
    """
    if not callable(getattr(model, "features", None)) or not isinstance(getattr(model, "classifier", None), nn.Linear):
        raise UserError(
            f"{method} needs a network with features(x) -> map and a linear classifier, but {who} has none; use kd, dkd or lskd"
        )
    with evaluating(model):
        features, logits = model.features(images), model(images)
    if features.ndim != 4 or not torch.allclose(model.classifier(features.mean((2, 3))), logits, rtol=1e-3, atol=1e-3):
        raise UserError(
            f"{method} needs logits that are the classifier of the mean feature, but those of {who} are not; use kd, dkd or lskd"
        )
    _check_grid(features, images, grid, who)


@torch.no_grad()
def check_early_regions(model: Any, images: Tensor, grid: int, recipes: Mapping[str, TrainConfig], who: str) -> None:
    """Raises UserError where the grid does not fit the map of `images` (B, C, H, W) as small as one of the named `recipes` shows them.

    A network that sees itself on images of one size alone is for `check_sizes`.
    """
    for name, recipe in recipes.items():
        for _, until in recipe.early_sizes:
            small = at_size_of(images, recipe, math.nextafter(until, 0.0))
            with evaluating(model):
                _check_grid(model.features(small), small, grid, f"{who} under {name}.early_sizes")


def _check_grid(features: Tensor, images: Tensor, grid: int, who: str) -> None:
    sides = features.shape[2:]
    if not scales_fit(sides, scales_of(grid)):
        best = max(each for each in scales_of(grid) if scales_fit(sides, scales_of(each)))
        found, seen = (f"{tensor.shape[-2]} x {tensor.shape[-1]}" for tensor in (features, images))
        raise UserError(
            f"SDD's grid must divide a feature map of several cells, or repeat them, but {who} has a map of {found} and grid {grid}"
            f" on images of {seen}; use distil.grid {best}, or images of another size"
        )
