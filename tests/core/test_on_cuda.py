"""What a machine with an NVIDIA GPU must show beside the rest of the suite: losses and trainings on it. Skipped elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from core.candidate import DistilPlan
from core.config import TrainConfig, ViewsConfig
from core.distil import distil
from core.losses import DISTIL_LOSSES, FEATURE_LOSSES, REGION_LOSSES
from core.methods import METHODS
from core.simple import dequantize_model, quantize_model
from core.students import STUDENTS
from core.teacher import Teacher
from core.teacher_logits import TeacherLogits
from core.train import Batch, Device, fit, predict
from tests.tiny_data import CLASSES, SIZE, image_set, view_set

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")
CUDA = torch.device("cuda")
RECIPE = TrainConfig(epochs=6.0, batch_size=16, lr=0.05)


@pytest.mark.parametrize("loss", DISTIL_LOSSES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_loss_under_autocast_is_that_of_the_cpu_in_float64(loss: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (8, 6, 4, 4) if loss in FEATURE_LOSSES else (8, 6, 21) if loss in REGION_LOSSES else (8, 6)
    student, teacher = (3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    labels, plan = torch.arange(8) % 6, DistilPlan(loss=loss, grid=4 if METHODS[loss].regions else 1)
    expected = float(DISTIL_LOSSES[loss](student, teacher, labels, plan))
    with torch.autocast("cuda", dtype=dtype):
        found = DISTIL_LOSSES[loss](student.float().to(CUDA), teacher.float().to(CUDA), labels.to(CUDA), plan)
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", ["kd", "dkd", "sdd_lskd", "hint"])
def test_a_student_learns_from_kept_answers(loss: str, dtype: torch.dtype | None, tmp_path: Path) -> None:
    device = Device(CUDA, dtype)
    here = view_set(plan=ViewsConfig(number=2, shift=1, flip=False))
    views = replace(here, padded=here.padded.to(CUDA), labels=here.labels.to(CUDA))  # type: ignore[attr-defined, type-var]

    def network(width: float, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return STUDENTS["light_cnn"](classes=CLASSES, channels=1, image_size=SIZE, width=width)

    def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), batch.labels)

    taught = fit(network(0.5, 0), views, cross_entropy, RECIPE, device, seed=0).requires_grad_(False)
    grid = 2 if METHODS[loss].regions else 1
    answers = TeacherLogits(Teacher(taught, views.normalise, "teacher", 1.0, "teacher"), views, "digest", device, tmp_path, grid)
    plan = DistilPlan(loss=loss, grid=grid)
    recipe = RECIPE.model_copy(update={"lr": 0.01}) if loss in FEATURE_LOSSES else RECIPE
    student = distil(network(0.25, 1), plan, views, answers, recipe, device, seed=0)
    unseen = image_set(40, seed=5)
    right = predict(student, unseen.images, views.normalise, device, amp=False).argmax(1) == unseen.labels
    assert right.float().mean() > 0.7


def test_a_quantised_network_is_dequantised_on_the_gpu() -> None:
    back = dequantize_model(quantize_model(STUDENTS["resnet8"](classes=CLASSES, channels=1, image_size=SIZE)).to(CUDA))
    with torch.no_grad():
        assert back(torch.randn(2, 1, SIZE, SIZE, device=CUDA)).isfinite().all()
