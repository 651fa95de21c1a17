"""Distillation in one call, for people who want only that: your networks, your folder of images, no YAML and no study.

    from core.simple import distil_folder
    student, report = distil_folder(teacher, student, "images/", epochs=10, lr=0.05, momentum=0.9, temperature=4.0)

The folder holds one folder per class (or train/<class>/*), or images without any labels: then the teacher alone teaches.
`quantize_model` and `dequantize_model` (core/quantise/whole.py) can be imported from here as well. docs/distil.md is the guide.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from core.candidate import DistilPlan, Frozen, fingerprint
from core.config import Config, DataConfig, HardwareConfig, TeacherConfig, TrainConfig, ViewsConfig
from core.data.folder import load_folder, load_listing
from core.data.listing import list_unlabelled
from core.data.splits import split_search
from core.data.types import DataInfo, SearchData
from core.distil import distil
from core.errors import UserError
from core.layers import trial_run
from core.lora import check_rank
from core.losses import DISTIL_LOSSES
from core.methods import METHODS, check_classes, check_method, method_of, needs_labels
from core.quantise.whole import dequantize_model, quantize_model
from core.tables import lookup, nearest
from core.teacher import Teacher, best_normalisation, stated_normalisation, weights_digest
from core.teacher_logits import check_average, check_early_regions, check_regions, open_answers
from core.train import Device, EpochFn, check_sizes, open_device, predict, predict_all, share
from core.views import Normalisation, ViewedSet, normalisation_of, viewed
from core.yaml_io import parse

__all__ = ["Distilled", "Report", "dequantize_model", "distil_folder", "quantize_model"]

WHERE = "distil_folder"
REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What a network's forward raises on images that it was not made for."""

GUESSED = (
    "without labels nothing shows how the teacher's inputs were normalised, so the images' own mean and std are taken;"
    " pass mean= and std= if it was trained with others"
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What a distillation gave. Accuracies and agreement are shares in [0, 1] of the `held_out` images, which trained nothing."""

    accuracy: float | None
    """Of the student; None without labels, as is the teacher's."""
    teacher_accuracy: float | None
    """Of several: that of the mean of their probabilities."""
    agreement: float
    """Held-out images on which student and teacher name the same class."""
    images: int
    held_out: int
    images_per_second: float
    """Training images over wall time, with those passes of the teacher that this call had to make."""
    teacher_forward_images: int
    """Images that the teacher was run on to teach; 0 once its answers are in the cache."""
    seconds: float
    losses: tuple[float, ...]
    """Mean loss of every epoch."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """x = (bytes / 255 - mean) / std per channel is what the student was given."""


class Distilled(NamedTuple):
    """The student in eval mode, and how it went."""

    student: nn.Module
    report: Report


def distil_folder(
    teacher: nn.Module | Sequence[nn.Module],
    student: nn.Module,
    images: str | Path,
    *,
    epochs: float = 10.0,
    lr: float = 0.05,
    momentum: float = 0.9,
    temperature: float | None = None,
    loss: str = "kd",
    labelled: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    teacher_mix: Mapping[str, Any] | None = None,
    seed: int = 0,
    cache_dir: str | Path = "runs/.cache",
    on_epoch: EpochFn | None = None,
    **options: Any,
) -> Distilled:
    """Train `student` in place to answer as `teacher` does on the images of a folder; all are left on the training device.

    They map normalised images (B, C, S, S) to logits (B, K); with labels, logit i is the i-th class folder by name. `labelled` None:
    images right in the folder have no labels, images in class folders have. `temperature` None is the one published for `loss`.
    `mean` and `std` per channel are those that the teacher was trained with; None tries the usual ones on labelled images, and takes
    the images' own without labels. Several teachers answer as `teacher_mix` says (TeacherMix). `options` are the keys of DataConfig,
    DistilPlan, TrainConfig, ViewsConfig and HardwareConfig: ce_weight=0, batch_size=64, image_size=64, device="cuda", ...
    Raises UserError for bad input, TrainingDiverged when the loss is no longer finite.
    """
    teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    flat = _is_flat(Path(images)) if labelled is None else not labelled
    stated = {"epochs": epochs, "lr": lr, "momentum": momentum, "temperature": temperature, "loss": loss}
    settings = _settings(({"ce_weight": 0.0} if flat else {}) | stated | options, Path(images), seed)
    config = _mixing(teachers, teacher_mix, settings)
    _check_plan(settings.distil, config, flat)
    device = open_device(settings.hardware)
    data = _load(settings.data, Path(cache_dir), flat)
    check_average(settings.views, data.info.image_size)
    info = _check_networks(teachers, student, data.info)
    check_classes(loss, len(info.classes), len(teachers), config.teacher_mix.rule, f"loss is {loss}")
    if settings.train.lora is not None:
        check_rank(student, settings.train.lora.rank)
    given = _given(mean, std, info)
    frozen = [_frozen(model, given, data, device) for model in teachers]
    normalise = frozen[0].normalise
    train_set = viewed(data.train, normalise, settings.views, seed, device.device)
    grid = _check_maps(frozen, student.to(device.device), train_set, settings)
    answers = open_answers(frozen, config, train_set, info, device, Path(cache_dir), grid)
    losses: list[float] = []
    start = time.perf_counter()
    distil(student, settings.distil, train_set, answers, settings.train, device, seed=seed, on_epoch=_noting(losses, on_epoch))
    seconds = time.perf_counter() - start
    accuracy, teacher_accuracy, agreement = _scores(student, frozen, normalise, data, device)
    report = Report(
        accuracy=accuracy,
        teacher_accuracy=teacher_accuracy,
        agreement=agreement,
        images=len(train_set),
        held_out=len(data.search),
        images_per_second=settings.train.epochs * len(train_set) / seconds,
        teacher_forward_images=answers.forward_images,
        seconds=seconds,
        losses=tuple(losses),
        mean=normalise.mean,
        std=normalise.std,
    )
    return Distilled(student, report)


def _noting(losses: list[float], on_epoch: EpochFn | None) -> EpochFn:
    """Keep every epoch's mean loss, and tell the user's function."""

    def epoch_done(done: float, total: float, rate: float, mean_loss: float) -> None:
        losses.append(mean_loss)
        if on_epoch is not None:
            on_epoch(done, total, rate, mean_loss)

    return epoch_done


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    data: DataConfig
    distil: DistilPlan
    train: TrainConfig
    views: ViewsConfig
    hardware: HardwareConfig


SECTIONS: dict[str, type[Frozen]] = {
    "data": DataConfig,
    "distil": DistilPlan,
    "train": TrainConfig,
    "views": ViewsConfig,
    "hardware": HardwareConfig,
}
OURS = {"name", "dir", "seed", "test_fraction", "init"}
"""Keys that have no meaning here, or an argument of their own."""


def _settings(options: Mapping[str, Any], folder: Path, seed: int) -> _Settings:
    """Every option in the section that declares it, checked there. Raises UserError for an unknown or impossible one."""
    home = {key: section for section, model in SECTIONS.items() for key in model.model_fields if key not in OURS}
    given: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    given["data"] = {"name": "folder", "dir": folder, "seed": seed}
    for key, value in options.items():
        if key not in home:
            raise UserError(f"{WHERE} has no option {key!r}{nearest(key, home)}; known: {', '.join(sorted(home))}")
        given[home[key]][key] = value
    return _Settings(**{section: parse(model, given[section], WHERE) for section, model in SECTIONS.items()})  # type: ignore[arg-type]


def _mixing(teachers: Sequence[nn.Module], teacher_mix: Mapping[str, Any] | None, settings: _Settings) -> Config:
    """How the teachers answer: views and mixture, as the configuration of a study with as many teachers."""
    if not teachers:
        raise UserError("distil_folder needs a teacher, but got an empty list; give one network or several")
    mixed = parse(Config, {"more_teachers": [{}] * (len(teachers) - 1), "teacher_mix": dict(teacher_mix or {})}, WHERE)
    return mixed.model_copy(update={"views": settings.views})


def _check_plan(plan: DistilPlan, config: Config, flat: bool) -> None:
    lookup(DISTIL_LOSSES, "loss", plan.loss)
    check_method(plan.loss, config, f"loss is {plan.loss}")
    if flat and needs_labels(plan.loss, plan.ce_weight):
        free = ", ".join(name for name in METHODS if not needs_labels(name, 0.0))
        raise UserError(
            f"images without labels take ce_weight 0 and a loss that asks for none ({free}), but got ce_weight {plan.ce_weight:g} and"
            f" loss {plan.loss!r}; change them, or sort the images into class folders"
        )


# --- images ----------------------------------------------------------------------------------------------------------


def _is_flat(folder: Path) -> bool:
    """Whether images lie right in the folder, and not in folders of classes. Raises UserError where they do both."""
    nested = {"/" in entry.path for entry in list_unlabelled(folder).train}
    if len(nested) > 1:
        raise UserError(
            f"images must lie in class folders, or without labels right in the folder, but {folder} has both;"
            f" pass labelled=True to leave out those in the folder itself, or labelled=False to take all without labels"
        )
    return not nested.pop()


def _load(config: DataConfig, cache_dir: Path, flat: bool) -> SearchData:
    """Training images and the `search_fraction` held out; labels are -1 where there are none. No image of a test/ folder is used."""
    assert config.dir is not None
    raw = load_listing(list_unlabelled(config.dir), config, cache_dir) if flat else load_folder(config, cache_dir)
    if flat:
        raw = replace(raw, train=raw.train.labelled(torch.full_like(raw.train.labels, -1)), labelled=False)
    # nothing is chosen here, so no test split is cut off beside the held-out images
    return split_search(replace(raw, test=raw.train), config)


# --- networks --------------------------------------------------------------------------------------------------------


def _check_networks(teachers: Sequence[nn.Module], student: nn.Module, info: DataInfo) -> DataInfo:
    """`info`, with as many classes as there are logits. Raises UserError for networks that fit neither each other nor the images."""
    learned = {id(value) for value in student.parameters()}
    if any(id(value) in learned for teacher in teachers for value in teacher.parameters()):
        raise UserError("teacher and student must not share weights, as the student's change; give a copy (copy.deepcopy)")
    if not learned or not any(value.requires_grad for value in student.parameters()):
        raise UserError("the student must have parameters that train, but has none; call student.requires_grad_(True)")
    for who, model in (*(("teacher", teacher) for teacher in teachers), ("student", student)):
        if odd := {str(value.dtype) for value in model.parameters() if value.dtype != torch.float32}:
            raise UserError(f"networks must be float32, but the {who} has parameters of {', '.join(sorted(odd))}; call .float() first")
    given = [_count_logits(model, info, "teacher", training=False) for model in teachers]
    given += [_count_logits(student, info, "student", training=training) for training in (False, True)]
    if len(set(given)) > 1:
        raise UserError(f"teacher and student must give equally many logits, but give {', '.join(map(str, given))}")
    if not info.labelled:
        return replace(info, classes=tuple(str(index) for index in range(given[0])))
    if given[0] != len(info.classes):
        raise UserError(
            f"the networks must have the folder's {len(info.classes)} classes, but give {given[0]} logits;"
            f" pass labelled=False to learn from the teacher alone"
        )
    return info


def _count_logits(model: nn.Module, info: DataInfo, who: str, *, training: bool) -> int:
    shape = " x ".join(map(str, info.shape))
    try:
        output = trial_run(model, info.shape, training=training)
    except REFUSALS as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"the {who} must take images of {shape}, but refuses them ({reason}); set image_size= and channels=") from error
    if not isinstance(output, Tensor) or output.ndim != 2:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        mode = " in training mode" if training else ""
        raise UserError(f"the {who} must map images of {shape} to logits (B, K), but gives {found}{mode}; wrap it in a module that does")
    return output.shape[1]


def _given(mean: Sequence[float] | None, std: Sequence[float] | None, info: DataInfo) -> Normalisation | None:
    stated = {key: list(value) for key, value in (("mean", mean), ("std", std)) if value is not None}
    return stated_normalisation(parse(TeacherConfig, stated, WHERE), info)


def _frozen(model: nn.Module, normalise: Normalisation | None, data: SearchData, device: Device) -> Teacher:
    """A teacher as the machinery knows it."""
    if normalise is None and not data.info.labelled:
        log.warning(GUESSED)
        normalise = normalisation_of(data.info)
    normalise = normalise or best_normalisation(model, data, device)
    model = model.to(device.device).to(memory_format=torch.channels_last).eval()
    probed = predict(model, data.search.take(torch.arange(min(8, len(data.search)))), normalise, device, amp=False)
    # equal weights in another forward are another teacher: its answers tell, up to the rounding of another machine
    digest = fingerprint(weights_digest(model, normalise), probed.round(decimals=2).tolist())
    return Teacher(model, normalise, digest, float("nan"), type(model).__name__)


def _check_maps(teachers: Sequence[Teacher], student: nn.Module, data: ViewedSet, settings: _Settings) -> int:
    """The grid at which the loss looks at regions, else 1.

    Raises UserError where it finds no map, or no regions of equal size, also on images that are small at first.
    """
    method, recipes = method_of(settings.distil.loss), {WHERE: settings.train}
    images = data.plain(torch.arange(min(2, len(data)), device=data.labels.device))
    grid, name = (settings.distil.grid, "SDD") if method.regions else (1, settings.distil.loss)
    check_sizes(student, images, recipes, "the student")
    if method.regions or method.maps:
        for who, model in (*(("the teacher", teacher.model) for teacher in teachers), ("the student", student)):
            check_regions(model, images, grid, who, name)
        check_early_regions(student, images, grid, recipes, "the student")
    if method.maps:  # those of the very images that the student sees
        for teacher in teachers:
            check_sizes(teacher.model, images, recipes, "the teacher")
    return grid


def _scores(
    student: nn.Module, teachers: Sequence[Teacher], normalise: Normalisation, data: SearchData, device: Device
) -> tuple[float | None, float | None, float]:
    """Accuracies of student and teachers, None without labels, and their agreement, on the held-out images."""
    learned = predict_all(student, data.search, normalise, device).argmax(1)
    probabilities = [predict_all(each.model, data.search, each.normalise, device).softmax(1) for each in teachers]
    taught, labels = torch.stack(probabilities).mean(0).argmax(1), data.search.labels.cpu()

    agreement = share(learned == taught)
    return (share(learned == labels), share(taught == labels), agreement) if data.info.labelled else (None, None, agreement)
