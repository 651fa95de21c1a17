"""Which distillation methods go with which teachers, views and networks, checked before the expensive part of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.candidate import SELF
from core.config import Config
from core.errors import UserError, one_line
from core.methods import FEATURE_LOSSES, METHODS, REGION_LOSSES, check_classes, check_method
from search.space import Space, options

if TYPE_CHECKING:
    from core.data.types import DataInfo
    from core.teacher import Teacher
    from core.views import ViewedSet


def check_methods(space: Space, config: Config) -> None:
    """Raises UserError for a loss that does not go with the teachers or views of the configuration; imports nothing heavy."""
    parent = config.parent.distil.loss
    plain = ", ".join(name for name, method in METHODS.items() if not (method.regions or method.maps))
    if parent in (*REGION_LOSSES, *FEATURE_LOSSES):
        raise UserError(f"parent.distil.loss must look at logits of the whole image ({plain}), but got {parent}; choose one of those")
    for loss, said in _asked(space, config):
        check_method(loss, config, said)


def _asked(space: Space, config: Config) -> list[tuple[str, str]]:
    """Every loss of a run, and its place in words."""
    parent = config.parent.distil.loss
    return [*((loss, f"distil.loss may be {loss}") for loss in options(space.distil.loss)), (parent, f"parent.distil.loss is {parent}")]


def looks_at_regions(space: Space) -> bool:
    """Whether a trial may use a loss on the regions of feature maps."""
    return any(loss in REGION_LOSSES for loss in options(space.distil.loss))


def finest_grid(space: Space) -> int:
    """The finest SDD grid that a trial may ask teacher logits for; 1 where no loss looks at regions."""
    return max(options(space.distil.grid)) if looks_at_regions(space) else 1


def check_answers(space: Space, config: Config, info: DataInfo, images: int, cache: Path) -> None:
    """Raises UserError where the logits of `images` training images cannot be kept as the configuration asks, before a teacher trains.

    Logits of other runs count as free: some may be the very ones. `open_answers` looks again, when it knows the teachers.
    """
    from core.teacher_logits import check_average, check_room, is_kept, view_bytes

    check_average(config.views, info.image_size)
    if is_kept(config.views, info.image_size):
        needed = len(config.teachers) * config.views.number * view_bytes(images, len(info.classes), finest_grid(space))
        check_room(needed, cache, spare=sum(path.stat().st_size for path in (cache / "logits").rglob("*.npy")))


def check_networks(space: Space, config: Config, info: DataInfo) -> None:
    """Raises UserError when a loss looks at what a network or so few classes do not have, or a recipe shows a student too small images.

    Asked before the teacher trains. Where `early_sizes` makes images small, regions must fit the smaller maps too.
    """
    import torch

    from core.lora import check_rank
    from core.teacher import build_network, build_teacher_network
    from core.teacher_logits import check_early_regions, check_regions
    from core.train import check_sizes

    _check_gradients(space, config, info)
    for loss, said in _asked(space, config):
        check_classes(loss, len(info.classes), len(config.teachers), config.teacher_mix.rule, said)
    own = {"finetune": config.finetune, "quantise.train": config.quantise.train}
    looks, early = _looks(space), any(recipe.early_sizes for recipe in (config.parent.train, *own.values()))
    lora = config.finetune.lora
    images = torch.randn(2, *info.shape, generator=torch.Generator().manual_seed(config.seed))
    for name in options(space.student.name) if looks or early or lora else ():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            network, who = build_network(name, max(options(space.student.width)), config.teacher, info), f"the student {name}"
        if lora is not None:
            check_rank(network, lora.rank)
        for method, grid in looks:
            check_regions(network, images, grid, who, method)
        check_sizes(network, images, own if name == SELF else {"parent.train": config.parent.train} | own, who)  # SELF has no parent
        for _, grid in looks:
            check_early_regions(network, images, grid, own, who)
    for each in config.teachers if looks else ():
        with torch.random.fork_rng(devices=[]):
            network = build_teacher_network(each, info)
        for method, grid in looks:
            check_regions(network, images, grid, f"the teacher {each.model or each.name}", method)


def _check_gradients(space: Space, config: Config, info: DataInfo) -> None:
    """Raises UserError where a network of the user's is trained, but has no gradients: as `self` in all of its weights."""
    from core.layers import trial_gradients
    from core.teacher import build_teacher_network

    taught = SELF in options(space.student.name) and max(config.finetune.epochs, config.quantise.train.epochs) > 0
    trained = [(each, False) for each in config.teachers if each.model and each.weights is None]
    for each, every in [*trained, *([(config.teacher, True)] if taught and config.teacher.model else [])]:
        network = build_teacher_network(each, info)
        try:
            trial_gradients(network, info.shape, every=every)
        except Exception as error:  # the user's file may raise anything
            reason = one_line(error, 200) or "no message"
            law = f"a network that is trained must have gradients, but those of {each.model} raised {type(error).__name__} ({reason})"
            raise UserError(f"{law}; keep torch.no_grad, detach and changes in place out of forward") from error


def check_teachers(space: Space, config: Config, teachers: Sequence[Teacher], data: ViewedSet) -> None:
    """Raises UserError when a loss looks at regions or maps that a teacher with its weights does not have, or at those of small images."""
    import torch

    from core.teacher_logits import check_regions
    from core.train import check_sizes

    images = data.plain(torch.arange(min(2, len(data)), device=data.labels.device))
    for teacher in teachers:
        for method, grid in _looks(space):
            check_regions(teacher.model, images, grid, f"the teacher {teacher.name}", method)
        if any(loss in FEATURE_LOSSES for loss in options(space.distil.loss)):
            recipes = {"finetune": config.finetune, "quantise.train": config.quantise.train}
            check_sizes(teacher.model, images, recipes, f"the teacher {teacher.name}")


def _looks(space: Space) -> list[tuple[str, int]]:
    """(method, grid) for every kind of loss that looks into a network."""
    maps = any(loss in FEATURE_LOSSES for loss in options(space.distil.loss))
    return [("SDD", finest_grid(space))] * looks_at_regions(space) + [("feature distillation", 1)] * maps
