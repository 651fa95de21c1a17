"""Distillation losses: pure functions, computed in float32 whatever the autocast, mean over the batch.

z: student logits (B, K); v: teacher logits (B, K); T: temperature.

References:
    KD      Hinton et al. 2015, arXiv 1503.02531
    DKD     Zhao et al. 2022, arXiv 2203.08679
    LSKD    Sun et al. 2024, arXiv 2403.01427
    SDD     Wei et al. 2024, arXiv 2403.13512
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.candidate import DistilPlan


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(softmax(v / T) || softmax(z / T)), mean over the batch. (B, K), (B, K) -> scalar."""
    return _kd_rows(student_logits, teacher_logits, temperature).mean()


def dkd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    """Decoupled KD: T^2 * (alpha * target-class KL + beta * non-target-class KL), mean over the batch.

    (B, K), (B, K), labels (B,) int64 -> scalar. DKD paper, eq. 6-7.
    """
    return _dkd_rows(student_logits, teacher_logits, labels, temperature, alpha, beta).mean()


def standardize_logits(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """z-score over the classes (dim 1): (x - mean) / (eps + std), unbiased std, gradients flow through both (LSKD)."""
    logits = _at_least_float32(logits)
    return (logits - logits.mean(1, keepdim=True)) / (eps + logits.std(1, keepdim=True))


def region_logits(features: Tensor, classifier: nn.Linear, scales: Sequence[int]) -> Tensor:
    """Logits of every region of a feature map: (B, C, h, w) -> (B, K, N) with N = sum of m^2, row-major in each scale.

    `scales` starts with 1 (region 0 is the global one), e.g. (1, 2, 4). Coarser grids are pooled from the finest,
    as the classifier is linear. SDD paper, section 3.2.
    Raises:
        ValueError: scales do not start with 1.
    """
    if not scales or scales[0] != 1:
        raise ValueError(f"scales must start with 1, but got {tuple(scales)}")
    finest = F.adaptive_avg_pool2d(features, max(scales))
    cells = [F.adaptive_avg_pool2d(finest, m).flatten(2) for m in scales]
    return classifier(torch.cat(cells, 2).transpose(1, 2)).transpose(1, 2)


def sdd_loss(
    student_regions: Tensor,
    teacher_regions: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    base: Literal["kd", "dkd"] = "kd",
    standardize: bool = False,
    complementary_weight: float = 2.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Scale-decoupled distillation: sum over regions and batch of w * loss, divided by N * B. (B, K, N) twice -> scalar.

    w is `complementary_weight` where the teacher is right globally and wrong in the region or the reverse, else 1.
    `standardize` z-scores every region's logits over the classes first (the SDD + LSKD fusion).
    """
    batch, classes, regions = student_regions.shape
    right = teacher_regions.argmax(1) == labels[:, None]
    weights = torch.where(right == right[:, :1], 1.0, complementary_weight).to(_at_least_float32(student_regions).dtype)
    student = student_regions.transpose(1, 2).reshape(-1, classes)
    teacher = teacher_regions.transpose(1, 2).reshape(-1, classes)
    if standardize:
        student, teacher = standardize_logits(student), standardize_logits(teacher)
    if base == "kd":
        rows = _kd_rows(student, teacher, temperature)
    else:
        rows = _dkd_rows(student, teacher, labels.repeat_interleave(regions), temperature, alpha, beta)
    return (rows.view(batch, regions) * weights).sum() / (regions * batch)


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _kd_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_student = F.log_softmax(_at_least_float32(student) / temperature, 1)
    log_teacher = F.log_softmax(_at_least_float32(teacher) / temperature, 1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(1)


def _dkd_rows(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    student, teacher = _at_least_float32(student) / temperature, _at_least_float32(teacher) / temperature
    target = F.one_hot(labels, student.shape[1]).bool()
    target_rows = _binary_kl(teacher, student, labels, target)
    # the target is taken out by a large negative logit, as exp(-1000) is 0 in every float type
    others_student = F.log_softmax(student - 1000.0 * target, 1)
    others_teacher = F.log_softmax(teacher - 1000.0 * target, 1)
    other_rows = (others_teacher.exp() * (others_teacher - others_student)).sum(1)
    return temperature**2 * (alpha * target_rows + beta * other_rows)


def _binary_kl(teacher: Tensor, student: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """KL between the two-way distributions [p_target, 1 - p_target], from log-probabilities: no log(0) in any precision."""

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        logp = F.log_softmax(logits, 1)
        return logp.gather(1, labels[:, None]).squeeze(1), logp.masked_fill(target, -torch.inf).logsumexp(1)

    (t_in, t_out), (s_in, s_out) = split(teacher), split(student)
    return t_in.exp() * (t_in - s_in) + t_out.exp() * (t_out - s_out)


def _ce(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return F.cross_entropy(_at_least_float32(student), labels)


def _kd(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return kd_loss(student, teacher, plan.temperature)


def _dkd(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return dkd_loss(student, teacher, labels, plan.temperature, alpha=1.0, beta=8.0)


def _lskd(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return kd_loss(standardize_logits(student), standardize_logits(teacher), plan.temperature)


def _sdd(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return sdd_loss(_regions(student), _regions(teacher), labels, plan.temperature)


def _sdd_lskd(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return sdd_loss(_regions(student), _regions(teacher), labels, plan.temperature, standardize=True)


def _sdd_dkd_lskd(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return sdd_loss(_regions(student), _regions(teacher), labels, plan.temperature, base="dkd", standardize=True)


def _regions(logits: Tensor) -> Tensor:
    """(B, K) is one region."""
    return logits if logits.ndim == 3 else logits.unsqueeze(2)


DISTIL_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, DistilPlan], Tensor]] = {
    "ce": _ce,
    "kd": _kd,
    "dkd": _dkd,
    "lskd": _lskd,
    "sdd": _sdd,
    "sdd_lskd": _sdd_lskd,
    "sdd_dkd_lskd": _sdd_dkd_lskd,
}
"""name -> fn(student logits (B, K), teacher logits (B, K), labels (B,), plan) -> scalar; those of REGION_LOSSES take (B, K, N)."""

REGION_LOSSES = ("sdd", "sdd_lskd", "sdd_dkd_lskd")
"""Losses on the logits of every region of the feature map (`region_logits`)."""


def scales_of(grid: int) -> tuple[int, ...]:
    """The scales of SDD up to a grid of 1, 2 or 4 cells a side: (1,), (1, 2) or (1, 2, 4)."""
    return tuple(scale for scale in (1, 2, 4) if scale <= grid)
