"""Distillation losses: pure functions, computed in float32 whatever the autocast, mean over the batch.

z: student logits (B, K); v: teacher logits (B, K); T: temperature.

References:
    KD          Hinton et al. 2015, arXiv 1503.02531
    DKD         Zhao et al. 2022, arXiv 2203.08679
    LSKD        Sun et al. 2024, arXiv 2403.01427
    SDD         Wei et al. 2024, arXiv 2403.13512
    Apprentice  Mishra and Marr 2018, arXiv 1711.05852
    FitNets     Romero et al. 2015, arXiv 1412.6550
    AT          Zagoruyko and Komodakis 2017, arXiv 1612.03928
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.candidate import DistilPlan
from core.methods import FEATURE_LOSSES, REGION_LOSSES

__all__ = [
    "DISTIL_LOSSES",
    "FEATURE_LOSSES",
    "REGION_LOSSES",
    "apprentice_loss",
    "at_loss",
    "dkd_loss",
    "hint_loss",
    "kd_loss",
    "region_logits",
    "scales_fit",
    "scales_of",
    "sdd_loss",
    "standardize_logits",
]


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
        ValueError: scales do not start with 1, or do not fit the map (`scales_fit`).
    """
    if not scales or scales[0] != 1:
        raise ValueError(f"scales must start with 1, but got {tuple(scales)}")
    if not scales_fit(features.shape[2:], scales):
        height, width = features.shape[2:]
        raise ValueError(f"scales must divide the finest and the map, or repeat its cells, but got {tuple(scales)} for {height} x {width}")
    finest = F.adaptive_avg_pool2d(features, max(scales))
    cells = [F.adaptive_avg_pool2d(finest, m).flatten(2) for m in scales]
    return classifier(torch.cat(cells, 2).transpose(1, 2)).transpose(1, 2)


def scales_fit(sides: Sequence[int], scales: Sequence[int]) -> bool:
    """Whether regions of these scales are equal parts of a map of `sides` (h, w), so that those of each scale average to the global one.

    A side is a multiple of every scale or divides it: cells of a map of 2 x 2 are repeated in a grid of 4, but those of 3 x 3 would
    overlap in a grid of 2. Every scale divides the finest, from which it is pooled. A map of one cell has no regions.
    """
    finest = max(scales)
    if finest > 1 and min(sides) == 1:
        return False
    return all(finest % scale == 0 and all(side % scale == 0 or scale % side == 0 for side in sides) for scale in scales)


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
    _check_shapes(student_regions, teacher_regions)
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


def apprentice_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * cross-entropy of the student with the teacher's softened answer, mean over the batch. (B, K), (B, K) -> scalar.

    H(softmax(v / T), softmax(z / T)): `kd_loss` and the teacher's entropy, which trains nothing. Apprentice, eq. 1, third term.
    """
    _check(student_logits, teacher_logits, temperature)
    log_student = F.log_softmax(_at_least_float32(student_logits) / temperature, 1)
    teacher = F.softmax(_at_least_float32(teacher_logits) / temperature, 1)
    return -(temperature**2) * (teacher * log_student).sum(1).mean()


def hint_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Mean squared difference of feature maps (B, C, h, w) and (B, C, H, W) on the smaller grid -> scalar. FitNets, eq. 3."""
    student, teacher = _on_one_grid(student_map, teacher_map)
    _check_shapes(student, teacher)
    return F.mse_loss(student, teacher)


def at_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Attention transfer between maps (B, C, h, w) and (B, D, H, W), on the smaller grid -> scalar.

    Attention is the mean of squares over the channels, scaled to length 1 per image; its squared difference is averaged over cells
    and batch, as in the authors' code. AT paper, eq. 2.
    """
    student, teacher = _on_one_grid(student_map, teacher_map)
    student, teacher = _attention(student), _attention(teacher)
    _check_shapes(student, teacher)
    return F.mse_loss(student, teacher)


def _on_one_grid(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    pooled = [features if features.shape[2:] == size else F.adaptive_avg_pool2d(features, size) for features in (student, teacher)]
    return _at_least_float32(pooled[0]), _at_least_float32(pooled[1])


def _attention(features: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w), of length 1."""
    return F.normalize(features.pow(2).mean(1).flatten(1))


def _check(student: Tensor, teacher: Tensor, temperature: float) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be greater than 0 and finite, but got {temperature}")
    _check_shapes(student, teacher)


def _check_shapes(student: Tensor, teacher: Tensor) -> None:
    """One class or one image would else be compared with all."""
    if student.shape != teacher.shape:
        raise ValueError(f"student and teacher must have equal shapes, but have {tuple(student.shape)} and {tuple(teacher.shape)}")


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _kd_rows(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    _check(student, teacher, temperature)
    log_student = F.log_softmax(_at_least_float32(student) / temperature, 1)
    log_teacher = F.log_softmax(_at_least_float32(teacher) / temperature, 1)
    return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(1)


def _dkd_rows(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float) -> Tensor:
    _check(student, teacher, temperature)
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
    return dkd_loss(student, teacher, labels, plan.temperature, plan.alpha, plan.beta)


def _lskd(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return kd_loss(standardize_logits(student), standardize_logits(teacher), plan.temperature)


def _dkd_lskd(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return _dkd(standardize_logits(student), standardize_logits(teacher), labels, plan)


def _sdd(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    plan: DistilPlan,
    *,
    base: Literal["kd", "dkd"] = "kd",
    standardize: bool = False,
) -> Tensor:
    return sdd_loss(
        _regions(student),
        _regions(teacher),
        labels,
        plan.temperature,
        base=base,
        standardize=standardize,
        complementary_weight=plan.complementary_weight,
        alpha=plan.alpha,
        beta=plan.beta,
    )


def _apprentice(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return apprentice_loss(student, teacher, plan.temperature)


def _hint(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return hint_loss(student, teacher)


def _at(student: Tensor, teacher: Tensor, labels: Tensor, plan: DistilPlan) -> Tensor:
    return at_loss(student, teacher)


def _regions(logits: Tensor) -> Tensor:
    """(B, K) is one region."""
    return logits if logits.ndim == 3 else logits.unsqueeze(2)


DISTIL_LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, DistilPlan], Tensor]] = {
    "ce": _ce,
    "kd": _kd,
    "dkd": _dkd,
    "lskd": _lskd,
    "dkd_lskd": _dkd_lskd,
    "sdd": _sdd,
    "sdd_dkd": partial(_sdd, base="dkd"),
    "sdd_lskd": partial(_sdd, standardize=True),
    "sdd_dkd_lskd": partial(_sdd, base="dkd", standardize=True),
    "apprentice": _apprentice,
    "hint": _hint,
    "at": _at,
}
"""name -> fn(student, teacher, labels (B,), plan) -> scalar; METHODS (core/methods.py) has the facts of each.

Student and teacher are logits (B, K); for REGION_LOSSES those of every region (B, K, N), see `region_logits`; for FEATURE_LOSSES the last
feature maps (B, C, h, w), the student's with the teacher's channels for `hint`.
"""


def scales_of(grid: int) -> tuple[int, ...]:
    """The scales of SDD up to a grid of 1, 2 or 4 cells a side: (1,), (1, 2) or (1, 2, 4)."""
    return tuple(scale for scale in (1, 2, 4) if scale <= grid)
