"""Teachers answer alike whether their logits are kept or they run, alone or several as one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from core.answers import MixedLogits
from core.config import Config, TeacherMix, ViewsConfig
from core.errors import UserError
from core.files import TEMPORARY
from core.losses import apprentice_loss, dkd_loss, kd_loss, region_logits
from core.students import STUDENTS
from core.teacher import Teacher
from core.teacher_logits import (
    LARGEST_KEPT,
    LiveLogits,
    TeacherLogits,
    check_room,
    is_kept,
    open_answers,
    view_bytes,
)
from core.train import Device
from core.views import ResidentViews
from tests.tiny_data import CLASSES, SIZE, search_data, view_set

CPU = Device(torch.device("cpu"), None)
BF16 = Device(torch.device("cpu"), torch.bfloat16)
PLAN = ViewsConfig(number=3, shift=1, flip=False)
ALL = torch.arange(96)
INFO = search_data().info


def data(**plan: object) -> ResidentViews:
    return view_set(plan=PLAN.model_copy(update=plan))  # type: ignore[return-value]


def teacher(seed: int = 0, scale: float = 1.0) -> Teacher:
    """Untrained, but with opinions."""
    torch.manual_seed(seed)
    model = STUDENTS["light_cnn"](classes=CLASSES, channels=1, image_size=SIZE, width=0.5).eval().requires_grad_(False)
    model.classifier.weight.mul_(5.0 * scale)  # type: ignore[union-attr, operator]
    model.classifier.bias.mul_(scale)  # type: ignore[union-attr, operator]
    return Teacher(model, data().normalise, f"teacher {seed} {scale}", 0.0, "light_cnn")


def kept(who: Teacher, folder: Path, views: ResidentViews | None = None, device: Device = CPU, grid: int = 1) -> TeacherLogits:
    return TeacherLogits(who, views or data(), INFO.digest, device, folder, grid)


# --- kept and live ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, BF16])
def test_a_live_teacher_answers_as_its_kept_logits_do(device: Device, tmp_path: Path) -> None:
    live, stored = LiveLogits(teacher(), data(), device), kept(teacher(), tmp_path, device=device, grid=2)
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if device.amp else {"rtol": 5e-3, "atol": 5e-3}
    torch.testing.assert_close(live(ALL, 1), stored(ALL, 1), **tolerance)
    torch.testing.assert_close(live.regions(ALL, 1, 2), stored.regions(ALL, 1, 2), **tolerance)
    images = data().batch(ALL, 1)
    assert torch.equal(live(ALL, 1, images), live(ALL, 1))
    assert torch.equal(live.maps(images), stored.maps(images))
    assert live(ALL, 1).dtype == live.maps(images).dtype == torch.float32


def test_a_live_teacher_s_images_are_counted_every_time() -> None:
    live = LiveLogits(teacher(), data(), CPU)
    for _ in range(2):
        live(ALL[:10], 0)
    live.maps(data().batch(ALL[:5], 0))
    live.regions(ALL[:3], 0, 2)
    assert live.forward_images == 28


@pytest.mark.parametrize("device", [CPU, BF16])
def test_gradients_pass_by_the_answers_of_a_live_teacher(device: Device) -> None:
    live, student = LiveLogits(teacher(), data(), device), torch.randn(96, CLASSES, requires_grad=True)
    target = live(ALL, 0)
    assert not target.requires_grad
    assert not target.is_inference()
    kd_loss(student * target.exp(), target, 2.0).backward()  # autograd keeps the target for this
    assert student.grad is not None


@pytest.mark.parametrize(
    ("cache", "size", "expected"),
    [("auto", LARGEST_KEPT, True), ("auto", LARGEST_KEPT + 1, False), ("on", 224, True), ("off", 8, False)],
)
def test_logits_of_small_images_are_kept_unless_told_otherwise(cache: Literal["auto", "on", "off"], size: int, expected: bool) -> None:
    assert is_kept(ViewsConfig(cache=cache), size) is expected


def test_the_configuration_decides_whether_logits_are_kept(tmp_path: Path) -> None:
    for cache, kind in (("on", TeacherLogits), ("auto", TeacherLogits), ("off", LiveLogits)):
        config = Config(views=PLAN.model_copy(update={"cache": cache}))
        assert type(open_answers([teacher()], config, data(), INFO, CPU, tmp_path, 1)) is kind


# --- room on disk ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [1, 2])
def test_the_predicted_bytes_are_those_that_are_written(grid: int, tmp_path: Path) -> None:
    stored = kept(teacher(), tmp_path, grid=grid)
    assert stored.missing_bytes(CLASSES) == 3 * view_bytes(96, CLASSES, grid)
    stored(ALL, 0)
    assert stored.missing_bytes(CLASSES) == 2 * view_bytes(96, CLASSES, grid)
    assert (stored.folder / "view_00.npy").stat().st_size == view_bytes(96, CLASSES, grid)


def test_too_little_disk_is_said_with_its_bytes_and_a_way_out(tmp_path: Path) -> None:
    check_room(1000, tmp_path / "not" / "there")
    with pytest.raises(UserError, match=r"need 1,000,000,000,000,000,000 bytes and .* has [0-9,]+ free; set views\.cache=off"):
        check_room(10**18, tmp_path / "not" / "there")
    check_room(10**18, tmp_path, spare=10**18)


def test_a_cache_that_does_not_fit_is_refused_before_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = kept(teacher(), tmp_path)
    need = stored.missing_bytes(CLASSES)
    monkeypatch.setattr("core.teacher_logits.shutil.disk_usage", lambda path: type("Usage", (), {"free": need - 1}))
    with pytest.raises(UserError, match=f"need {need:,} bytes"):
        open_answers([teacher()], Config(views=PLAN), data(), INFO, CPU, tmp_path, 1)
    stored(ALL, 2)  # one view is there now
    open_answers([teacher()], Config(views=PLAN), data(), INFO, CPU, tmp_path, 1)


# --- views averaged --------------------------------------------------------------------------------------------------


def test_the_averaged_answer_is_the_mean_over_the_views_and_the_same_in_each(tmp_path: Path) -> None:
    single, averaged = kept(teacher(), tmp_path), kept(teacher(), tmp_path, data(average=True))
    expected = torch.stack([single(ALL, view) for view in range(3)]).mean(0)
    for view in range(3):
        torch.testing.assert_close(averaged(ALL[5:9], view), expected[5:9])
    assert not torch.allclose(single(ALL, 0), expected, atol=1e-3)


def test_averaging_asks_the_teacher_nothing_once_the_views_are_kept(tmp_path: Path) -> None:
    single = kept(teacher(), tmp_path)
    for view in range(3):
        single(ALL, view)
    averaged = kept(teacher(), tmp_path, data(average=True))
    averaged(ALL, 0)
    assert averaged.forward_images == 0
    cold = kept(teacher(), tmp_path / "cold", data(average=True))
    cold(ALL[:1], 1)
    assert cold.forward_images == 3 * 96


# --- several teachers ------------------------------------------------------------------------------------------------


def mixed(
    teachers: Sequence[Teacher], rule: str = "logits", weights: tuple[float, ...] | None = None, temperature: float = 1.0
) -> MixedLogits:
    config = Config(views=PLAN.model_copy(update={"cache": "off"}), more_teachers=[{}] * (len(teachers) - 1))  # type: ignore[arg-type]
    config = config.model_copy(update={"teacher_mix": TeacherMix(rule=rule, weights=weights)})  # type: ignore[arg-type]
    answers = open_answers(teachers, config, data(), INFO, CPU, Path("unused"), 1)
    assert isinstance(answers, MixedLogits)
    return answers.softened(temperature)


def test_a_confident_teacher_weighs_no_more_than_another_when_logits_are_mixed() -> None:
    first, second, loud = teacher(0), teacher(1), teacher(1, scale=50.0)
    torch.testing.assert_close(mixed([first, loud])(ALL, 0), mixed([first, second])(ALL, 0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rule", ["logits", "probabilities"])
def test_the_order_of_teachers_means_nothing_and_their_weights_do(rule: str) -> None:
    pair = [teacher(0), teacher(1)]
    torch.testing.assert_close(mixed(pair, rule, (3.0, 1.0))(ALL, 0), mixed(pair[::-1], rule, (1.0, 3.0))(ALL, 0))
    assert not torch.allclose(mixed(pair, rule, (3.0, 1.0))(ALL, 0), mixed(pair, rule)(ALL, 0), atol=1e-2)
    torch.testing.assert_close(mixed(pair, rule, (6.0, 2.0))(ALL, 0), mixed(pair, rule, (3.0, 1.0))(ALL, 0))
    assert mixed(pair, rule).digest != mixed(pair, rule, (3.0, 1.0)).digest


def softmax(who: Teacher, temperature: float) -> Tensor:
    return torch.softmax(LiveLogits(who, data(), CPU)(ALL, 0) / temperature, 1)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_mixed_probabilities_are_the_weighted_mean_at_the_loss_s_own_temperature(temperature: float) -> None:
    pair = [teacher(0), teacher(1)]
    target = mixed(pair, "probabilities", (3.0, 1.0), temperature)(ALL, 0)
    expected = 0.75 * softmax(pair[0], temperature) + 0.25 * softmax(pair[1], temperature)
    torch.testing.assert_close(torch.softmax(target / temperature, 1), expected)


def test_the_gradient_of_mixed_probabilities_is_the_mean_of_the_teachers_gradients() -> None:
    """You et al. 2017: the sum of w KL(q_m || p) and KL(sum of w q_m || p) differ by a constant."""
    pair, student = [teacher(0), teacher(1)], torch.randn(96, CLASSES, requires_grad=True)
    one = kd_loss(student, mixed(pair, "probabilities", temperature=4.0)(ALL, 0), 4.0)
    each = sum(kd_loss(student, LiveLogits(who, data(), CPU)(ALL, 0), 4.0) for who in pair) / 2  # type: ignore[arg-type]
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (one, each)]  # type: ignore[arg-type]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_two_equal_teachers_are_one_for_every_loss_on_probabilities() -> None:
    alone, twice = LiveLogits(teacher(), data(), CPU)(ALL, 0), mixed([teacher(), teacher()], "probabilities", temperature=2.0)(ALL, 0)
    student, labels = torch.randn(96, CLASSES), ALL % CLASSES
    torch.testing.assert_close(kd_loss(student, twice, 2.0), kd_loss(student, alone, 2.0))
    torch.testing.assert_close(apprentice_loss(student, twice, 2.0), apprentice_loss(student, alone, 2.0))
    torch.testing.assert_close(dkd_loss(student, twice, labels, 2.0, 1.0, 8.0), dkd_loss(student, alone, labels, 2.0, 1.0, 8.0))


@pytest.mark.parametrize("rule", ["logits", "probabilities"])
def test_regions_are_mixed_one_by_one(rule: str) -> None:
    pair = [teacher(0), teacher(1)]
    answers = mixed(pair, rule, temperature=2.0)
    regions = answers.regions(ALL, 0, 2)
    assert regions.shape == (96, CLASSES, 5)
    images = data().batch(ALL, 0)
    cell = [region_logits(who.model.features(images), who.model.classifier, (1, 2))[..., 3] for who in pair]  # type: ignore[operator, arg-type]
    torch.testing.assert_close(regions[..., 3], answers._mix(cell), rtol=1e-4, atol=1e-4)


def test_every_teacher_keeps_its_logits_under_its_own_key(tmp_path: Path) -> None:
    pair = [teacher(0), teacher(1)]
    config = Config(views=PLAN, more_teachers=[{}], teacher_mix={"weights": (1.0, 1.0)})  # type: ignore[arg-type, list-item]
    cold = open_answers(pair, config, data(), INFO, CPU, tmp_path, 1)
    first = cold(ALL, 0)
    assert cold.forward_images == 2 * 96
    assert len(list((tmp_path / "logits").iterdir())) == 2
    warm = open_answers([pair[1], pair[0]], config, data(), INFO, CPU, tmp_path, 1)
    torch.testing.assert_close(warm(ALL, 0), first)
    assert warm.forward_images == 0


def test_maps_of_several_teachers_are_refused() -> None:
    with pytest.raises(UserError, match="hint and at learn from the feature map of one teacher, but there are 2"):
        mixed([teacher(0), teacher(1)]).maps(data().batch(ALL[:2], 0))


def test_a_teacher_s_normalisation_is_kept_beside_another_s(tmp_path: Path) -> None:
    other = replace(teacher(1), normalise=replace(data().normalise, mean=(0.9,)), digest="other")
    answers, alone = kept(other, tmp_path), LiveLogits(teacher(1), data(), CPU)
    assert not torch.allclose(answers(ALL, 0), alone(ALL, 0), atol=0.1)
    pixels = data().batch(ALL, 0) * data().normalise.std[0] + data().normalise.mean[0]
    expected = other.model((pixels - 0.9) / other.normalise.std[0])
    torch.testing.assert_close(answers(ALL, 0), expected, rtol=5e-3, atol=5e-3)


def test_the_mix_must_weigh_every_teacher() -> None:
    with pytest.raises(ValueError, match=r"one weight for `teacher` and each of `more_teachers`, but has 2 for 3 teacher\(s\)"):
        Config(more_teachers=[{}, {}], teacher_mix={"weights": (1.0, 1.0)})  # type: ignore[arg-type, list-item]


def test_what_is_kept_does_not_depend_on_how_it_is_used() -> None:
    assert ViewsConfig(cache="off", average=True).augmentation() == ViewsConfig().augmentation()
    assert ViewsConfig(number=2).augmentation() != ViewsConfig().augmentation()
    assert ViewsConfig(cache="off", average=True, number=2).one_view() == ViewsConfig().one_view()
    for other in ({"flip": False}, {"shift": 3}, {"min_area": 0.5}):
        assert ViewsConfig(**other).one_view() != ViewsConfig().one_view()  # type: ignore[arg-type]


def test_a_network_without_features_keeps_and_answers_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = replace(teacher(), model=nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).eval().requires_grad_(False), digest="plain")
    torch.testing.assert_close(kept(plain, tmp_path)(ALL, 0), LiveLogits(plain, data(), CPU)(ALL, 0), rtol=5e-3, atol=5e-3)


# --- several workers -------------------------------------------------------------------------------------------------

WORKER = """
import sys
from pathlib import Path
from tests.core.test_teacher_logits import ALL, kept, teacher
answers = kept(teacher(), Path(sys.argv[1]))
print("ready", flush=True)
input()
for view in range(3):
    answers(ALL, view)
print(answers.forward_images)
"""


def test_workers_that_find_no_logits_make_every_view_once_and_read_the_same(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path)]
    with ExitStack() as stack:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[2]}
        workers = [stack.enter_context(subprocess.Popen(command, **pipes)) for _ in range(2)]  # type: ignore[call-overload]
        assert [worker.stdout.readline() for worker in workers] == ["ready\n"] * 2
        for worker in workers:
            worker.stdin.write("\n")
            worker.stdin.flush()
        seen = [int(worker.communicate()[0]) for worker in workers]
    assert sum(seen) == 3 * 96
    warm, own = kept(teacher(), tmp_path), kept(teacher(), tmp_path / "own")
    assert all(torch.equal(warm(ALL, view), own(ALL, view)) for view in range(3))
    assert warm.forward_images == 0
    assert sorted(path.name for path in warm.folder.glob("[!.]*")) == [f"view_{view:02d}.npy" for view in range(3)]
    assert not list(tmp_path.rglob(TEMPORARY))
