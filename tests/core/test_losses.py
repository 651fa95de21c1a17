"""Losses against the values of the papers' own code, and the laws that hold for any logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from core.candidate import DistilPlan
from core.losses import (
    DISTIL_LOSSES,
    apprentice_loss,
    at_loss,
    dkd_loss,
    hint_loss,
    kd_loss,
    region_logits,
    scales_fit,
    sdd_loss,
    standardize_logits,
)

REFERENCE = json.loads(Path(__file__).parents[1].joinpath("data", "losses_seed0.json").read_text(encoding="utf-8"))
SCALES = {"M": [1, 2, 4]}


def draw() -> dict[str, Tensor]:
    rs = np.random.RandomState(0)
    arrays = {
        "zs": rs.randn(8, 100) * 2.0,
        "zt": rs.randn(8, 100) * 3.0,
        "ft": np.maximum(rs.randn(8, 16, 8, 8), 0),
        "fs": np.maximum(rs.randn(8, 12, 4, 4), 0),
        "Wt": rs.randn(100, 16) * 0.8,
        "bt": rs.randn(100) * 0.1,
        "Ws": rs.randn(100, 12) * 0.5,
        "bs": rs.randn(100) * 0.1,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer.requires_grad_(False)


def regions(inputs: dict[str, Tensor], scales: list[int]) -> tuple[Tensor, Tensor]:
    teacher = region_logits(inputs["ft"], linear(inputs["Wt"], inputs["bt"]), scales)
    return region_logits(inputs["fs"], linear(inputs["Ws"], inputs["bs"]), scales), teacher


def value_of(case: dict[str, Any], inputs: dict[str, Tensor]) -> Tensor:
    name, params = case["name"], case["params"]
    z, v, y = inputs["zs"], inputs["zt"], torch.tensor(REFERENCE["y"])
    if "LSKD_" in name:
        z, v = standardize_logits(z), standardize_logits(v)
    if name in ("KD", "LSKD_KD"):
        return kd_loss(z, v, params["T"])
    if name in ("DKD", "LSKD_DKD"):
        return dkd_loss(z, v, y, params["T"], params["alpha"], params["beta"])
    student, teacher = regions(inputs, params["M"])
    if name.endswith("mask mended"):
        return fused(student, teacher, torch.tensor(REFERENCE["ym"]), case)
    options: dict[str, Any] = {"standardize": "z-scored" in name, "complementary_weight": params["beta"]}
    if name.startswith("SDD_DKD"):
        options |= {"base": "dkd", "alpha": params["alpha"], "beta": params["beta_dkd"]}
    return sdd_loss(student, teacher, torch.tensor(REFERENCE["ym"]), params["T"], **options)


def fused(student: Tensor, teacher: Tensor, labels: Tensor, case: dict[str, Any]) -> Tensor:
    """The mean over consistent regions plus that over complementary ones, from sums of the loss in which only one kind counts."""
    rows, options = student[:, 0].numel(), {"temperature": case["params"]["T"], "standardize": True}
    consistent, both = (rows * sdd_loss(student, teacher, labels, complementary_weight=weight, **options) for weight in (0.0, 1.0))
    return consistent / case["consistent"] + (both - consistent) / max(case["complementary"], 1)


def test_the_inputs_are_those_of_the_reference() -> None:
    for name, tensor in draw().items():
        assert float(tensor.sum()) == pytest.approx(REFERENCE["sums"][name], rel=1e-12)


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: f"{case['name']} {case['params']}")
def test_values_and_gradients_are_those_of_the_reference_code(case: dict[str, Any]) -> None:
    inputs = draw()
    leaf = inputs["fs" if "M" in case["params"] else "zs"].requires_grad_()
    value = value_of(case, inputs)
    assert value.item() == pytest.approx(case["value"], rel=1e-9)
    if "grad_l2" in case:
        value.backward()
        assert leaf.grad is not None
        assert leaf.grad.norm().item() == pytest.approx(case["grad_l2"], rel=1e-9)


@pytest.mark.parametrize("case", [case for case in REFERENCE["cases"] if "patch_t_sum" in case], ids=lambda case: str(case["params"]))
def test_regions_are_those_of_the_reference_code(case: dict[str, Any]) -> None:
    student, teacher = regions(draw(), case["params"]["M"])
    assert teacher.sum().item() == pytest.approx(case["patch_t_sum"], rel=1e-9)
    assert student.sum().item() == pytest.approx(case["patch_s_sum"], rel=1e-9)
    assert teacher[7, 99, -1].item() == pytest.approx(case["patch_t_last"], rel=1e-9)


@pytest.mark.parametrize("case", [case for case in REFERENCE["cases"] if "consistent" in case], ids=lambda case: str(case["params"]))
def test_as_many_regions_are_consistent_as_the_reference_counts(case: dict[str, Any]) -> None:
    """The regions of one kind are those that its weight moves: every other row is silenced by an equal answer."""
    _, teacher = regions(draw(), case["params"]["M"])
    labels, found = torch.tensor(REFERENCE["ym"]), 0
    for index in range(teacher[:, 0].numel()):
        image, region = divmod(index, teacher.shape[2])
        student = teacher.clone()
        student[image, :, region] += torch.arange(100.0)
        heavy, light = (sdd_loss(student, teacher, labels, 4.0, complementary_weight=weight) for weight in (2.0, 1.0))
        found += int(heavy > light)
    assert found == case["complementary"]
    assert found + case["consistent"] == teacher[:, 0].numel()


@pytest.mark.parametrize("case", [case for case in REFERENCE["cases"] if case["name"] == "LSKD_DKD"], ids=lambda case: str(case["params"]))
def test_dkd_on_standardised_logits_as_a_method_is_that_of_lskd_s_code(case: dict[str, Any]) -> None:
    """LSKD's code multiplies alpha and beta by its weight of 9."""
    inputs, params = draw(), case["params"]
    plan = DistilPlan(loss="dkd_lskd", alpha=params["alpha"] / 9.0, beta=params["beta"] / 9.0)
    value = plan.weight * DISTIL_LOSSES["dkd_lskd"](inputs["zs"], inputs["zt"], torch.tensor(REFERENCE["y"]), plan)
    assert (plan.temperature, plan.ce_weight) == (params["T"], 1.0)
    assert value.item() == pytest.approx(case["value"], rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_float32_stays_close_to_float64(scale: float) -> None:
    z, v, y = draw()["zs"] * scale, draw()["zt"] * scale, torch.tensor(REFERENCE["y"])
    torch.testing.assert_close(kd_loss(z.float(), v.float(), 4.0).double(), kd_loss(z, v, 4.0), rtol=1e-4, atol=1e-6)
    single, double = dkd_loss(z.float(), v.float(), y, 4.0, 1.0, 8.0), dkd_loss(z, v, y, 4.0, 1.0, 8.0)
    torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-6)


def test_region_zero_is_the_global_average() -> None:
    inputs = draw()
    head = linear(inputs["Wt"], inputs["bt"])
    torch.testing.assert_close(region_logits(inputs["ft"], head, (1, 2, 4))[:, :, 0], head(inputs["ft"].mean((2, 3))))


def test_equal_regions_average_to_the_region_that_holds_them() -> None:
    student, _ = regions(draw(), [1, 2, 4])
    torch.testing.assert_close(student[:, :, 1:5].mean(2), student[:, :, 0])
    torch.testing.assert_close(student[:, :, 5:].mean(2), student[:, :, 0])


def test_scales_that_do_not_start_with_the_whole_map_are_refused() -> None:
    with pytest.raises(ValueError, match="must start with 1"):
        region_logits(torch.zeros(1, 2, 4, 4), nn.Linear(2, 3), (2, 4))


SIDES = [(1, 1), (1, 4), (2, 2), (3, 3), (2, 3), (4, 2), (4, 4), (6, 6), (7, 7), (8, 8), (12, 12)]


@pytest.mark.parametrize("scales", [(1,), (1, 2), (1, 4), (1, 2, 4), (1, 4, 2), (1, 3), (1, 2, 3), (1, 8)], ids=str)
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_the_regions_of_every_scale_average_to_the_logits_or_are_refused(sides: tuple[int, int], scales: tuple[int, ...]) -> None:
    features = torch.rand(3, 5, *sides, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    head = nn.Linear(5, 4, dtype=torch.float64)
    if not scales_fit(sides, scales):
        with pytest.raises(ValueError, match=rf"scales must divide .* for {sides[0]} x {sides[1]}"):
            region_logits(features, head, scales)
        return
    found = region_logits(features, head, scales).split([scale**2 for scale in scales], 2)
    for each in found:
        torch.testing.assert_close(each.mean(2), head(features.mean((2, 3))))


def test_cells_of_a_map_that_is_coarser_than_the_grid_are_repeated() -> None:
    features, head = torch.rand(3, 5, 2, 2), nn.Linear(5, 4)
    found = region_logits(features, head, (1, 2, 4))
    torch.testing.assert_close(
        found[..., 5:].unflatten(2, (4, 4)), found[..., 1:5].unflatten(2, (2, 2)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    )


@pytest.mark.parametrize(
    ("side", "scales", "fits"),
    [
        (8, (1, 2, 4), True),
        (4, (1, 2, 4), True),
        (2, (1, 2, 4), True),
        (1, (1,), True),
        (7, (1,), True),
        (6, (1, 2), True),
        (12, (1, 4, 2), True),
        (6, (1, 4, 2), False),
        (6, (1, 8), False),
        (7, (1, 2), False),
        (3, (1, 2), False),
        (6, (1, 2, 3), False),
        (1, (1, 2), False),
    ],
)
def test_regions_are_equal_parts_of_the_map_or_repeat_its_cells(side: int, scales: tuple[int, ...], fits: bool) -> None:
    assert scales_fit((side, side), scales) is fits


def test_one_region_is_plain_distillation() -> None:
    student, teacher = regions(draw(), [1])
    labels = torch.tensor(REFERENCE["ym"])
    torch.testing.assert_close(sdd_loss(student, teacher, labels, 4.0), kd_loss(student[:, :, 0], teacher[:, :, 0], 4.0))


def test_a_complementary_weight_of_one_averages_the_regions() -> None:
    student, teacher = regions(draw(), [1, 2])
    labels = torch.tensor(REFERENCE["ym"])
    each = torch.stack([kd_loss(student[:, :, n], teacher[:, :, n], 2.0) for n in range(5)])
    torch.testing.assert_close(sdd_loss(student, teacher, labels, 2.0, complementary_weight=1.0), each.mean())


def test_standardised_logits_have_mean_zero_and_deviation_one_whatever_their_scale() -> None:
    logits = draw()["zs"]
    scored = standardize_logits(logits)
    torch.testing.assert_close(scored.mean(1), torch.zeros(8, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(scored.std(1), torch.ones(8, dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(standardize_logits(7.0 * logits + 3.0), scored, rtol=1e-6, atol=1e-6)


def test_equal_logits_standardise_to_zero_with_finite_gradients() -> None:
    logits = torch.ones(2, 5, requires_grad=True)
    kd_loss(standardize_logits(logits), torch.randn(2, 5), 4.0).backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_dkd_with_both_weights_in_their_coupled_ratio_is_kd() -> None:
    """DKD paper, eq. 7: KD = TCKD + (1 - p_target of the teacher) NCKD."""
    z, v = torch.randn(1, 6, dtype=torch.float64), torch.randn(1, 6, dtype=torch.float64)
    label = torch.tensor([2])
    rest = 1.0 - torch.softmax(v / 3.0, 1)[0, 2].item()
    torch.testing.assert_close(dkd_loss(z, v, label, 3.0, 1.0, rest), kd_loss(z, v, 3.0))


def test_apprentice_is_kd_and_the_teacher_s_entropy() -> None:
    inputs = draw()
    z, v = inputs["zs"].requires_grad_(), inputs["zt"]
    log_teacher = torch.log_softmax(v / 2.0, 1)
    entropy = -4.0 * (log_teacher.exp() * log_teacher).sum(1).mean()
    torch.testing.assert_close(apprentice_loss(z, v, 2.0), kd_loss(z, v, 2.0) + entropy)
    gradients = [torch.autograd.grad(loss(z, v, 2.0), z)[0] for loss in (apprentice_loss, kd_loss)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_apprentice_of_a_certain_teacher_is_cross_entropy_with_its_class() -> None:
    z, labels = draw()["zs"], torch.arange(8)
    torch.testing.assert_close(
        apprentice_loss(z, 1e4 * nn.functional.one_hot(labels, 100).double()), nn.functional.cross_entropy(z, labels)
    )


def test_a_hint_on_equal_grids_is_the_mean_squared_difference() -> None:
    student, teacher = draw()["ft"], draw()["ft"].flip(0)
    torch.testing.assert_close(hint_loss(student, teacher), (student - teacher).pow(2).mean())


@pytest.mark.parametrize("loss", [hint_loss, at_loss])
def test_maps_are_compared_on_the_smaller_grid_whoever_has_it(loss: Any) -> None:
    fine = draw()["ft"]
    coarse = nn.functional.adaptive_avg_pool2d(fine, 4)
    other = coarse.flip(0)
    torch.testing.assert_close(loss(fine, other), loss(coarse, other))
    torch.testing.assert_close(loss(other, fine), loss(other, coarse))
    assert loss(fine, coarse).item() == pytest.approx(0.0, abs=1e-12)


def test_attention_knows_where_and_not_how_strongly_nor_in_which_channel() -> None:
    student, teacher = draw()["fs"], draw()["ft"]
    known = at_loss(student, teacher)
    torch.testing.assert_close(at_loss(3.0 * student, 0.2 * teacher), known)
    torch.testing.assert_close(at_loss(student.flip(1), -teacher.roll(3, 1)), known)
    assert at_loss(student.flip(2), teacher) != known


def test_attention_is_that_of_the_authors_code() -> None:
    """(F.normalize(x.pow(2).mean(1).view(N, -1)) - ...).pow(2).mean(), by numpy."""
    maps = [draw()["fs"].numpy(), draw()["ft"][:, :, :4, :4].numpy()]
    flat = [(features**2).mean(1).reshape(8, -1) for features in maps]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in flat]
    assert at_loss(*map(torch.from_numpy, maps)).item() == pytest.approx(((unit[0] - unit[1]) ** 2).mean(), rel=1e-12)


def test_a_map_of_zeros_has_finite_attention_and_gradients() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    at_loss(student, torch.rand(2, 5, 4, 4)).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_attention_in_half_precision_does_not_overflow(dtype: torch.dtype) -> None:
    student, teacher = (300.0 * torch.rand(4, 8, 4, 4)).to(dtype), (300.0 * torch.rand(4, 6, 4, 4)).to(dtype)
    with torch.autocast("cpu", dtype=dtype):
        torch.testing.assert_close(at_loss(student, teacher), at_loss(student.float(), teacher.float()))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_not_positive_and_finite_is_refused(temperature: float) -> None:
    z, v, labels = draw()["zs"], draw()["zt"], torch.arange(8)
    for call in (
        lambda: kd_loss(z, v, temperature),
        lambda: dkd_loss(z, v, labels, temperature, 1.0, 8.0),
        lambda: sdd_loss(z[..., None], v[..., None], labels, temperature),
        lambda: apprentice_loss(z, v, temperature),
    ):
        with pytest.raises(ValueError, match="temperature must be greater than 0 and finite, but got "):
            call()
    with pytest.raises(ValidationError):
        DistilPlan(temperature=temperature)


@pytest.mark.parametrize(("student", "teacher"), [((8, 5), (8, 1)), ((8, 5), (1, 5)), ((8, 1), (8, 5)), ((8, 5), (7, 5))])
def test_answers_of_other_shapes_are_refused_and_not_compared_with_all(student: tuple[int, int], teacher: tuple[int, int]) -> None:
    z, v, labels = torch.zeros(student), torch.zeros(teacher), torch.zeros(student[0], dtype=torch.int64)
    for call in (
        lambda: kd_loss(z, v, 4.0),
        lambda: dkd_loss(z, v, labels, 4.0, 1.0, 8.0),
        lambda: apprentice_loss(z, v),
        lambda: sdd_loss(z[..., None], v[..., None], labels, 4.0),
        lambda: hint_loss(z[..., None, None], v[..., None, None]),
    ):
        with pytest.raises(ValueError, match=r"equal shapes, but have \("):
            call()


@pytest.mark.parametrize("teacher", [(8, 5, 1), (8, 5, 21), (8, 4, 5), (1, 5, 5)])
def test_regions_of_another_number_are_refused(teacher: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"equal shapes, but have \(8, 5, 5\)"):
        sdd_loss(torch.zeros(8, 5, 5), torch.zeros(teacher), torch.zeros(8, dtype=torch.int64), 4.0)


def test_attention_over_another_number_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="equal shapes"):
        at_loss(torch.rand(4, 3, 2, 2), torch.rand(1, 3, 2, 2))
