"""Distillation: a student learns from labels and from its teachers. Parents once per study, students per trial."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.answers import Answers
from core.candidate import DistilPlan, fingerprint
from core.config import TrainConfig
from core.layers import evaluating
from core.lora import adapters
from core.losses import DISTIL_LOSSES, FEATURE_LOSSES, REGION_LOSSES, region_logits, scales_of
from core.methods import method_of
from core.tables import lookup
from core.train import Batch, Device, EpochFn, ForwardFn, LossFn, fit
from core.views import ViewedSet

WARM_UP = 20 / 240
"""Share of a run over which DKD's weight rises linearly: 20 of the published 240 epochs (mdistiller a08d46f, `engine/cfg.py`)."""


def distil(
    model: nn.Module,
    plan: DistilPlan,
    data: ViewedSet,
    teacher: Answers,
    config: TrainConfig,
    device: Device,
    *,
    seed: int,
    on_epoch: EpochFn | None = None,
    penalty: Callable[[float], Tensor] | None = None,
    checkpoint: Path | None = None,
    full: Collection[str] = (),
) -> nn.Module:
    """Train `model` in place with `ce_weight` * CE + `weight` * loss and return it in eval mode. Raises TrainingDiverged.

    `penalty`, of the progress in (0, 1], is added to the loss of every step: what a quantiser wants of the weights. Under `config.lora`
    the layers named in `full` train themselves.
    """
    loss = _with_penalty(distil_loss(plan, teacher, config.label_smoothing), penalty)
    learner = _hinted(model, plan, data, teacher, device, seed) if plan.loss == "hint" else model
    taught_by = fingerprint(plan, teacher.digest) if checkpoint is not None else ""
    kept: dict[str, Any] = {"checkpoint": checkpoint, "taught_by": taught_by}
    with adapters(model, config.lora, full, seed=seed):
        fit(learner, data, loss, config, device, seed=seed, on_epoch=on_epoch, forward=_forward(plan), **kept)
    return model.eval()


def distil_loss(plan: DistilPlan, teacher: Answers, label_smoothing: float = 0.0) -> LossFn:
    """The loss of one step: (student logits (B, K), what the method compares), batch -> scalar. Without ce_weight no label is looked at."""
    method = lookup(DISTIL_LOSSES, "loss", plan.loss)
    teacher = teacher.softened(plan.temperature)

    def loss(outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        logits, compared = outputs
        if plan.loss == "ce":
            return nn.functional.cross_entropy(logits.float(), batch.labels, label_smoothing=label_smoothing)
        soft = weight_at(plan, batch.progress) * method(compared, _target(plan, teacher, batch), batch.labels, plan)
        if plan.ce_weight == 0:
            return soft
        return plan.ce_weight * nn.functional.cross_entropy(logits.float(), batch.labels, label_smoothing=label_smoothing) + soft

    return loss


def _with_penalty(loss: LossFn, penalty: Callable[[float], Tensor] | None) -> LossFn:
    return loss if penalty is None else lambda outputs, batch: loss(outputs, batch) + penalty(batch.progress)


def weight_at(plan: DistilPlan, progress: float) -> float:
    """The weight of the distillation loss at `progress` in (0, 1]: DKD's rises over the first WARM_UP of a run, however short."""
    return plan.weight * min(progress / WARM_UP, 1.0) if method_of(plan.loss).decoupled else plan.weight


def _target(plan: DistilPlan, teacher: Answers, batch: Batch) -> Tensor:
    if plan.loss in FEATURE_LOSSES:
        return teacher.maps(batch.images)
    whole = batch.images if batch.whole is None else batch.whole  # the kept answers are to whole images too
    if plan.loss in REGION_LOSSES:
        return teacher.regions(batch.indices, batch.view, plan.grid, whole)
    return teacher(batch.indices, batch.view, whole)


def _forward(plan: DistilPlan) -> ForwardFn:
    """(model, images) -> its logits, and what the method compares: the same, those of every region, or the feature map."""
    scales = scales_of(plan.grid)

    def logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        found = model(images)
        return found, found

    def regions(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        found = region_logits(model.features(images), model.classifier, scales)
        return found[..., 0], found

    def maps(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        features = model.features(images)
        return region_logits(features, model.classifier, (1,))[..., 0], features

    def hints(learner: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        found, features = maps(learner.student, images)
        return found, learner.regressor(features)

    if plan.loss == "hint":
        return hints
    if plan.loss in FEATURE_LOSSES:
        return maps
    return regions if plan.loss in REGION_LOSSES else logits


class Hinted(nn.Module):
    """A student with FitNets' regressor from its last map to the teacher's. The regressor trains with it and is then let go.

    Departures: hint and labels train together, as in mdistiller; the paper has a stage of hints before. The hint is the last map;
    mdistiller takes one of an inner stage. `signed`: the teacher's map has negative values, which no ReLU could answer.
    """

    def __init__(self, student: nn.Module, channels: int, teacher_channels: int, *, signed: bool) -> None:
        super().__init__()
        self.student = student
        # as mdistiller's ConvReg, for whose teachers a map comes after a ReLU
        last = nn.Identity() if signed else nn.ReLU()
        self.regressor = nn.Sequential(nn.Conv2d(channels, teacher_channels, 1, bias=False), nn.BatchNorm2d(teacher_channels), last)

    def forward(self, images: Tensor) -> Tensor:
        """The student's logits (B, K)."""
        logits: Tensor = self.student(images)
        return logits


@torch.no_grad()
def _hinted(model: Any, plan: DistilPlan, data: ViewedSet, teacher: Answers, device: Device, seed: int) -> Hinted:
    """With a regressor between the maps as they are, the same one for every `seed`."""
    model = model.to(device.device)
    image = data.plain(torch.zeros(1, dtype=torch.int64, device=data.labels.device))
    with evaluating(model):
        channels = model.features(image).shape[1]
    hint = teacher.maps(image)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Hinted(model, channels, hint.shape[1], signed=bool((hint < 0).any()))
