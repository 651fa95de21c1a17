"""Checkpoints published for mdistiller's models load into ours."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from core.errors import UserError
from core.students import STUDENTS
from core.students.checkpoints import remap
from tests.mdistiller_layouts import layouts

CLASSES = 100
LAYOUTS = layouts(CLASSES)
every_layout = pytest.mark.parametrize("name", LAYOUTS)


def published(name: str) -> dict[str, Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in LAYOUTS[name].items()}


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in state.items()}


def test_every_student_that_is_not_ours_alone_has_a_layout() -> None:
    assert set(STUDENTS) >= set(LAYOUTS)
    assert {"light_cnn", "airbench"}.isdisjoint(LAYOUTS)


@every_layout
def test_a_published_checkpoint_has_our_keys_and_shapes(name: str) -> None:
    with torch.device("meta"):
        ours = STUDENTS[name](classes=CLASSES).state_dict()
    assert shapes(remap(name, published(name))) == shapes(ours)


@every_layout
def test_our_own_keys_stay(name: str) -> None:
    once = remap(name, published(name))
    assert list(remap(name, once)) == list(once)


def test_values_are_passed_on_to_the_part_of_the_same_role() -> None:
    state = {"fc.weight": torch.ones(2), "layer2.0.downsample.1.bias": torch.zeros(3), "layer2.0.bn1.bias": torch.full((1,), 2.0)}
    ours = remap("resnet20", state)
    assert list(ours) == ["classifier.weight", "layer2.0.shortcut.1.bias", "layer2.0.bn1.bias"]
    assert all(a is b for a, b in zip(ours.values(), state.values(), strict=True))


@pytest.mark.parametrize("prefix", ["module.", "student.", "module.student."])
def test_prefixes_of_training_code_go_and_the_teacher_with_them(prefix: str) -> None:
    wrapped = {prefix + key: value for key, value in published("wrn_16_1").items()}
    if "student" in prefix:
        wrapped |= {prefix.replace("student", "teacher") + key: value for key, value in published("wrn_40_2").items()}
    assert shapes(remap("wrn_16_1", wrapped)) == shapes(remap("wrn_16_1", published("wrn_16_1")))


def test_a_checkpoint_loads_and_decides_the_logits() -> None:
    torch.manual_seed(0)
    ours = STUDENTS["resnet8"](classes=CLASSES).eval()
    theirs = {key: torch.rand(shape) + 0.5 if shape else torch.tensor(3) for key, shape in LAYOUTS["resnet8"].items()}
    ours.load_state_dict(remap("resnet8", theirs))
    torch.testing.assert_close(ours.classifier.bias, theirs["fc.bias"])
    torch.testing.assert_close(ours.get_submodule("layer3.0.shortcut.0").weight, theirs["layer3.0.downsample.0.weight"])


def test_an_unknown_student_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'shufflenet_v1'"):
        remap("shufflenetv1", {})
