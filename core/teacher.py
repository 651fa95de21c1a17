"""The network to distil from: trained once per machine and kept, or the user's own; its answers are core/teacher_logits.py."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.candidate import SELF, fingerprint
from core.checkpoint import SUFFIX
from core.config import Config, TeacherConfig, ViewsConfig
from core.data.types import DataInfo, SearchData
from core.errors import UserError
from core.files import made_once
from core.infobatch import InfoBatch
from core.lora import adapters, check_rank
from core.start import Start, load_start
from core.students.own import load_own_model, load_weights, save_weights, split_spec
from core.students.own_sources import source_digest
from core.students.zoo import find_student
from core.train import Batch, Device, EpochFn, check_sizes, fit, predict, predict_all, share
from core.views import Normalisation, normalisation_of, viewed

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
    return find_student(name)(classes=len(info.classes), channels=info.channels, image_size=info.image_size, width=width)


def obtain_teacher(
    config: Config,
    data: SearchData,
    device: Device,
    cache_dir: Path,
    on_epoch: EpochFn | None = None,
    on_wait: Callable[[str], None] = lambda text: None,
) -> Teacher:
    """Load the user's weights, or the kept ones, or train on the training split and keep them.

    Given or published weights are trained further where their head is for other classes, or `teacher.train.lora` asks for it.

    The key of a kept teacher holds everything that made it: recipe, data, views, seed, precision. An interrupted training of it goes on
    from its last whole epoch. `on_wait` gets a line when another process is training the same one, which is then waited for.
    """
    torch.manual_seed(config.seed)
    model = build_teacher_network(config.teacher, data.info)
    normalise = stated_normalisation(config.teacher, data.info)
    start = load_start(model, config.teacher, data.info.channels)
    normalise = normalise or start.normalise
    if normalise is None:
        normalise = best_normalisation(model, data, device) if start.given else normalisation_of(data.info)
    if not start.given or start.new_head or config.teacher.train.lora:
        path = _kept(model, normalise, config, data, device, cache_dir, start)
        if not path.exists():
            with made_once(path, on_wait):
                if not path.exists():  # it may have been made while waiting
                    kept = path.with_suffix(SUFFIX)
                    _train(model, normalise, config, data, device, on_epoch, start, kept)
                    save_weights(model, path)
                    kept.unlink(missing_ok=True)
        load_weights(model.cpu(), path)
    model = model.to(device.device).to(memory_format=torch.channels_last).eval().requires_grad_(False)
    logits = predict_all(model, data.search, normalise, device)
    if logits.shape[1] != len(data.info.classes):
        raise UserError(f"the teacher must have the data's {len(data.info.classes)} classes, but gives {logits.shape[1]} logits")
    judge = data.search.labels.cpu() if data.info.labelled else logits.argmax(1)
    accuracy = share(logits.argmax(1) == judge)
    # equal weights in another forward are another teacher
    digest = fingerprint(weights_digest(model, normalise), config.teacher.name, network_digest(config.teacher))
    return Teacher(model, normalise, digest, accuracy, config.teacher.model or config.teacher.name)


def answered(data: SearchData, teacher: Teacher, device: Device) -> SearchData:
    """The same data; where nobody labelled it, what the teacher answers is what the search split is judged by."""
    if data.info.labelled:
        return data
    answers = predict_all(teacher.model, data.search, teacher.normalise, device).argmax(1)
    return replace(data, search=data.search.labelled(answers))


def weights_digest(model: nn.Module, normalise: Normalisation) -> str:
    """16 hex digits over every parameter and buffer and the input normalisation."""
    digest = hashlib.sha256(repr(normalise).encode())
    for name, value in model.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _kept(
    model: nn.Module, normalise: Normalisation, config: Config, data: SearchData, device: Device, cache_dir: Path, start: Start
) -> Path:
    """Where the weights are, or will be."""
    source = network_digest(config.teacher) + (weights_digest(model, normalise) if start.given else "")
    key = fingerprint(
        config.teacher, _views(config).augmentation(), data.info.digest, config.seed, str(device.amp), source, normalise.mean, normalise.std
    )
    return cache_dir / "teachers" / f"{key}.safetensors"


def _views(config: Config) -> ViewsConfig:
    """One for each epoch of the teacher's own training: of these nothing is kept."""
    return config.views.model_copy(update={"number": max(1, math.ceil(config.teacher.train.epochs))})


def _train(
    model: nn.Module,
    normalise: Normalisation,
    config: Config,
    data: SearchData,
    device: Device,
    on_epoch: EpochFn | None,
    start: Start,
    checkpoint: Path,
) -> None:
    if not data.info.labelled:
        raise UserError(
            f"unlabelled images cannot train the teacher, but the weights of {config.teacher.model or config.teacher.name} are not for"
            f" {len(data.info.classes)} classes; set data.classes to what it has"
        )
    prepare = None if config.teacher.model else getattr(model, "prepare", None)  # a user's network may mean something else by it
    if prepare is not None and not start.given:  # a network may look at images before it trains: airbench whitens its stem
        prepare(normalise(data.train.take(torch.arange(min(PREPARE_IMAGES, len(data.train))))))
    train_set = viewed(data.train, normalise, _views(config), config.seed, device.device)
    recipe = config.teacher.train
    check_sizes(model, train_set.plain(torch.arange(2, device=device.device)).cpu(), {"teacher.train": recipe}, "the teacher")
    if recipe.lora is not None:
        check_rank(model, recipe.lora.rank)
    chosen = InfoBatch(len(train_set), recipe.infobatch, recipe.epochs, config.seed, device.device)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        losses = F.cross_entropy(logits.float(), batch.labels, label_smoothing=recipe.label_smoothing, reduction="none")
        return chosen.mean(losses, batch.indices)

    taking_part = chosen if recipe.infobatch else None
    with adapters(model, recipe.lora, full=(start.new_head,), seed=config.seed):
        fit(model, train_set, loss, recipe, device, seed=config.seed, on_epoch=on_epoch, checkpoint=checkpoint, chosen=taking_part)


def network_digest(config: TeacherConfig) -> str:
    """Of the user's file and those that it imports, which may change under the same name; "" for a network of STUDENTS."""
    if not config.model:
        return ""
    return source_digest(split_spec(config.model)[0])


def stated_normalisation(config: TeacherConfig, info: DataInfo) -> Normalisation | None:
    if config.mean is None and config.std is None:
        return None
    mean, std = config.mean, config.std
    if mean is None or std is None or not len(mean) == len(std) == info.channels or min(std) <= 0:
        raise UserError(
            f"teacher.mean and teacher.std must both be given, one value per channel ({info.channels}), std > 0, but got {mean} and {std}"
        )
    if min(mean) < 0 or max(mean) > 1:
        raise UserError(f"teacher.mean must be in [0, 1], as pixels are, but got {mean}; divide mean and std of 0..255 by 255")
    return Normalisation(mean, std)


def best_normalisation(model: nn.Module, data: SearchData, device: Device) -> Normalisation:
    """Weights do not say how their inputs were normalised: take the usual way under which they classify training images best.

    State `teacher.mean` and `teacher.std` to decide it yourself.
    """
    channels = data.info.channels
    choices = [normalisation_of(data.info)]
    choices += [Normalisation((mean,) * channels, (std,) * channels) for mean, std in COMMON_NORMALISATIONS.values()]
    if channels == 3:
        choices.append(Normalisation(*IMAGENET))
    every = torch.arange(0, len(data.train), max(1, len(data.train) // 1000))
    images, labels = data.train.take(every).cpu(), data.train.labels.cpu()[every]

    def right(choice: Normalisation) -> int:
        return int((predict(model, images, choice, device, amp=False).argmax(1) == labels).sum())

    return max(choices, key=right)
