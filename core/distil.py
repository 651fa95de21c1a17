"""Distillation: a student learns from labels and from kept teacher logits. Parents once per study, students per trial."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from core.candidate import DistilPlan
from core.config import TrainConfig
from core.losses import DISTIL_LOSSES, REGION_LOSSES, region_logits, scales_of
from core.tables import lookup
from core.teacher import TeacherLogits
from core.train import Device, EpochFn, ForwardFn, LossFn, call, fit
from core.views import ViewedSet


def distil(
    model: nn.Module,
    plan: DistilPlan,
    data: ViewedSet,
    teacher: TeacherLogits,
    config: TrainConfig,
    device: Device,
    *,
    seed: int,
    on_epoch: EpochFn | None = None,
) -> nn.Module:
    """Train `model` in place with `ce_weight` * CE + `weight` * loss and return it in eval mode. Raises TrainingDiverged."""
    loss = distil_loss(plan, teacher, config.label_smoothing)
    return fit(model, data, loss, config, device, seed=seed, on_epoch=on_epoch, forward=_forward(plan))


def distil_loss(plan: DistilPlan, teacher: TeacherLogits, label_smoothing: float = 0.0) -> LossFn:
    """The loss of one step: student logits (B, K) or regions (B, K, N), labels (B,), image indices (B,), view -> scalar."""
    method = lookup(DISTIL_LOSSES, "loss", plan.loss)
    regional = plan.loss in REGION_LOSSES

    def loss(outputs: Tensor, labels: Tensor, indices: Tensor, view: int) -> Tensor:
        logits = outputs[..., 0] if regional else outputs
        hard = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        if plan.loss == "ce":
            return hard
        target = teacher.regions(indices, view, plan.grid) if regional else teacher(indices, view)
        return plan.ce_weight * hard + plan.weight * method(outputs, target, labels, plan)

    return loss


def _forward(plan: DistilPlan) -> ForwardFn:
    """What the loss looks at: logits, or the logits of every region."""
    if plan.loss not in REGION_LOSSES:
        return call
    scales = scales_of(plan.grid)

    def regions(model: Any, images: Tensor) -> Tensor:
        return region_logits(model.features(images), model.classifier, scales)

    return regions
