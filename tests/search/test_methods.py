"""Every distillation method through the command: what goes together runs, what does not is one line before anything trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from core.config import Config, TeacherConfig, TrainConfig, ViewsConfig
from core.data.types import DataInfo, ImageSet
from core.errors import UserError
from core.losses import region_logits, scales_of
from core.students import STUDENTS
from core.teacher import Teacher
from core.views import Normalisation, viewed
from core.yaml_io import parse
from search.methods import check_answers, check_networks, check_teachers
from search.space import Space
from tests.search.studies import DOT, ROOT, SPACE, begun, command, load, refused, search, sets
from tests.search.test_setup import message

Capture = pytest.CaptureFixture[str]
FEW = ["data.train_limit=150", "parent.train.epochs=1", "teacher.train.epochs=1", "finetune.epochs=1", "student.width=0.25"]
TWO = ["more_teachers=[{name: light_cnn, width: 0.5, train: {epochs: 1}}]"]


def refusal(*settings: str) -> str:
    return message("--space", SPACE, *sets(settings))


def record(study: str) -> dict:
    return json.loads(load(study).trials[0].user_attrs["record"])


def account(study: str) -> dict:
    return json.loads(Path("runs", study, "run.json").read_text())


def test_a_parent_learns_from_logits_of_whole_images() -> None:
    for loss in ("sdd", "sdd_dkd", "hint", "at"):
        assert refusal(f"parent.distil.loss={loss}") == (
            "parent.distil.loss must look at logits of the whole image (ce, kd, dkd, lskd, dkd_lskd, apprentice), "
            f"but got {loss}; choose one of those"
        )


@pytest.mark.parametrize("loss", ["lskd", "dkd_lskd", "sdd_lskd", "sdd_dkd_lskd", "[kd, lskd]"])
def test_losses_that_standardise_do_not_take_mixed_probabilities(loss: str) -> None:
    said = refusal(f"distil.loss={loss}", *TWO, "teacher_mix.rule=probabilities")
    assert said.startswith("teacher_mix.rule probabilities goes with losses that do not standardise logits, but distil.loss may be ")
    assert said.endswith("; take the rule logits or another loss")


def test_feature_losses_take_one_teacher() -> None:
    assert refusal("distil.loss=[kd, at]", *TWO) == (
        "hint and at learn from the feature map of one teacher, but there are 2 and distil.loss may be at; "
        "take one teacher, or a loss on logits"
    )


def test_averaged_views_have_no_regions_or_maps_and_need_kept_logits() -> None:
    law = "views.average goes with losses on logits of whole images, as {} of shifted and mirrored views do not match"
    for loss, what in {"sdd": "regions", "sdd_dkd": "regions", "hint": "maps", "at": "maps"}.items():
        said = refusal(f"distil.loss=[kd, {loss}]", "views.average=true")
        assert said == f"{law.format(what)}, but distil.loss may be {loss}; leave average out"
    said = refusal("views.average=true", "views.cache=off")
    assert said == "views.average needs kept logits, but views.cache is off; set it to on, or leave average out"


def test_the_mix_names_the_teachers_it_weighs() -> None:
    law = "`teacher_mix` must have one weight for `teacher` and each of `more_teachers`, but has 3 for 2 teacher(s); state all or none"
    assert law in refusal(*TWO, "teacher_mix.weights=[1, 1, 1]")
    assert "must be greater than 0, but got 0" in refusal(*TWO, "teacher_mix.weights=[1, 0]")
    assert "unknown student 'resnet21', did you mean 'resnet" in refusal("more_teachers=[{name: resnet21}]")
    assert "--weights must be a file, but there is no gone.pth" in refusal("more_teachers=[{name: resnet20, weights: gone.pth}]")


def info(size: int) -> DataInfo:
    return DataInfo("wide", tuple(map(str, range(1000))), 3, size, (0.5,) * 3, (0.2,) * 3, "0" * 16)


def test_room_for_the_logits_is_asked_for_before_a_teacher_trains(tmp_path: Path) -> None:
    space = parse(Space, {"student": {"name": "resnet8"}, "distil": {"loss": "sdd", "grid": 4}}, "x.yaml")
    with pytest.raises(UserError, match=r"need 512,000,000,001,280 bytes and .* set views\.cache=off"):
        check_answers(space, Config(), info(32), 2_000_000_000, tmp_path)
    check_answers(space, Config(), info(224), 2_000_000_000, tmp_path)  # those of large images are not kept
    check_answers(space, Config(views=ViewsConfig(cache="off")), info(32), 2_000_000_000, tmp_path)
    with pytest.raises(UserError, match=r"those of images of 224 pixels are not kept; set views\.cache=on"):
        check_answers(space, Config(views=ViewsConfig(average=True)), info(224), 100, tmp_path)


@pytest.mark.usefixtures("dot")
def test_a_student_without_feature_maps_is_refused_in_words(empty: Path, capfd: Capture) -> None:
    said = refused(search(capfd, *command("--trials", "1", settings=[*DOT, *FEW, "student.width=1", "distil.loss=at"])))
    law = "feature distillation needs a network with features(x) -> map and a linear classifier"
    assert said == f"{law}, but the student dot has none; use kd, dkd or lskd"


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        gate = torch.sigmoid(self.conv(x))
        out = gate * 2
        gate += 1
        return self.head((out * gate).mean((2, 3)))

def build():
    return Net()
"""


def test_a_network_of_ones_own_has_gradients_where_it_is_trained_and_there_alone(tmp_path: Path) -> None:
    """It overwrites in place what its backward pass needs."""
    (tmp_path / "my_net.py").write_text(NETWORK)
    two = DataInfo("two", ("a", "b"), 3, 32, (0.5,) * 3, (0.2,) * 3, "0" * 16)

    def check(student: str, **teacher: object) -> None:
        own = TeacherConfig(model=f"{tmp_path}/my_net.py:build", **teacher)  # type: ignore[arg-type]
        check_networks(parse(Space, {"student": {"name": student}}, "x.yaml"), Config(teacher=own), two)

    check("resnet8", weights=tmp_path / "w.safetensors")
    for student, more in (("resnet8", {}), ("self", {"weights": tmp_path / "w.safetensors"})):
        with pytest.raises(
            UserError, match=r"a network that is trained must have gradients, but those of .*my_net.py:build raised RuntimeError"
        ):
            check(student, **more)


def test_two_classes_have_nothing_to_standardise() -> None:
    two = DataInfo("two", ("a", "b"), 3, 32, (0.5,) * 3, (0.2,) * 3, "0" * 16)
    law = "standardised logits of two classes only say which one is larger, and teach nothing more, but {}; take {}"
    space = {"student": {"name": "resnet8"}}
    for loss in ("lskd", "sdd_lskd"):
        with pytest.raises(UserError) as caught:
            check_networks(parse(Space, {**space, "distil": {"loss": ["kd", loss]}}, "x.yaml"), Config(), two)
        assert str(caught.value) == law.format(f"distil.loss may be {loss}", "kd, dkd or sdd")
    check_networks(parse(Space, space, "x.yaml"), Config(), two)
    several = Config(more_teachers=(TeacherConfig(name="resnet20"),))
    with pytest.raises(UserError) as caught:
        check_networks(parse(Space, space, "x.yaml"), several, two)
    assert str(caught.value) == law.format("teacher_mix.rule is logits", "probabilities")
    check_networks(parse(Space, space, "x.yaml"), several, info(32))


def sdd(name: str, grid: int) -> Space:
    return parse(Space, {"student": {"name": name, "width": 0.25}, "distil": {"loss": "sdd", "grid": grid}}, "x.yaml")


@pytest.mark.parametrize("size", [16, 24, 28, 32])
@pytest.mark.parametrize("name", ["resnet8", "vgg8", "mobilenet_v2", "hybrid_serial"])
def test_the_first_region_of_a_student_is_its_logits_or_it_is_refused(name: str, size: int) -> None:
    network = STUDENTS[name](classes=10, image_size=size, width=0.25).eval()
    images = torch.rand(2, 3, size, size)
    features, logits = network.features(images), network(images)  # type: ignore[operator]
    side = features.shape[-1]
    config = Config(teacher=TeacherConfig(name=name, width=0.25))
    for grid in (1, 2, 4):
        if grid == 1 or (side > 1 and (side % grid == 0 or grid % side == 0)):
            check_networks(sdd(name, grid), config, info(size))
            torch.testing.assert_close(region_logits(features, network.classifier, scales_of(grid))[..., 0], logits)  # type: ignore[arg-type]
            continue
        with pytest.raises(UserError) as caught:
            check_networks(sdd(name, grid), config, info(size))
        found = f"the student {name} has a map of {side} x {side} and grid {grid} on images of {size} x {size}; use distil.grid "
        assert str(caught.value).startswith(f"SDD's grid must divide a feature map of several cells, or repeat them, but {found}")


def test_the_grid_fits_the_maps_of_small_images_too() -> None:
    recipes = {"early": TrainConfig(early_sizes=((24, 0.5),)), "fitting": TrainConfig(early_sizes=((16, 0.5),)), "plain": TrainConfig()}
    law = (
        r"the student resnet8 under {}\.early_sizes has a map of 6 x 6 and grid 4 on images of 24 x 24; "
        r"use distil\.grid 2, or images of another size"
    )
    with pytest.raises(UserError, match=law.format("finetune")):
        check_networks(sdd("resnet8", 4), Config(finetune=recipes["early"]), info(32))
    quantise = Config().quantise.model_copy(update={"train": recipes["early"]})
    with pytest.raises(UserError, match=law.format(r"quantise\.train")):
        check_networks(sdd("resnet8", 4), Config(quantise=quantise), info(32))
    check_networks(sdd("resnet8", 2), Config(finetune=recipes["early"]), info(32))
    check_networks(sdd("resnet8", 4), Config(finetune=recipes["fitting"]), info(32))
    parent = Config().parent.model_copy(update={"train": recipes["early"]})  # learns from logits of whole images
    check_networks(sdd("resnet8", 4), Config(parent=parent), info(32))


@pytest.mark.parametrize("more", [("--trials", "1"), ("--dry-run",)], ids=lambda more: more[0])
@pytest.mark.parametrize(("who", "networks"), [("student", ["student.name=[resnet8, vgg8]"]), ("teacher", ["teacher.name=vgg8"])])
def test_a_network_whose_map_has_no_equal_regions_is_refused_before_the_teacher_trains(
    who: str, networks: list[str], more: tuple[str, ...], empty: Path, capfd: Capture
) -> None:
    settings = [*FEW, *networks, "data.image_size=24", "distil.loss=[kd, sdd]", "distil.grid=[1, 2]"]
    said = refused(search(capfd, *command(*more, settings=settings)))
    assert f"but the {who} vgg8 has a map of 3 x 3 and grid 2 on images of 24 x 24; use distil.grid 1, " in said
    assert not list(Path("runs/.cache").glob("teachers/*"))


def test_a_teacher_shows_its_map_of_small_images_or_is_refused() -> None:
    images = ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    views = viewed(images, Normalisation((0.5,) * 3, (0.2,) * 3), ViewsConfig(), 0, torch.device("cpu"))
    teacher = Teacher(OneSize().eval(), views.normalise, "one size", 0.0, "one size")
    config = Config(finetune=TrainConfig(early_sizes=((4, 0.5),)))
    maps, logits = (parse(Space, {"student": {"name": "resnet8"}, "distil": {"loss": loss}}, "x.yaml") for loss in ("at", "kd"))
    check_teachers(logits, config, [teacher], views)
    check_teachers(maps, Config(), [teacher], views)
    with pytest.raises(UserError, match=r"finetune\.early_sizes needs .* but the teacher one size does not take 4 x 4"):
        check_teachers(maps, config, [teacher], views)


class OneSize(nn.Module):
    """With a map, of images of 8 pixels alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.classifier = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 1000)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).relu().reshape(-1, 4, 8, 8)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[-1] == 8, "8 pixels, please"
        return self.classifier(self.features(images).mean((2, 3)))


SMALL_FIRST = "parent.train.early_sizes=[[4, 0.5]]"


@pytest.mark.slow
def test_a_student_with_positions_learns_from_small_images_first(empty: Path, capfd: Capture) -> None:
    answer = search(capfd, *command("--trials", "1", settings=[*FEW, "student.name=hybrid_serial", SMALL_FIRST]))
    assert answer.code == 0, answer
    assert begun(load("tiny")) == ["COMPLETE"]


class Rigid(nn.Sequential):
    """It sees images of one size alone."""

    def __init__(self, *, classes: int, channels: int, image_size: int, width: float) -> None:
        super().__init__(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * image_size**2, classes))


@pytest.mark.usefixtures("dot")
def test_a_student_that_cannot_see_small_images_is_refused_before_it_trains(
    empty: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STUDENTS, "rigid", Rigid)
    said = refused(search(capfd, *command("--trials", "1", settings=[*DOT, *FEW, "student.name=rigid", "student.width=1", SMALL_FIRST])))
    law = "parent.train.early_sizes needs networks that take smaller images, but the student rigid does not take 4 x 4 ("
    assert said.startswith(law)
    assert said.endswith("); leave early_sizes out")


@pytest.mark.parametrize(
    ("loss", "settings"),
    [("hint", []), ("sdd_dkd", ["distil.grid=2"]), ("kd", [*TWO, "teacher_mix.rule=probabilities", "views.cache=off"])],
)
@pytest.mark.slow
def test_a_trial_learns_by_it_from_beginning_to_end(loss: str, settings: list[str], empty: Path, capfd: Capture) -> None:
    answer = search(capfd, *command("--trials", "1", study="one", settings=[*FEW, f"distil.loss={loss}", *settings]))
    assert answer.code == 0, answer
    assert begun(load("one")) == ["COMPLETE"]
    assert ("teacher light_cnn: " in answer.out) is (TWO[0] in settings)
    assert record("one")["candidate"]["distil"]["loss"] == loss
    train = account("one")["data"]["train"]
    seen = account("one")["teacher_forward_images"]
    # the parent's epoch, and two with the student: live ones for both teachers, or for one beside the kept logits of one view
    assert seen == {"hint": 3 * train + 2, "sdd_dkd": train, "kd": 6 * train}[loss]


@pytest.mark.slow
def test_teachers_of_equal_sections_are_trained_apart(empty: Path, capfd: Capture) -> None:
    equal = "{name: light_cnn, width: 0.5, train: {epochs: 1}}"
    settings = [*FEW, f"more_teachers=[{equal}, {equal}]", "finetune.epochs=0"]
    assert search(capfd, *command("--trials", "1", study="one", settings=settings)).code == 0
    kept = [path.read_bytes() for path in Path("runs/.cache/teachers").glob("*.safetensors")]
    assert len(set(kept)) == len(kept) == 3


@pytest.mark.parametrize(("scheme", "parent"), [("b", False), ("c", True)])
@pytest.mark.slow
def test_apprentice_is_a_recipe_that_runs_in_which_nothing_varies(scheme: str, parent: bool, empty: Path, capfd: Capture) -> None:
    space = str(ROOT / "spaces" / "recipes" / f"apprentice_{scheme}.yaml")
    few = [*FEW[:-1], "teacher.name=resnet8", "quantise.train.epochs=2", "runtime.max_s=0.02", "runtime.warmup_s=0", "finetune.epochs=0"]
    answer = search(capfd, "--space", space, "--trials", "1", *sets(few))
    assert answer.code == 0, answer
    found = record(f"apprentice_{scheme}")
    plan = found["candidate"]["distil"]
    assert plan | {"loss": "apprentice", "temperature": 1.0, "weight": 0.5, "ce_weight": 0.5} == plan
    assert ("parent" in found["seconds"]) is parent
    assert load(f"apprentice_{scheme}").trials[0].params == {}


def test_the_recipes_train_in_low_precision_only() -> None:
    from core.yaml_io import load_config

    for name in ("apprentice_b", "apprentice_c"):
        for data in ("", "_cifar10"):
            config = load_config(str(ROOT / "configs" / "recipes" / f"{name}{data}.yaml"), [], ROOT)
            assert (config.finetune.epochs, config.quantise.train.epochs > 0) == (0, True)
            assert config.data.name == (data[1:] or "digits")
            assert config.parent.distil.loss == ("ce" if name.endswith("c") else "kd")


PAIRS = sorted(path.stem for teacher in ("resnet32x4", "wrn_40_2") for path in (ROOT / "spaces" / "recipes").glob(f"{teacher}_*.yaml"))


@pytest.mark.parametrize("name", PAIRS)
def test_a_published_pair_trains_its_student_as_published(name: str) -> None:
    from core.yaml_io import load_config
    from search.space import load_space

    space = load_space(ROOT / "spaces" / "recipes" / f"{name}.yaml", [])
    config = load_config(space.config, [], ROOT)
    light = space.student.name in ("mobilenet_v2", "shufflenet_v1")
    assert name == f"{config.teacher.name}_{space.student.name}"
    assert (config.data.name, config.finetune.epochs, config.finetune.batch_size) == ("cifar100", 240, 64)
    assert (config.finetune.lr, config.finetune.nesterov, config.finetune.schedule) == (0.01 if light else 0.05, False, "step")
    assert (config.teacher.train.lr, config.teacher.train.epochs, config.quantise.train.epochs) == (0.05, 240, 0)
    short = load_config(str(ROOT / "configs" / "recipes" / f"{config.teacher.name}_cifar10{'_light' if light else ''}.yaml"), [], ROOT)
    assert (short.data.name, short.teacher.name) == ("cifar10", config.teacher.name)


@pytest.mark.slow
def test_a_published_pair_runs_in_float_and_unpruned_on_few_images(empty: Path, capfd: Capture) -> None:
    space = str(ROOT / "spaces" / "recipes" / "resnet32x4_resnet8x4.yaml")
    few = [*FEW[:-1], "teacher.name=resnet8", "quantise.train.epochs=0", "runtime.max_s=0.02", "runtime.warmup_s=0", "finetune.epochs=1"]
    answer = search(capfd, "--space", space, "--config", "digits", "--trials", "1", *sets([*few, "data.image_size=16"]))
    assert answer.code == 0, answer
    found = record("resnet32x4_resnet8x4")
    assert found["candidate"]["distil"]["loss"] == "sdd"
    assert found["measurement"]["mean_bits"] == 16
    assert load("resnet32x4_resnet8x4").trials[0].params == {}
