"""The teacher is trained once and asked once: what is kept is used again, and only where it belongs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from core.candidate import DistilPlan
from core.config import Config, LoraConfig, TeacherConfig, TeacherTrainConfig, TrainConfig, ViewsConfig
from core.data.types import SearchData
from core.distil import distil
from core.errors import UserError
from core.losses import REGION_LOSSES, region_logits
from core.sealed import SEAL_BYTES
from core.students import STUDENTS
from core.students.own import save_weights
from core.teacher import Teacher, obtain_teacher, weights_digest
from core.teacher_logits import TeacherLogits, check_regions, view_bytes
from core.train import Device, predict
from core.views import Normalisation, viewed
from tests.tiny_data import search_data

CPU = Device(torch.device("cpu"), None)
DATA = search_data()
VIEWS = ViewsConfig(number=2, shift=1)
ALL = torch.arange(len(DATA.train))
NET = """
from torch import nn
def build(classes, channels, image_size):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.{activation}(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes{more}))
"""


def config(**teacher: object) -> Config:
    recipe = TeacherTrainConfig(epochs=2.0, batch_size=16, lr=0.05)
    return Config(teacher=TeacherConfig(**{"name": "light_cnn", "width": 0.25, "train": recipe, **teacher}), views=VIEWS)  # type: ignore[arg-type]


def obtain(folder: Path, settings: Config | None = None, data: SearchData = DATA) -> tuple[Teacher, int]:
    """The teacher, and after how many epochs of training."""
    epochs: list[float] = []
    teacher = obtain_teacher(settings or config(), data, CPU, folder, lambda done, *rest: epochs.append(done))
    return teacher, len(epochs)


def logits_of(teacher: Teacher, folder: Path, data: SearchData = DATA, views: ViewsConfig = VIEWS, seed: int = 0) -> TeacherLogits:
    return TeacherLogits(teacher, viewed(data.train, teacher.normalise, views, seed, CPU.device), data.info.digest, CPU, folder)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    return obtain(tmp_path_factory.mktemp("teacher"))[0]


@pytest.fixture
def own(tmp_path: Path) -> tuple[str, Path]:
    """A user's file and weights."""
    file = tmp_path / "net.py"
    file.write_text(NET.format(activation="ReLU", more=""))
    scope: dict[str, object] = {}
    exec(file.read_text(), scope)
    torch.manual_seed(0)
    network = scope["build"](4, 1, 8)  # type: ignore[operator]
    save_weights(network, tmp_path / "net.safetensors")
    return f"{file}:build", tmp_path / "net.safetensors"


# --- the network -----------------------------------------------------------------------------------------------------


def test_a_teacher_is_trained_once_and_loaded_afterwards(tmp_path: Path) -> None:
    first, trained = obtain(tmp_path)
    second, again = obtain(tmp_path)
    assert (trained, again) == (2, 0)
    assert first.digest == second.digest
    assert first.accuracy == second.accuracy
    assert all(torch.equal(a, b) for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    "other",
    [
        config(width=0.5),
        config(train=TeacherTrainConfig(epochs=1.0, batch_size=16, lr=0.05)),
        config().model_copy(update={"seed": 1}),
        config().model_copy(update={"views": ViewsConfig(number=2, flip=False, shift=1)}),
        config(mean=(0.5,), std=(0.5,)),
        config(train=TeacherTrainConfig(epochs=4.0, batch_size=16, lr=0.05, infobatch=0.5)),
    ],
)
def test_another_recipe_is_another_teacher(teacher: Teacher, tmp_path: Path, other: Config) -> None:
    obtain(tmp_path)
    changed, epochs = obtain(tmp_path, other)
    assert epochs > 0
    assert changed.digest != teacher.digest


@pytest.mark.parametrize("options", [{}, {"infobatch": 0.5}, {"lora": LoraConfig(rank=2)}])
@pytest.mark.parametrize("name", ["light_cnn", "airbench"])
def test_a_training_that_was_interrupted_goes_on_and_gives_the_same_teacher(name: str, options: dict[str, object], tmp_path: Path) -> None:
    recipe = TeacherTrainConfig(**{"epochs": 6.0, "batch_size": 16, "lr": 0.05, **options})  # type: ignore[arg-type]
    settings = config(name=name, train=recipe)
    epochs: list[float] = []

    def cut(done: float, *rest: object) -> None:
        epochs.append(done)
        if done == 5.0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain_teacher(settings, DATA, CPU, tmp_path / "cut", cut)
    again = obtain_teacher(settings, DATA, CPU, tmp_path / "cut", lambda done, *rest: epochs.append(done))
    assert epochs == [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 6.0]
    assert again.digest == obtain(tmp_path / "whole", settings)[0].digest
    assert [path.suffix for path in (tmp_path / "cut" / "teachers").glob("[!.]*")] == [".safetensors"]


def test_how_many_views_are_kept_for_students_is_no_matter_of_the_teacher(tmp_path: Path) -> None:
    obtain(tmp_path)
    fewer = config().model_copy(update={"views": config().views.model_copy(update={"number": 1})})
    assert obtain(tmp_path, fewer)[1] == 0


def test_other_data_makes_another_teacher(teacher: Teacher, tmp_path: Path) -> None:
    obtain(tmp_path)
    assert obtain(tmp_path, data=search_data(seed=3))[1] > 0


def test_a_teacher_is_frozen_and_in_eval_mode(teacher: Teacher) -> None:
    assert not teacher.model.training
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_accuracy_is_that_of_the_search_split(teacher: Teacher) -> None:
    top1 = predict(teacher.model, DATA.search.images, teacher.normalise, CPU, amp=False).argmax(1)
    assert teacher.accuracy == pytest.approx(float((top1 == DATA.search.labels).float().mean()))


def test_the_digest_follows_every_weight_and_the_normalisation(teacher: Teacher) -> None:
    model, normalise = nn.Linear(2, 2).double(), Normalisation((0.5,), (0.5,))
    before = weights_digest(model, normalise)
    assert before == weights_digest(model, normalise)
    assert before != weights_digest(model, Normalisation((0.5,), (0.4,)))
    assert before != weights_digest(model.bfloat16(), normalise)
    model.bias.data[1] += 1.0
    assert before != weights_digest(model, normalise)


def test_the_user_s_weights_are_taken_and_not_trained(own: tuple[str, Path], tmp_path: Path) -> None:
    model, weights = own
    taken, epochs = obtain(tmp_path / "cache", config(model=model, weights=weights))
    assert epochs == 0
    assert not (tmp_path / "cache" / "teachers").exists()
    assert taken.name == model


def test_the_user_s_network_without_weights_is_trained_anew_when_its_file_changes(own: tuple[str, Path], tmp_path: Path) -> None:
    settings = config(model=own[0])
    assert obtain(tmp_path, settings)[1] == 2
    assert obtain(tmp_path, settings)[1] == 0
    Path(own[0].partition(":")[0]).write_text(NET.format(activation="GELU", more=""))
    assert obtain(tmp_path, settings)[1] == 2


def test_equal_weights_in_another_forward_are_another_teacher(own: tuple[str, Path], tmp_path: Path) -> None:
    settings = config(model=own[0], weights=own[1])
    first, _ = obtain(tmp_path, settings)
    Path(own[0].partition(":")[0]).write_text(NET.format(activation="Tanh", more=""))
    assert obtain(tmp_path, settings)[0].digest != first.digest


def test_a_normalisation_that_is_stated_is_used(own: tuple[str, Path], tmp_path: Path) -> None:
    stated = config(model=own[0], weights=own[1], mean=(0.1,), std=(0.7,))
    assert obtain(tmp_path, stated)[0].normalise == Normalisation((0.1,), (0.7,))


def test_a_mean_of_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher.mean must be in \[0, 1\], as pixels are, but got \(123.7,\); divide mean and std"):
        obtain(tmp_path, config(mean=(123.7,), std=(58.4,)))


@pytest.mark.parametrize("wrong", [{"mean": (0.5,)}, {"mean": (0.5, 0.5), "std": (0.5, 0.5)}, {"mean": (0.5,), "std": (0.0,)}])
def test_half_a_normalisation_is_refused(wrong: dict[str, tuple[float, ...]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher\.mean and teacher\.std must both be given, one value per channel \(1\)"):
        obtain(tmp_path, config(**wrong))


def test_the_normalisation_under_which_the_weights_work_is_found(tmp_path: Path) -> None:
    """Weights of a network that was trained on pixels in [0, 1], given without a word about it."""
    plain = Normalisation((0.0,), (1.0,))
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\ndef build(classes, channels, image_size):\n"
        "    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, classes))\n"
    )
    # relu(x) - 10 relu(x - 1): the brightest quarter, and what is brighter than 1 cannot be
    eye, zeros = torch.eye(4), torch.zeros(4)
    weights = {"2.weight": torch.cat([eye, eye]), "2.bias": torch.cat([zeros, zeros - 1.0])}
    weights |= {"4.weight": torch.cat([eye, -10.0 * eye], 1), "4.bias": zeros}
    torch.save(weights, tmp_path / "w.pt")
    found, _ = obtain(tmp_path, config(model=f"{file}:build", weights=tmp_path / "w.pt"))
    assert found.accuracy == 1.0
    assert found.normalise == plain


def test_a_network_of_other_classes_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(NET.format(activation="ReLU", more=" + 3"))
    with pytest.raises(UserError, match="one per class"):
        obtain(tmp_path, config(model=f"{file}:build"))


def test_weights_of_other_channels_are_refused(tmp_path: Path) -> None:
    coloured = STUDENTS["light_cnn"](classes=4, channels=3, image_size=8, width=0.25)
    save_weights(coloured, tmp_path / "coloured.safetensors")
    with pytest.raises(UserError, match=r"do not fit the model: .*of another shape"):
        obtain(tmp_path, config(weights=tmp_path / "coloured.safetensors"))


# --- its logits ------------------------------------------------------------------------------------------------------


def test_logits_are_the_teacher_s_answer_to_the_very_view(teacher: Teacher, tmp_path: Path) -> None:
    logits = logits_of(teacher, tmp_path)
    indices = torch.tensor([5, 80, 5])
    with torch.no_grad():
        expected = teacher.model(logits.data.batch(indices, 1))
    assert logits(indices, 1).dtype == torch.float32
    torch.testing.assert_close(logits(indices, 1), expected, rtol=2e-3, atol=2e-3)


def test_a_warm_cache_forwards_no_image(teacher: Teacher, tmp_path: Path) -> None:
    cold, warm = logits_of(teacher, tmp_path), logits_of(teacher, tmp_path)
    first = [cold(ALL, view) for view in (0, 1, 0)]
    second = [warm(ALL, view) for view in (0, 1, 0)]
    assert cold.forward_images == 2 * len(DATA.train)
    assert warm.forward_images == 0
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_views_that_nobody_asks_for_are_not_computed(teacher: Teacher, tmp_path: Path) -> None:
    logits = logits_of(teacher, tmp_path)
    logits(ALL[:3], 1)
    assert [path.name for path in logits.folder.iterdir() if path.suffix != ".lock"] == ["view_01.npy"]
    assert logits.forward_images == len(DATA.train)


def other_array(rows: int = len(DATA.train), classes: int = 4, dtype: type = np.float16) -> bytes:
    """A file of zeros that numpy reads."""
    file = io.BytesIO()
    np.save(file, np.zeros((rows, classes, 1), dtype))
    return file.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda content: content[:-7],
    "without the seal": lambda content: content[:-SEAL_BYTES],
    "empty": lambda content: b"",
    "text": lambda content: b"no array",
    "a lost page": lambda content: content[:256] + bytes(128) + content[384:],
    "a flipped bit": lambda content: content[:300] + bytes([content[300] ^ 1]) + content[301:],
    "a changed header": lambda content: content.replace(b"'fortran_order': False", b"'fortran_order': True "),
    "other length": lambda content: other_array(rows=len(DATA.train) - 1),
    "other classes": lambda content: other_array(classes=5) + content[-SEAL_BYTES:],
    "other type": lambda content: other_array(dtype=np.float32),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew(teacher: Teacher, tmp_path: Path, damage: str) -> None:
    logits = logits_of(teacher, tmp_path)
    expected = logits(ALL, 0)
    path = logits.folder / "view_00.npy"
    content = path.read_bytes()
    path.write_bytes(DAMAGES[damage](content))
    assert path.read_bytes() != content
    again = logits_of(teacher, tmp_path)
    assert torch.equal(again(ALL, 0), expected)
    assert again.forward_images == len(DATA.train)
    assert path.read_bytes() == content


def test_the_cache_of_another_teacher_is_never_used(teacher: Teacher, tmp_path: Path) -> None:
    other, _ = obtain(tmp_path, config(width=0.5))
    logits_of(teacher, tmp_path)(ALL, 0)
    logits = logits_of(other, tmp_path)
    with torch.no_grad():
        expected = other.model(logits.data.batch(ALL, 0))
    torch.testing.assert_close(logits(ALL, 0), expected, rtol=2e-3, atol=2e-3)
    assert logits.forward_images == len(DATA.train)


def test_a_file_that_was_copied_from_another_teacher_or_another_view_is_never_used(teacher: Teacher, tmp_path: Path) -> None:
    other, _ = obtain(tmp_path, config(width=0.5))
    source = logits_of(teacher, tmp_path)
    expected = [logits_of(other, tmp_path / "elsewhere")(ALL, view) for view in (0, 1)]
    source(ALL, 0)
    logits = logits_of(other, tmp_path)
    logits.folder.mkdir(parents=True)
    shutil.copy(source.folder / "view_00.npy", logits.folder)
    assert torch.equal(logits(ALL, 0), expected[0])
    shutil.copy(logits.folder / "view_00.npy", logits.folder / "view_01.npy")
    assert torch.equal(logits(ALL, 1), expected[1])
    assert logits.forward_images == 2 * len(DATA.train)


def test_more_views_ask_the_teacher_for_the_new_ones_alone(teacher: Teacher, tmp_path: Path) -> None:
    few = logits_of(teacher, tmp_path)
    kept = [few(ALL, view) for view in (0, 1)]
    more = logits_of(teacher, tmp_path, views=VIEWS.model_copy(update={"number": 4}))
    assert more.missing_bytes(4) == 2 * view_bytes(len(DATA.train), 4, 1)
    found = [more(ALL, view) for view in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(kept, found, strict=False))
    assert more.forward_images == 2 * len(DATA.train)


def test_other_data_views_or_seeds_have_a_cache_of_their_own(teacher: Teacher, tmp_path: Path) -> None:
    folders = {
        logits_of(teacher, tmp_path).folder,
        logits_of(teacher, tmp_path, data=search_data(seed=4)).folder,
        logits_of(teacher, tmp_path, views=ViewsConfig(number=2, shift=2)).folder,
        logits_of(teacher, tmp_path, seed=1).folder,
    }
    assert len(folders) == 4


def test_logits_beyond_the_range_of_half_floats_are_clamped_not_lost(tmp_path: Path) -> None:
    huge = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.constant_(huge[1].weight, 1e6)
    teacher = Teacher(huge.eval().requires_grad_(False), Normalisation((0.0,), (1.0,)), "huge", 0.0, "huge")
    assert torch.isfinite(logits_of(teacher, tmp_path)(ALL, 0)).all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_logits_of_a_teacher_that_overflows_are_refused_and_not_kept(tmp_path: Path, wrong: float) -> None:
    broken = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    broken[1].bias.data[2] = wrong
    teacher = Teacher(broken.eval().requires_grad_(False), Normalisation((0.0,), (1.0,)), "broken", 0.0, "broken")
    logits = logits_of(teacher, tmp_path)
    with pytest.raises(UserError, match=r"logits must be finite, but those of broken are not for 96 of 96 images in torch.float32; set"):
        logits(ALL, 0)
    assert not list(tmp_path.rglob("*.npy"))


def test_kept_regions_are_those_of_the_teacher_and_their_mean_is_its_logits(teacher: Teacher, tmp_path: Path) -> None:
    data = viewed(DATA.train, teacher.normalise, VIEWS, 0, CPU.device)
    kept = TeacherLogits(teacher, data, DATA.info.digest, CPU, tmp_path, grid=2)
    images = data.batch(ALL, 1)
    with torch.no_grad():
        expected = region_logits(teacher.model.features(images), teacher.model.classifier, (1, 2))  # type: ignore[operator, arg-type]
        torch.testing.assert_close(kept(ALL, 1), teacher.model(images), rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(kept.regions(ALL, 1, 2), expected, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(kept.regions(ALL, 1, 1), expected[..., :1], rtol=5e-3, atol=5e-3)
    assert kept.forward_images == len(ALL)


def test_a_grid_that_neither_divides_the_map_nor_repeats_its_cells_is_refused_in_words(teacher: Teacher) -> None:
    for grid in (1, 2, 4):
        check_regions(teacher.model, torch.randn(2, 1, 8, 8), grid, "the teacher")  # 2 x 2
    law = r"a feature map of several cells, or repeat them, but the teacher has a map of {} on images of {}; use distil\.grid {}, "
    for side, found, seen, best in (
        (4, "1 x 1 and grid 2", "4 x 4", 1),
        (12, "3 x 3 and grid 2", "12 x 12", 1),
        (24, "6 x 6 and grid 4", "24 x 24", 2),
    ):
        with pytest.raises(UserError, match=law.format(found, seen, best)):
            check_regions(teacher.model, torch.randn(2, 1, side, side), int(found[-1]), "the teacher")


class Late(nn.Module):
    """features(x) lacks what forward does before the mean, as in torchvision's DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.classifier = nn.Conv2d(1, 4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).relu().mean((2, 3)))


def test_logits_that_are_no_mean_over_regions_are_refused() -> None:
    with pytest.raises(UserError, match="classifier of the mean feature"):
        check_regions(Late(), torch.randn(2, 1, 8, 8), 1, "the student self")


def test_regions_need_features_and_a_linear_classifier() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(UserError, match="SDD needs a network with features"):
        check_regions(network, torch.zeros(1, 1, 8, 8), 2, "the teacher")


@pytest.mark.parametrize("loss", REGION_LOSSES)
def test_a_student_learns_from_regions(teacher: Teacher, loss: str, tmp_path: Path) -> None:
    data = viewed(DATA.train, teacher.normalise, VIEWS, 0, CPU.device)
    kept = TeacherLogits(teacher, data, DATA.info.digest, CPU, tmp_path, grid=2)
    torch.manual_seed(1)
    student = STUDENTS["light_cnn"](classes=4, channels=1, image_size=8, width=0.25)
    means: list[float] = []
    plan = DistilPlan(loss=loss, temperature=2.0, grid=2)
    distil(student, plan, data, kept, TrainConfig(epochs=4.0, batch_size=16, lr=0.02), CPU, seed=0, on_epoch=lambda *n: means.append(n[3]))
    assert means[-1] < means[0]


def test_a_named_teacher_takes_weights_in_a_published_layout(tmp_path: Path) -> None:
    model = STUDENTS["resnet8"](classes=4, channels=1, image_size=8)
    published = {
        key.replace("classifier.", "fc.").replace(".shortcut.", ".downsample."): value for key, value in model.state_dict().items()
    }
    torch.save(published, tmp_path / "resnet8.pth")
    teacher, epochs = obtain(tmp_path, config(name="resnet8", width=1.0, weights=tmp_path / "resnet8.pth"))
    assert epochs == 0
    torch.testing.assert_close(teacher.model.state_dict()["classifier.weight"], model.state_dict()["classifier.weight"])
    with pytest.raises(UserError, match=r"do not fit the model.*\(the teacher is light_cnn\); name your own network with --model"):
        obtain(tmp_path, config(weights=tmp_path / "resnet8.pth"))
