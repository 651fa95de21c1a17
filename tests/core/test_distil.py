"""A student learns by every method from kept or live teachers, and from labels only where it is told to."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.candidate import DistilPlan
from core.config import TrainConfig, ViewsConfig
from core.distil import WARM_UP, _hinted, distil, distil_loss, weight_at
from core.losses import DISTIL_LOSSES, kd_loss
from core.methods import FEATURE_LOSSES, METHODS, needs_labels
from core.quantise import QUANTISERS
from core.students import STUDENTS
from core.teacher import Teacher
from core.teacher_logits import LiveLogits, TeacherLogits
from core.train import Batch, Device, fit, predict
from core.views import Normalisation, ResidentViews
from tests.tiny_data import CLASSES, SIZE, image_set, view_set

CPU = Device(torch.device("cpu"), None)
BF16 = Device(torch.device("cpu"), torch.bfloat16)
FP16 = Device(torch.device("cpu"), torch.float16)
FREE = [name for name in METHODS if not needs_labels(name, 0.0)]
RECIPE = TrainConfig(epochs=4.0, batch_size=16, lr=0.05)


def network(width: float = 0.25, seed: int = 1, name: str = "light_cnn") -> nn.Module:
    torch.manual_seed(seed)
    return STUDENTS[name](classes=CLASSES, channels=1, image_size=SIZE, width=width)


def data() -> ResidentViews:
    return view_set(plan=ViewsConfig(number=2, shift=1, flip=False))  # type: ignore[return-value]


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return nn.functional.cross_entropy(logits.float(), batch.labels)

    model = fit(network(0.5, seed=0), data(), loss, TrainConfig(epochs=6.0, batch_size=16, lr=0.05), CPU, seed=0)
    return Teacher(model.requires_grad_(False), data().normalise, "teacher", 1.0, "teacher")


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))


def learned(
    plan: DistilPlan, teacher: Teacher, views: ResidentViews, device: Device = CPU, **options: Any
) -> tuple[nn.Module, list[float]]:
    """The student, and its mean loss in every epoch."""
    losses: list[float] = []
    answers = LiveLogits(teacher, views, device)
    recipe = RECIPE.model_copy(update=options)
    return distil(network(), plan, views, answers, recipe, device, seed=0, on_epoch=lambda *numbers: losses.append(numbers[3])), losses


@pytest.mark.parametrize("device", [CPU, BF16, FP16], ids=["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("loss", DISTIL_LOSSES)
def test_a_student_learns_by_every_method_as_published(loss: str, device: Device, teacher: Teacher) -> None:
    plan = DistilPlan(loss=loss, grid=2 if METHODS[loss].regions else 1)
    if loss == "at":  # its mean over 4 cells is 16 times that over the 64 of a CIFAR network
        plan = plan.model_copy(update={"weight": plan.weight / 16})
    if METHODS[loss].decoupled and METHODS[loss].standardised:  # with few classes a beta of 8 may leave one with its target upside down
        plan = plan.model_copy(update={"beta": 2.0})
    student, losses = learned(plan, teacher, data(), device, epochs=6.0, lr=0.01 if plan.loss in FEATURE_LOSSES else 0.05)
    unseen = image_set(40, seed=5)
    right = predict(student, unseen.images, data().normalise, CPU, amp=False).argmax(1) == unseen.labels
    assert right.float().mean() > 0.7
    assert all(value < float("inf") for value in losses)
    assert not student.training


@pytest.mark.parametrize("loss", FREE)
def test_without_ce_weight_no_label_is_looked_at(loss: str, teacher: Teacher) -> None:
    plan, views = DistilPlan(loss=loss, ce_weight=0.0), data()
    blind = replace(views, labels=torch.full_like(views.labels, -1))
    assert same(learned(plan, teacher, views, epochs=1.0)[0], learned(plan, teacher, blind, epochs=1.0)[0])


def test_five_methods_need_no_labels() -> None:
    assert FREE == ["kd", "lskd", "apprentice", "hint", "at"]


@pytest.mark.parametrize("loss", FREE)
def test_teacher_alone_lowers_the_distance_to_it(loss: str, teacher: Teacher) -> None:
    losses = learned(DistilPlan(loss=loss, ce_weight=0.0), teacher, data(), lr=0.005 if METHODS[loss].maps else 0.05)[1]
    assert losses[-1] < losses[0]


# --- feature maps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["kd", "sdd"])
def test_a_live_teacher_answers_to_whole_images_while_the_student_sees_small_ones(loss: str, teacher: Teacher, tmp_path: Path) -> None:
    views = data()
    recipe = RECIPE.model_copy(update={"early_sizes": ((4, 0.5),), "lr": 1e-6})
    losses: dict[str, list[float]] = {"kept": [], "live": []}
    for name, answers in {"kept": TeacherLogits(teacher, views, "digest", CPU, tmp_path), "live": LiveLogits(teacher, views, CPU)}.items():

        def note(*numbers: float, to: list[float] = losses[name]) -> None:
            to.append(numbers[3])

        distil(network(), DistilPlan(loss=loss), views, answers, recipe, CPU, seed=0, on_epoch=note)
    assert losses["live"] == pytest.approx(losses["kept"], rel=1e-3)


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_feature_maps_are_made_in_every_step_and_nothing_is_kept(loss: str, teacher: Teacher, tmp_path: Path) -> None:
    views = data()
    kept = TeacherLogits(teacher, views, "digest", CPU, tmp_path)
    distil(network(), DistilPlan(loss=loss), views, kept, RECIPE.model_copy(update={"epochs": 2.0}), CPU, seed=0)
    probe = 1 if loss == "hint" else 0  # one image tells the regressor how many channels there are
    assert kept.forward_images == 2 * len(views) + probe
    assert not kept.folder.exists()


def test_the_regressor_is_let_go_and_the_student_is_the_network_that_was_given(teacher: Teacher) -> None:
    student = network()
    before = state(student)
    views = data()
    after = distil(student, DistilPlan(loss="hint"), views, LiveLogits(teacher, views, CPU), RECIPE, CPU, seed=0)
    assert after is student
    assert before.keys() == after.state_dict().keys()
    assert not same(after, network())


def test_a_hint_teaches_a_student_with_another_number_of_channels_and_another_map(teacher: Teacher) -> None:
    views = data()
    student = network(0.5, name="resnet8")
    shapes = [model.features(views.plain(torch.tensor([0, 1]))).shape[1:] for model in (student, teacher.model)]  # type: ignore[operator]
    assert shapes[0][0] != shapes[1][0]
    losses: list[float] = []
    answers = LiveLogits(teacher, views, CPU)
    plan = DistilPlan(loss="hint", ce_weight=0.0)
    distil(student, plan, views, answers, RECIPE.model_copy(update={"lr": 0.01}), CPU, seed=0, on_epoch=lambda *n: losses.append(n[3]))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["light_cnn", "hybrid_serial"])
def test_the_regressor_gives_negative_values_where_the_teacher_s_map_has_them(name: str) -> None:
    """A ReLU at its end could at best answer 0 to them, as to those of layer norms and of GELU."""
    views = data()
    model = network(0.5, seed=0, name=name).eval().requires_grad_(False)
    answers = LiveLogits(Teacher(model, views.normalise, name, 1.0, name), views, CPU)
    hint = answers.maps(views.plain(torch.arange(len(views))))
    learner = _hinted(network(), DistilPlan(loss="hint"), views, answers, CPU, seed=0)
    guess = learner.regressor(learner.student.features(views.plain(torch.arange(8))))  # type: ignore[operator]
    assert bool((guess < 0).any()) is bool((hint < 0).any()) is (name == "hybrid_serial")
    losses: list[float] = []
    plan = DistilPlan(loss="hint", ce_weight=0.0, weight=1.0)
    recipe = RECIPE.model_copy(update={"epochs": 8.0, "lr": 0.2})
    distil(network(), plan, views, answers, recipe, CPU, seed=0, on_epoch=lambda *numbers: losses.append(numbers[3]))
    floor = hint.clamp(max=0).pow(2).mean()
    assert losses[-1] < (floor if name == "hybrid_serial" else losses[0])


@pytest.mark.parametrize("loss", FEATURE_LOSSES)
def test_quantised_weights_learn_from_feature_maps_too(loss: str, teacher: Teacher) -> None:
    views, student = data(), network()
    bits = {name: 4 for name, module in student.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    losses: list[float] = []

    def finetune(model: nn.Module) -> None:
        recipe = TrainConfig(epochs=4.0, batch_size=16, lr=0.003)
        answers = LiveLogits(teacher, views, CPU)
        distil(model, DistilPlan(loss=loss), views, answers, recipe, CPU, seed=0, on_epoch=lambda *n: losses.append(n[3]))

    integers = QUANTISERS["lsq"](student, bits, finetune)
    assert integers.keys() == bits.keys()
    assert losses[-1] < losses[0]


def test_averaged_weights_are_those_of_the_student_under_a_hint(teacher: Teacher) -> None:
    plain, averaged = (learned(DistilPlan(loss="hint"), teacher, data(), ema=ema, lr=0.005)[0] for ema in (0.0, 0.9))
    assert plain.state_dict().keys() == averaged.state_dict().keys()
    assert not same(plain, averaged)


# --- one step --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", DISTIL_LOSSES)
def test_the_weight_of_dkd_alone_rises_over_the_first_twelfth_of_a_run(loss: str) -> None:
    plan = DistilPlan(loss=loss)
    warmed = METHODS[loss].decoupled
    assert pytest.approx(1 / 12) == WARM_UP
    assert weight_at(plan, 1.0) == weight_at(plan, WARM_UP) == plan.weight
    assert weight_at(plan, WARM_UP / 2) == pytest.approx(plan.weight / 2 if warmed else plan.weight)


def test_a_run_of_any_length_is_warmed_up_alike(teacher: Teacher) -> None:
    """In the first of 24 steps half of DKD counts, in the second and later ones all."""
    views = data()
    factors: list[float] = []
    plan = DistilPlan(loss="dkd", ce_weight=0.0)
    loss = distil_loss(plan, LiveLogits(teacher, views, CPU))
    full = DISTIL_LOSSES["dkd"]

    def spy(outputs: Tensor, batch: Batch) -> Tensor:
        value = loss((outputs, outputs), batch)
        target = LiveLogits(teacher, views, CPU)(batch.indices, batch.view, batch.images)
        factors.append(float(value.detach() / full(outputs.detach(), target, batch.labels, plan)))
        return value

    fit(network(), views, spy, TrainConfig(epochs=4.0, batch_size=16, lr=0.01), CPU, seed=0)
    assert factors[:3] == pytest.approx([0.5, 1.0, 1.0], abs=1e-4)
    assert factors[-1] == pytest.approx(1.0, abs=1e-4)


def test_the_loss_of_a_step_is_the_stated_sum(teacher: Teacher) -> None:
    views = data()
    indices, plan = torch.arange(8), DistilPlan(loss="kd", temperature=3.0, weight=0.7, ce_weight=0.2)
    answers = LiveLogits(teacher, views, CPU)
    logits = torch.randn(8, CLASSES)
    batch = Batch(views.batch(indices, 1), views.labels[indices], indices, 1, 1.0)
    hard = nn.functional.cross_entropy(logits, batch.labels, label_smoothing=0.1)
    expected = 0.2 * hard + 0.7 * kd_loss(logits, answers(indices, 1), 3.0)
    torch.testing.assert_close(distil_loss(plan, answers, label_smoothing=0.1)((logits, logits), batch), expected)


@pytest.mark.parametrize(("key", "loss"), [("alpha", "dkd"), ("beta", "sdd_dkd"), ("complementary_weight", "sdd")])
def test_the_numbers_of_dkd_and_sdd_come_from_the_plan(key: str, loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(32, 5, 5, generator=generator) for _ in range(2))
    if loss == "dkd":
        student, teacher = student[..., 0], teacher[..., 0]
    labels = torch.arange(32) % 5
    values = [DISTIL_LOSSES[loss](student, teacher, labels, DistilPlan(**{"loss": loss, key: number})) for number in (1.0, 2.0, 3.0)]  # type: ignore[arg-type]
    assert values[0] < values[1] < values[2]
    torch.testing.assert_close(values[2] - values[1], values[1] - values[0])


def test_a_setting_that_nobody_states_is_the_published_one_of_its_loss() -> None:
    for name, method in METHODS.items():
        plan = DistilPlan(loss=name)
        assert (plan.temperature, plan.weight, plan.ce_weight) == (method.temperature, method.weight, method.ce_weight)
        assert DistilPlan(loss=name, weight=None, temperature=5.0).weight == method.weight  # type: ignore[arg-type]
        assert DistilPlan(loss=name, weight=None, temperature=5.0).temperature == 5.0  # type: ignore[arg-type]
    assert DistilPlan() == DistilPlan(loss="kd", temperature=4.0, weight=0.9, ce_weight=0.1)
    assert DistilPlan.model_validate_json(DistilPlan(loss="lskd").model_dump_json()) == DistilPlan(loss="lskd")


def test_a_teacher_that_was_taught_on_other_pixels_is_asked_in_its_own_way(teacher: Teacher) -> None:
    """The network of the same answers under another normalisation: the first layer is changed to match."""
    views, other = data(), Normalisation((0.1,), (0.7,))
    model = copy.deepcopy(teacher.model)
    wrapped = nn.Sequential(_Rescaled(other, views.normalise), model).eval()
    taught = replace(teacher, model=wrapped, normalise=other)
    indices = torch.arange(20)
    expected = LiveLogits(teacher, views, CPU)(indices, 0)
    torch.testing.assert_close(LiveLogits(taught, views, CPU)(indices, 0), expected, rtol=1e-4, atol=1e-4)


class _Rescaled(nn.Module):
    def __init__(self, before: Normalisation, after: Normalisation) -> None:
        super().__init__()
        self.before, self.after = before, after

    def forward(self, images: Tensor) -> Tensor:
        pixels = images * self.before.std[0] + self.before.mean[0]
        return (pixels - self.after.mean[0]) / self.after.std[0]
