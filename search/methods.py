"""Which distillation methods go with which teachers, views and networks, checked before the expensive part of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from core.candidate import SELF
from core.config import Config
from core.errors import UserError
from core.methods import FEATURE_LOSSES, METHODS, REGION_LOSSES, method_of
from search.space import Space, options

if TYPE_CHECKING:
    from core.data.types import DataInfo
    from core.teacher import Teacher
    from core.views import ViewedSet
    from objectives.bench import Workbench


def check_methods(space: Space, config: Config) -> None:
    """Raises UserError for a loss that does not go with the teachers or views of the configuration; imports nothing heavy."""
    parent = config.parent.distil.loss
    plain = ", ".join(name for name, method in METHODS.items() if not (method.regions or method.maps))
    if parent in (*REGION_LOSSES, *FEATURE_LOSSES):
        raise UserError(f"parent.distil.loss must look at logits of the whole image ({plain}), but got {parent}; choose one of those")
    if config.views.average and config.views.cache == "off":
        raise UserError("views.average needs kept logits, but views.cache is off; set it to on, or leave average out")
    for loss in (*options(space.distil.loss), parent):
        _check_loss(loss, config)


def _check_loss(loss: str, config: Config) -> None:
    method, several = method_of(loss), len(config.teachers) > 1
    if several and method.standardised and config.teacher_mix.rule == "probabilities":
        law = "teacher_mix.rule probabilities goes with losses that do not standardise logits"
        raise UserError(f"{law}, but distil.loss may be {loss}; take the rule logits or another loss")
    if several and method.maps:
        law = "hint and at learn from the feature map of one teacher"
        raise UserError(f"{law}, but there are {len(config.teachers)} and distil.loss may be {loss}; leave more_teachers out")
    if method.regions and config.views.average:
        law = "views.average goes with losses on whole images, as regions of shifted and mirrored views do not match"
        raise UserError(f"{law}, but distil.loss may be {loss}; leave average out")


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
    from core.teacher_logits import check_room, is_kept, view_bytes

    if is_kept(config.views, info.image_size):
        needed = len(config.teachers) * config.views.number * view_bytes(images, len(info.classes), finest_grid(space))
        check_room(needed, cache, spare=sum(path.stat().st_size for path in (cache / "logits").rglob("*.npy")))
    elif config.views.average:
        side = f"images of {info.image_size} pixels"
        raise UserError(f"views.average needs kept logits, but those of {side} are not kept; set views.cache=on, or leave average out")


def check_teachers(space: Space, teachers: Sequence[Teacher], data: ViewedSet) -> None:
    """Raises UserError when a loss looks at regions or maps that a teacher does not have."""
    import torch

    from core.teacher_logits import check_regions

    images = data.plain(torch.arange(min(2, len(data)), device=data.labels.device))
    for method, grid in _looks(space, finest_grid(space)):
        for teacher in teachers:
            check_regions(teacher.model, images, grid, f"the teacher {teacher.name}", method)


def check_networks(space: Space, bench: Workbench) -> None:
    """Raises UserError when a loss looks at what a student does not have, or a recipe shows it images that it cannot see."""
    import torch

    from core.teacher_logits import check_regions
    from core.train import check_sizes

    config, width = bench.config, max(options(space.student.width))
    recipes = {"parent.train": config.parent.train, "finetune": config.finetune, "quantise.train": config.quantise.train}
    images = bench.train_set.plain(torch.arange(min(2, len(bench.train_set)), device=bench.train_set.labels.device)).cpu()
    for method, grid in _looks(space, 1):
        for name in options(space.student.name):
            check_regions(bench.network(name, width), images, grid, f"the student {name}", method)
    if any(recipe.early_sizes for recipe in recipes.values()):
        for name in options(space.student.name):
            own = {stage: recipe for stage, recipe in recipes.items() if name != SELF or stage != "parent.train"}  # it has no parent
            check_sizes(bench.network(name, width), images, own, f"the student {name}")


def _looks(space: Space, grid: int) -> list[tuple[str, int]]:
    """(method, grid) for every kind of loss that looks into a network."""
    maps = any(loss in FEATURE_LOSSES for loss in options(space.distil.loss))
    return [("SDD", grid)] * looks_at_regions(space) + [("feature distillation", 1)] * maps
