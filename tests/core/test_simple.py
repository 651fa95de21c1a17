"""Distillation in one call: own networks, own folder, with or without labels."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from core.config import TrainConfig
from core.errors import UserError
from core.simple import OURS, SECTIONS, Report, distil_folder
from core.train import Batch, Device, fit
from tests.tiny_data import CLASSES, image_set, search_data, view_set

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "distil.md"
IMAGES = 160
MY_NETS = """
from functools import partial
from tests.core.test_simple import Own

Teacher, Student = partial(Own, 8), partial(Own, 64)
"""
QUICK = {"batch_size": 32, "number": 2, "flip": False, "shift": 1}


class Own(nn.Module):
    """A network that no table knows: convolution, mean, linear."""

    def __init__(self, hidden: int, channels: int = 1, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, hidden, 3, padding=1, stride=2), nn.BatchNorm2d(hidden), nn.ReLU())
        self.classifier = nn.Linear(hidden * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).flatten(1))


class Regions(Own):
    """With a map and a linear head on its mean, as SDD needs them."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.classifier = nn.Linear(hidden, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Coarser(Regions):
    """With a map of half the side."""

    def features(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.body(x), 2)


class OneSize(Regions):
    """It sees images of 8 pixels alone."""

    def features(self, x: Tensor) -> Tensor:
        return self.body(x).reshape(-1, self.classifier.in_features, 4, 4)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 8:
            raise ValueError("8 pixels, please")
        return super().forward(x)


class Auxiliary(Own):
    def forward(self, x: Tensor) -> Any:
        found = super().forward(x)
        return (found, found) if self.training else found


class Viewing(Own):
    """It takes maps for contiguous, which they are not in a training."""

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.body.append(nn.Conv2d(hidden, hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.body(x).view(len(x), -1))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("labelled")
    return write_images(root, lambda label, index: f"{'abcd'[label]}/{index}.png")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("flat"), lambda label, index: f"{index}.png")


def write_images(root: Path, name: Callable[[int, int], str]) -> Path:
    images = image_set(IMAGES, seed=5)
    for index, (image, label) in enumerate(zip(images.images, images.labels.tolist(), strict=True)):
        path = root / name(label, index)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image[0].numpy()).save(path)
    return root


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return taught(Own(8))


def taught(model: nn.Module) -> nn.Module:
    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits.float(), batch.labels)

    return fit(model, view_set(256), loss, TrainConfig(epochs=4, batch_size=32, lr=0.05), Device(torch.device("cpu"), None), seed=0)


def stated() -> dict[str, tuple[float, ...]]:
    """The normalisation that the teacher was trained with."""
    return {"mean": search_data().info.mean, "std": search_data().info.std}


def student(seed: int = 1) -> Own:
    torch.manual_seed(seed)
    return Own(4)


def test_the_ten_lines_of_the_guide_run_as_printed(trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert code is not None
    assert len(code[1].strip().splitlines()) <= 10
    (tmp_path / "images").mkdir()
    write_images(tmp_path / "images", lambda label, index: f"{'abcd'[label]}/{index}.png")
    torch.save(trained.state_dict(), tmp_path / "teacher.pt")
    (tmp_path / "my_nets.py").write_text(MY_NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    exec(code[1], {})
    sizes = {name: (tmp_path / f"{name}.pt").stat().st_size for name in ("student", "student_int8")}
    assert sizes["student_int8"] < sizes["student"]


def test_the_loss_of_the_guide_teaches_in_a_loop_of_one_s_own(trained: nn.Module) -> None:
    _, code, *_ = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    exec(code, names := {})
    model, data = student(), view_set(64)
    images, labels = data.plain(torch.arange(64)), data.labels
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = [names["train_step"](trained.eval(), model, optimiser, images, labels) for _ in range(12)]
    assert losses[-1] < 0.7 * losses[0]


def test_a_student_learns_from_a_labelled_folder(trained: nn.Module, labelled: Path, tmp_path: Path) -> None:
    model = student()
    learned, report = distil_folder(trained, model, labelled, epochs=8, lr=0.1, cache_dir=tmp_path, **QUICK)
    assert learned is model
    assert not any(module.training for module in learned.modules())
    assert report.images + report.held_out == IMAGES
    assert report.teacher_accuracy is not None
    assert report.accuracy is not None
    assert report.teacher_accuracy > 0.9
    assert report.accuracy > 0.75
    assert len(report.losses) == 8
    assert report.losses[-1] < report.losses[0]


def test_without_labels_the_teacher_alone_teaches(trained: nn.Module, flat: Path, labelled: Path, tmp_path: Path) -> None:
    def agreement(folder: Path, **options: object) -> Report:
        return distil_folder(trained, student(), folder, epochs=8, lr=0.1, cache_dir=tmp_path, **stated(), **QUICK, **options).report

    for report in (agreement(flat), agreement(labelled, labelled=False)):
        assert report.accuracy is None
        assert report.teacher_accuracy is None
        assert report.agreement > 0.75


def test_the_second_call_needs_no_teacher_and_gives_the_same_student(trained: nn.Module, labelled: Path, tmp_path: Path) -> None:
    runs = [distil_folder(trained, student(), labelled, epochs=3, cache_dir=tmp_path, **QUICK) for _ in range(2)]
    assert runs[0].report.teacher_forward_images == 2 * runs[0].report.images
    assert runs[1].report.teacher_forward_images == 0
    assert_same(runs[0].student, runs[1].student)


def test_the_answers_of_another_teacher_are_not_served(trained: nn.Module, labelled: Path, tmp_path: Path) -> None:
    distil_folder(trained, student(), labelled, epochs=1, cache_dir=tmp_path, **stated(), **QUICK)
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.classifier.weight[0, 0] += 0.5  # type: ignore[union-attr, operator]
    report = distil_folder(other, student(), labelled, epochs=1, cache_dir=tmp_path, **stated(), **QUICK).report
    assert report.teacher_forward_images == report.images


@pytest.mark.parametrize(
    "option",
    [
        {"lr": 0.01},
        {"momentum": 0.5},
        {"temperature": 1.0},
        {"loss": "lskd"},
        {"epochs": 2},
        {"ce_weight": 0.7},
        {"weight": 3.0},
        {"batch_size": 16},
        {"weight_decay": 0.1},
        {"optimiser": "adam"},
        {"seed": 4},
        {"label_smoothing": 0.2},
        {"search_fraction": 0.3},
        {"lora": {"rank": 2}},
        {"average": True},
    ],
    ids=lambda option: next(iter(option)),
)
def test_every_option_changes_what_is_learned(option: dict[str, object], trained: nn.Module, labelled: Path, cache: Path) -> None:
    settings = {"epochs": 1, "cache_dir": cache, **stated(), **QUICK}
    usual, _ = distil_folder(trained, student(), labelled, **settings)  # type: ignore[arg-type]
    other, _ = distil_folder(trained, student(), labelled, **(settings | option))  # type: ignore[arg-type]
    assert any(not torch.equal(a, b) for a, b in zip(usual.parameters(), other.parameters(), strict=True))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_an_option_belongs_to_one_section() -> None:
    keys = [key for model in SECTIONS.values() for key in model.model_fields if key not in OURS]
    assert len(keys) == len(set(keys))


def test_losses_on_regions_take_networks_with_maps(labelled: Path, tmp_path: Path) -> None:
    teacher = taught(Regions(8))
    report = distil_folder(teacher, Regions(4), labelled, epochs=2, loss="sdd", grid=2, cache_dir=tmp_path, **stated(), **QUICK).report
    assert report.losses[-1] < report.losses[0]
    with pytest.raises(UserError, match="SDD needs"):
        distil_folder(teacher, student(), labelled, loss="sdd", grid=2, cache_dir=tmp_path, **stated(), **QUICK)


def test_regions_are_equal_parts_of_every_map_that_they_are_cut_from(labelled: Path, cache: Path) -> None:
    settings = {"epochs": 1, "loss": "sdd", "cache_dir": cache, "channels": 1, **stated(), **QUICK}
    twice = distil_folder(Regions(8), Regions(4), labelled, grid=4, image_size=4, **settings)  # type: ignore[arg-type]
    assert len(twice.report.losses) == 1  # a map of 2 x 2, whose cells are repeated in a grid of 4
    law = "must divide a feature map of several cells, or repeat them, but the "
    refused(law + "teacher has a map of 6 x 6 and grid 4", Regions(8), Regions(4), labelled, grid=4, image_size=12, **settings)
    refused(law + "student has a map of 3 x 3 and grid 2", Regions(8), Coarser(4), labelled, grid=2, image_size=12, **settings)
    small = {"grid": 2, "image_size": 8, "early_sizes": [[6, 0.5]]}
    refused(law + r"student under distil_folder\.early_sizes has a map of 3 x 3", Regions(8), Regions(4), labelled, **small, **settings)
    small["early_sizes"] = [[4, 0.5]]
    assert distil_folder(Regions(8), Regions(4), labelled, **small, **settings).report.losses  # type: ignore[arg-type]


def test_a_network_that_sees_one_size_alone_is_refused_where_images_are_small_at_first(
    trained: nn.Module, labelled: Path, cache: Path
) -> None:
    settings = {"early_sizes": [[4, 0.5]], "cache_dir": cache, **stated(), **QUICK}
    law = r"distil_folder\.early_sizes needs networks that take smaller images, but the {} does not take 4 x 4"
    refused(law.format("student"), trained, student(), labelled, **settings)
    refused(law.format("teacher"), OneSize(8), Regions(4), labelled, loss="hint", **settings)


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"loss": "sdd", "grid": 2}, "as regions of shifted and mirrored views do not match, but loss is sdd; leave average out"),
        ({"loss": "hint"}, "as maps of shifted and mirrored views do not match, but loss is hint; leave average out"),
        ({"loss": "at"}, "as maps of shifted and mirrored views do not match, but loss is at; leave average out"),
        ({"cache": "off"}, r"views\.average needs kept logits, but views\.cache is off"),
        ({"image_size": 65, "channels": 1}, r"views\.average needs kept logits, but those of images of 65 pixels are not kept"),
    ],
    ids=str,
)
def test_views_are_averaged_where_that_is_what_the_loss_sees_or_it_is_refused(
    options: dict[str, object], law: str, labelled: Path, cache: Path
) -> None:
    refused(law, Regions(8), Regions(4), labelled, average=True, cache_dir=cache, **options)


@pytest.mark.parametrize("loss", ["at", "hint"])
def test_losses_on_maps_run_the_teacher_in_every_step_and_need_no_labels(loss: str, flat: Path, tmp_path: Path) -> None:
    teacher = taught(Regions(8))
    report = distil_folder(teacher, Regions(4), flat, epochs=2, loss=loss, cache_dir=tmp_path, **stated(), **QUICK).report
    assert report.losses[-1] < report.losses[0]
    assert report.teacher_forward_images >= 2 * report.images


@pytest.mark.parametrize("rule", ["logits", "probabilities"])
def test_several_teachers_answer_as_one(rule: str, trained: nn.Module, labelled: Path, tmp_path: Path) -> None:
    teachers = [trained, taught(Regions(8))]
    mix = {"rule": rule, "weights": [3, 1]}
    settings = {"epochs": 4, "lr": 0.1, "ce_weight": 0.0, "cache_dir": tmp_path, **stated(), **QUICK}
    report = distil_folder(teachers, student(), labelled, teacher_mix=mix, **settings).report  # type: ignore[arg-type]
    assert report.teacher_forward_images == 2 * 2 * report.images
    assert report.agreement > 0.6
    refused("must have one weight", teachers, student(), labelled, teacher_mix={"weights": [1.0]})
    refused("needs a teacher", [], student(), labelled)
    mixed = "teacher_mix.rule probabilities goes with losses that do not standardise logits, but loss is lskd; take the rule logits"
    refused(mixed, teachers, student(), labelled, loss="lskd", teacher_mix={"rule": "probabilities"})
    one = "hint and at learn from the feature map of one teacher, but there are 2 and loss is hint; take one teacher"
    refused(one, teachers, student(), labelled, loss="hint")


def test_what_does_not_fit_into_memory_is_read_from_its_files(trained: nn.Module, labelled: Path, tmp_path: Path) -> None:
    settings = {"epochs": 2, "cache_dir": tmp_path, "image_size": 8, "channels": 1, **stated(), **QUICK}
    streamed, resident = (
        distil_folder(trained, student(), labelled, **settings, **more) for more in ({"resident_gb": 1e-9, "workers": 0}, {})
    )  # type: ignore[arg-type]
    assert streamed.report.images == resident.report.images
    assert streamed.report.teacher_accuracy == resident.report.teacher_accuracy
    assert streamed.report.losses[-1] < streamed.report.losses[0]


def test_mixed_precision_trains_as_well(trained: nn.Module, labelled: Path, tmp_path: Path) -> None:
    report = distil_folder(trained, student(), labelled, epochs=3, amp="bf16", device="cpu", cache_dir=tmp_path, **QUICK).report
    assert report.losses[-1] < report.losses[0]


def test_the_teacher_stays_as_it_was(trained: nn.Module, labelled: Path, tmp_path: Path) -> None:
    before = copy.deepcopy(trained)
    distil_folder(trained, student(), labelled, epochs=1, cache_dir=tmp_path, **QUICK)
    assert_same(trained, before)
    assert all(parameter.requires_grad for parameter in trained.parameters())


def test_a_guessed_normalisation_is_said(trained: nn.Module, flat: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        report = distil_folder(trained, student(), flat, epochs=1, cache_dir=tmp_path, **QUICK).report
    assert "pass mean= and std=" in caplog.text
    assert 0 < report.mean[0] < 1


def test_progress_is_told_after_every_epoch(trained: nn.Module, labelled: Path, tmp_path: Path) -> None:
    seen: list[float] = []
    distil_folder(trained, student(), labelled, epochs=3, cache_dir=tmp_path, on_epoch=lambda done, *_: seen.append(done), **QUICK)
    assert seen == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({"temprature": 3.0}, "did you mean 'temperature'"),
        ({"temperature": 0.0}, "temperature"),
        ({"lr": -1.0}, "lr"),
        ({"momentum": 1.0}, "momentum"),
        ({"loss": "kdd"}, "did you mean 'kd'"),
        ({"mean": (0.5,)}, "must both be given"),
        ({"mean": (0.5, 0.5), "std": (0.2, 0.2)}, "one value per channel"),
        ({"channels": 3}, "the teacher must take images of 3 x 8 x 8"),
        ({"device": "nowhere"}, "device"),
        ({"search_fraction": 1.0}, "search_fraction"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named_in_one_line(options: dict[str, object], law: str, trained: nn.Module, labelled: Path, cache: Path) -> None:
    refused(law, trained, student(), labelled, cache_dir=cache, **options)


@pytest.mark.parametrize("options", [{"ce_weight": 0.1}, {"loss": "dkd"}, {"loss": "ce"}])
def test_images_without_labels_refuse_what_asks_for_labels(options: dict[str, object], trained: nn.Module, flat: Path) -> None:
    refused("images without labels take ce_weight 0", trained, student(), flat, **options)


def test_networks_that_do_not_fit_are_refused(trained: nn.Module, labelled: Path, cache: Path) -> None:
    refused("must not share weights", trained, trained, labelled, cache_dir=cache)
    refused("equally many logits", trained, Own(4, classes=7), labelled, cache_dir=cache)
    refused("the folder's 4 classes", Own(8, classes=7), Own(4, classes=7), labelled, cache_dir=cache)
    refused(r"logits \(B, K\)", nn.Flatten(0), student(), labelled, cache_dir=cache)
    refused("networks must be float32, but the teacher has .*float16; call .float", Own(4).half(), student(), labelled, cache_dir=cache)
    refused("must have parameters that train", trained, student().requires_grad_(False), labelled, cache_dir=cache)
    refused("gives tuple in training mode; wrap it", trained, Auxiliary(4), labelled, cache_dir=cache)
    refused("Use .reshape", trained, Viewing(4), labelled, cache_dir=cache)
    small = student()
    refused("lora.rank must make adapters smaller", trained, small, labelled, cache_dir=cache, lora={"rank": 900})
    assert all(parameter.requires_grad for parameter in small.parameters())


def test_folders_that_cannot_be_used_are_refused(trained: nn.Module, tmp_path: Path) -> None:
    refused("must exist", trained, student(), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("must hold images", trained, student(), tmp_path / "empty")
    write_images(tmp_path / "empty", lambda label, index: f"{'abcd'[label]}/{index}.png" if index else "0.png")
    refused("has both; pass labelled=", trained, student(), tmp_path / "empty")


def refused(law: str, *arguments: object, **options: object) -> None:
    with pytest.raises(UserError, match=law) as error:
        distil_folder(*arguments, **options)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
