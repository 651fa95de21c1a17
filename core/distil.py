"""Distillation: a student learns from labels and from kept teacher logits. Parents once per study, students per trial."""

from __future__ import annotations

from torch import Tensor, nn

from core.candidate import DistilPlan
from core.config import TrainConfig
from core.losses import DISTIL_LOSSES
from core.tables import lookup
from core.teacher import TeacherLogits
from core.train import Device, EpochFn, LossFn, fit
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
    return fit(model, data, distil_loss(plan, teacher, config.label_smoothing), config, device, seed=seed, on_epoch=on_epoch)


def distil_loss(plan: DistilPlan, teacher: TeacherLogits, label_smoothing: float = 0.0) -> LossFn:
    """The loss of one step: student logits (B, K), labels (B,), image indices (B,), view -> scalar."""
    method = lookup(DISTIL_LOSSES, "loss", plan.loss)

    def loss(logits: Tensor, labels: Tensor, indices: Tensor, view: int) -> Tensor:
        hard = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=label_smoothing)
        if plan.loss == "ce":
            return hard
        return plan.ce_weight * hard + plan.weight * method(logits, teacher(indices, view), labels, plan)

    return loss
