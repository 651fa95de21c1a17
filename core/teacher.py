"""The network to distil from: trained once per machine and kept, or the user's own; its logits computed once per view."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.candidate import SELF, fingerprint
from core.config import Config, TeacherConfig
from core.data.types import DataInfo, SearchData
from core.errors import UserError
from core.files import write_atomically
from core.layers import evaluating
from core.losses import scales_of
from core.students import STUDENTS
from core.students.checkpoints import remap
from core.students.own import load_own_model, load_weights, save_weights
from core.tables import lookup
from core.train import Device, EpochFn, fit, predict
from core.views import Normalisation, ViewedSet, normalisation_of, viewed

COMMON_NORMALISATIONS = {
    "pixels in [0, 1]": (0.0, 1.0),
    "pixels in [-1, 1]": (0.5, 0.5),
}
PREPARE_IMAGES = 2000
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Teacher:
    """A frozen network in eval mode on the training device. `digest` names its weights; accuracy in [0, 1] on the search split."""

    model: nn.Module
    normalise: Normalisation
    digest: str
    accuracy: float
    name: str


def build_teacher_network(config: TeacherConfig, info: DataInfo) -> nn.Module:
    """The untrained architecture: the user's file, or an entry of STUDENTS."""
    if config.model:
        return load_own_model(config.model, classes=len(info.classes), channels=info.channels, image_size=info.image_size)
    return _named(config.name, config.width, info)


def build_network(student: str, width: float, config: TeacherConfig, info: DataInfo) -> nn.Module:
    """The untrained dense network of a student name; `self` is the teacher's own architecture, at its own width."""
    return build_teacher_network(config, info) if student == SELF else _named(student, width, info)


def _named(name: str, width: float, info: DataInfo) -> nn.Module:
    build = lookup(STUDENTS, "student", name)
    return build(classes=len(info.classes), channels=info.channels, image_size=info.image_size, width=width)


def load_given_weights(model: nn.Module, config: TeacherConfig, path: Path) -> None:
    """Load the user's weights; those of a named network may be in a published layout (core/students/checkpoints.py)."""
    if config.model:
        load_weights(model, path)
        return
    try:
        load_weights(model, path, partial(remap, config.name))
    except UserError as error:
        own = "name your own network with --model my_net.py:build, or another one of the table with --set teacher.name=..."
        raise UserError(f"{error} (the teacher is {config.name}); {own}") from error


def obtain_teacher(config: Config, data: SearchData, device: Device, cache_dir: Path, on_epoch: EpochFn | None = None) -> Teacher:
    """Load the user's weights, or the kept ones, or train on the training split and keep them.

    The key of a kept teacher holds everything that made it: recipe, data, views, seed, precision.
    """
    torch.manual_seed(config.seed)
    model = build_teacher_network(config.teacher, data.info)
    normalise = _stated_normalisation(config.teacher, data.info)
    if config.teacher.weights:
        load_given_weights(model, config.teacher, config.teacher.weights)
        normalise = normalise or _best_normalisation(model, data, device)
    else:
        normalise = normalise or normalisation_of(data.info)
        _train_or_load(model, normalise, config, data, device, cache_dir, on_epoch)
    model = model.to(device.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    logits = predict(model, data.search.images, normalise, device, amp=False)
    if logits.shape[1] != len(data.info.classes):
        raise UserError(f"the teacher must have the data's {len(data.info.classes)} classes, but gives {logits.shape[1]} logits")
    accuracy = float((logits.argmax(1) == data.search.labels.cpu()).float().mean())
    # equal weights in another forward are another teacher
    digest = fingerprint(weights_digest(model, normalise), config.teacher.name, _source_digest(config.teacher))
    return Teacher(model, normalise, digest, accuracy, config.teacher.model or config.teacher.name)


def weights_digest(model: nn.Module, normalise: Normalisation) -> str:
    """16 hex digits over every parameter and buffer and the input normalisation."""
    digest = hashlib.sha256(repr(normalise).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _train_or_load(
    model: nn.Module,
    normalise: Normalisation,
    config: Config,
    data: SearchData,
    device: Device,
    cache_dir: Path,
    on_epoch: EpochFn | None,
) -> None:
    source = _source_digest(config.teacher)
    key = fingerprint(config.teacher, config.views, data.info.digest, config.seed, str(device.amp), source, normalise.mean, normalise.std)
    path = cache_dir / "teachers" / f"{key}.safetensors"
    if path.exists():
        load_weights(model, path)
        return
    prepare = getattr(model, "prepare", None)
    if prepare is not None:  # a network may look at images before it trains: airbench whitens its stem
        prepare(normalise(data.train.images[:PREPARE_IMAGES]))
    train_set = viewed(data.train, normalise, config.views, config.seed, device.device)
    smoothing = config.teacher.train.label_smoothing

    def loss(logits: Tensor, labels: Tensor, indices: Tensor, view: int) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)

    fit(model, train_set, loss, config.teacher.train, device, seed=config.seed, on_epoch=on_epoch)
    save_weights(model, path)


def _source_digest(config: TeacherConfig) -> str:
    """The user's file may change under the same name."""
    if not config.model:
        return ""
    return hashlib.sha256(Path(config.model.rpartition(":")[0]).read_bytes()).hexdigest()


def _stated_normalisation(config: TeacherConfig, info: DataInfo) -> Normalisation | None:
    if config.mean is None and config.std is None:
        return None
    mean, std = config.mean, config.std
    if mean is None or std is None or not len(mean) == len(std) == info.channels or min(std) <= 0:
        raise UserError(
            f"teacher.mean and teacher.std must both be given, one value per channel ({info.channels}), std > 0, but got {mean} and {std}"
        )
    return Normalisation(mean, std)


def _best_normalisation(model: nn.Module, data: SearchData, device: Device) -> Normalisation:
    """Weights do not say how their inputs were normalised: take the usual way under which they classify training images best.

    State `teacher.mean` and `teacher.std` to decide it yourself.
    """
    channels = data.info.channels
    choices = [normalisation_of(data.info)]
    choices += [Normalisation((mean,) * channels, (std,) * channels) for mean, std in COMMON_NORMALISATIONS.values()]
    if channels == 3:
        choices.append(Normalisation(*IMAGENET))
    step = max(1, len(data.train) // 1000)
    images, labels = data.train.images[::step].cpu(), data.train.labels[::step].cpu()

    def right(choice: Normalisation) -> int:
        return int((predict(model, images, choice, device, amp=False).argmax(1) == labels).sum())

    return max(choices, key=right)


class TeacherLogits:
    """Teacher logits of every view of the training split, float16 (V, N, K, G * G), computed when first asked for and kept on disk.

    G is the finest grid of SDD that the study may ask for: coarser regions are averages of it, as the classifier is linear.
    The key holds teacher, data, view plan and G. A file appears complete or not at all, so workers may share the folder.
    `forward_images` counts the images that the teacher really saw.
    """

    def __init__(self, teacher: Teacher, data: ViewedSet, data_digest: str, device: Device, cache_dir: Path, grid: int = 1) -> None:
        """`grid` > 1 takes a teacher that `check_regions` lets pass."""
        key = fingerprint(teacher.digest, data_digest, data.plan, data.seed, len(data), str(device.amp), grid)
        self.folder = cache_dir / "logits" / key
        self.teacher, self.data, self.device, self.grid = teacher, data, device, grid
        self.views: dict[int, Tensor] = {}
        self.forward_images = 0

    def __call__(self, indices: Tensor, view: int) -> Tensor:
        """float32 (B, K) for the images at `indices` under view `view`."""
        return self._cells(indices, view).mean(2)

    def regions(self, indices: Tensor, view: int, grid: int) -> Tensor:
        """float32 (B, K, N) for the scales up to `grid` <= G: global, then each grid row-major, as `region_logits`."""
        side = self.grid
        cells = self._cells(indices, view).unflatten(2, (side, side))
        return torch.cat([F.adaptive_avg_pool2d(cells, scale).flatten(2) for scale in scales_of(grid)], 2)

    def _cells(self, indices: Tensor, view: int) -> Tensor:
        if view not in self.views:
            self.views[view] = self._load(view)
        return self.views[view][indices].float()

    def _load(self, view: int) -> Tensor:
        path = self.folder / f"view_{view:02d}.npy"
        logits = _read_logits(path, len(self.data), self.grid**2)
        if logits is None:
            logits = self._compute(view).cpu().numpy().astype(np.float16)
            content = io.BytesIO()
            np.save(content, logits)
            write_atomically(path, content.getvalue())
        return torch.from_numpy(logits).to(self.data.labels.device)

    @torch.inference_mode()
    def _compute(self, view: int, batch: int = 500) -> Tensor:
        parts = []
        for indices in torch.arange(len(self.data), device=self.data.labels.device).split(batch):
            with self.device.autocast():
                parts.append(self._logits(self.data.batch(indices, view)).float())
        self.forward_images += len(self.data)
        return torch.cat(parts).clamp(-60000.0, 60000.0)

    def _logits(self, images: Tensor) -> Tensor:
        """(B, K, G * G) of the finest grid."""
        model: Any = self.teacher.model
        if self.grid == 1:
            return model(images).unsqueeze(2)
        cells = F.adaptive_avg_pool2d(model.features(images), self.grid).flatten(2)
        return model.classifier(cells.transpose(1, 2)).transpose(1, 2)


@torch.no_grad()
def check_regions(model: Any, images: Tensor, grid: int, who: str) -> None:
    """Raises UserError unless SDD can look at the regions of `model` on images (B, C, H, W): logits of regions average to its logits."""
    if not callable(getattr(model, "features", None)) or not isinstance(getattr(model, "classifier", None), nn.Linear):
        raise UserError(f"SDD needs a network with features(x) -> map and a linear classifier, but {who} has none; use kd, dkd or lskd")
    with evaluating(model):
        features, logits = model.features(images), model(images)
    if features.ndim != 4 or not torch.allclose(model.classifier(features.mean((2, 3))), logits, rtol=1e-3, atol=1e-3):
        raise UserError(f"SDD needs logits that are the classifier of the mean feature, but those of {who} are not; use kd, dkd or lskd")
    if features.shape[-1] % grid:
        side = f"{features.shape[-2]} x {features.shape[-1]}"
        raise UserError(f"SDD's grid must divide the feature map, but {who} has a map of {side} and grid {grid}; use a smaller distil.grid")


def _read_logits(path: Path, count: int, cells: int) -> np.ndarray | None:
    """The kept logits, or None when there are none or the file is damaged (it is then made anew)."""
    try:
        logits = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = logits.ndim == 3 and logits.shape[0] == count and logits.shape[2] == cells and logits.dtype == np.float16
    return logits if fits else None
