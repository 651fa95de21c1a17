"""What every entry of DISTIL_LOSSES promises: fn(student, teacher, labels, plan) -> scalar."""

from __future__ import annotations

import pytest
import torch

from core.candidate import DistilPlan
from core.losses import DISTIL_LOSSES, FEATURE_LOSSES, REGION_LOSSES
from core.methods import METHODS, needs_labels

every_loss = pytest.mark.parametrize("name", DISTIL_LOSSES)
LABELS = torch.tensor([0, 3, 1, 2, 4, 0])


def seen(name: str, seed: int, classes: int = 5, scale: float = 2.0) -> torch.Tensor:
    """What the loss compares: logits of images, of their regions, or feature maps."""
    more = (2, 3) if name in FEATURE_LOSSES else (5,) if name in REGION_LOSSES else ()
    return scale * torch.randn(len(LABELS), classes, *more, generator=torch.Generator().manual_seed(seed))


def plan(name: str, temperature: float = 4.0) -> DistilPlan:
    return DistilPlan(loss=name, temperature=temperature)


@every_loss
@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_a_loss_is_one_number_that_is_never_negative(name: str, temperature: float) -> None:
    value = DISTIL_LOSSES[name](seen(name, 0), seen(name, 1), LABELS, plan(name, temperature))
    assert value.shape == ()
    assert torch.isfinite(value)
    assert value >= 0


@every_loss
def test_the_student_s_own_answer_as_teacher_leaves_nothing_to_learn_from_it(name: str) -> None:
    student, entropy = seen(name, 0).requires_grad_(), name == "apprentice"  # a cross-entropy ends at the teacher's entropy, not at 0
    least = DISTIL_LOSSES[name](student, student.detach(), LABELS, plan(name))
    (grad,) = torch.autograd.grad(least, student)
    (other,) = torch.autograd.grad(DISTIL_LOSSES[name](student, seen(name, 1), LABELS, plan(name)), student)
    if torch.equal(grad, other):  # a loss of labels alone does not look at the teacher
        assert name == "ce"
        return
    assert grad.abs().max() < 1e-6
    assert least < DISTIL_LOSSES[name](seen(name, 1), student.detach(), LABELS, plan(name))
    assert entropy or least.item() == pytest.approx(0.0, abs=1e-6)


@every_loss
def test_a_step_against_the_gradient_lowers_the_loss(name: str) -> None:
    student, teacher = seen(name, 0).requires_grad_(), seen(name, 1)
    before = DISTIL_LOSSES[name](student, teacher, LABELS, plan(name))
    (grad,) = torch.autograd.grad(before, student)
    after = DISTIL_LOSSES[name](student - 0.01 * grad / grad.norm(), teacher, LABELS, plan(name))
    assert after < before


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student, teacher = seen(name, 0).to(dtype), seen(name, 1).to(dtype)
    value = DISTIL_LOSSES[name](student, teacher, LABELS, plan(name))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, DISTIL_LOSSES[name](student.float(), teacher.float(), LABELS, plan(name)))
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(DISTIL_LOSSES[name](student, teacher, LABELS, plan(name)), value)


@every_loss
def test_the_mean_over_the_batch_is_taken(name: str) -> None:
    whole = DISTIL_LOSSES[name](seen(name, 0), seen(name, 1), LABELS, plan(name))
    rows = [
        DISTIL_LOSSES[name](seen(name, 0)[i : i + 1], seen(name, 1)[i : i + 1], LABELS[i : i + 1], plan(name)) for i in range(len(LABELS))
    ]
    torch.testing.assert_close(whole, torch.stack(rows).mean())


@every_loss
@pytest.mark.parametrize("classes", [2, 5])
def test_extreme_logits_stay_finite_in_value_and_gradient(name: str, classes: int) -> None:
    student = seen(name, 0, classes, scale=300.0).requires_grad_()
    value = DISTIL_LOSSES[name](student, seen(name, 1, classes, scale=300.0), LABELS % classes, plan(name, 1.0))
    value.backward()
    assert torch.isfinite(value)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@every_loss
def test_no_gradient_reaches_a_teacher_without_one(name: str) -> None:
    student = seen(name, 0).requires_grad_()
    teacher = seen(name, 1)
    DISTIL_LOSSES[name](student, teacher, LABELS, plan(name)).backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_the_facts_of_every_loss_are_known() -> None:
    assert list(METHODS) == list(DISTIL_LOSSES)


@every_loss
def test_a_loss_looks_at_labels_only_where_it_says_so(name: str) -> None:
    def value(labels: torch.Tensor) -> torch.Tensor:
        return DISTIL_LOSSES[name](seen(name, 0), seen(name, 1), labels, plan(name))

    if needs_labels(name, 0.0):
        assert value(LABELS) != value((LABELS + 1) % 5)
    else:
        assert value(LABELS) == value(torch.full_like(LABELS, -1))
    assert needs_labels(name, 0.1)
