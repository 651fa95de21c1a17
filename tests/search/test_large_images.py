"""Image sets that are streamed go through the same commands: plan, search, export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.students import STUDENTS
from core.students.own import save_weights
from tests.image_layouts import THREE_BIRDS, cifar, cub200, imagenet, picture
from tests.search.studies import ROOT, SMALL, export, load, refused, search, sets, states
from tests.search.studies import SPACE as SPACE_OF_DIGITS

Capture = pytest.CaptureFixture[str]
ONE_EPOCH = ["teacher.train.epochs=1", "parent.train.epochs=1", "finetune.epochs=1", "quantise.train.epochs=1"]
TINY = [*SMALL, *ONE_EPOCH, "teacher.width=0.25", "data.image_size=32", "data.search_fraction=0.25", "views.number=2", "data.workers=1"]
SPACE = """
config: {config}
student: {{name: resnet8, width: 0.25}}
distil: {{init: scratch}}
"""


def space(config: str) -> str:
    """A space of one network with the settings of `configs/<config>.yaml`."""
    path = Path(f"{config}.yaml")
    path.write_text(SPACE.format(config=config))
    return str(path)


@pytest.mark.slow
def test_imagenet_is_searched_and_exported_without_ever_being_resident(empty: Path, capfd: Capture) -> None:
    imagenet(Path("images"), per_class=12, val_per_class=4)
    settings = [*TINY, "teacher.pretrained=false", "quantise.weight_bits=[4, 8]", "quantise.calibration_images=8", "views.cache=off"]
    command = ["--space", space("imagenet"), "--data-dir", "images", *sets(settings)]
    plan = search(capfd, *command, "--dry-run")
    assert plan.code == 0, plan.err
    assert "data       imagenet: 27 training images, 9 to choose on, 3 classes, 3 x 32 x 32" in plan.out
    answer = search(capfd, *command, "--trials", "2", "--quiet")
    assert answer.code == 0, answer.err
    assert states(load("imagenet")).count("COMPLETE") == 2
    exported = export(capfd, "--study", "imagenet")
    assert exported.code == 0, exported.err
    assert "of 12 images" in exported.out
    assert not list(Path("runs/.cache").glob("images-*.npz"))


@pytest.mark.parametrize("name", ["cifar100", "cub200", "imagenet"])
@pytest.mark.slow
def test_every_shipped_space_of_a_large_set_passes_the_dry_run(
    name: str, empty: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.data.cifar import CIFAR100

    monkeypatch.setattr("search.dry_run.MEASURING_S", 6.0)  # not all that it can measure in half a minute
    root = Path("images")
    root.mkdir()
    {"cifar100": lambda: cifar(root, CIFAR100), "cub200": lambda: cub200(root, birds=THREE_BIRDS), "imagenet": lambda: imagenet(root)}[
        name
    ]()
    settings = ["teacher.pretrained=false"] * (name == "imagenet") + ["data.image_size=64"] * (name != "cifar100")
    quick = ["runtime.max_s=0.02", "runtime.warmup_s=0"]
    answer = search(
        capfd, "--space", str(ROOT / "spaces" / f"{name}.yaml"), "--data-dir", "images", *sets(settings), *sets(quick), "--dry-run"
    )
    assert answer.code == 0, answer.err
    assert f"data       {name}: " in answer.out


@pytest.mark.parametrize(
    ("config", "where", "law"),
    [
        ("imagenet", None, "the data set 'imagenet' needs a folder, but none is named; give --data-dir FOLDER"),
        ("imagenet", "nowhere", "--data-dir must be a folder of images, but nowhere is missing"),
        ("cub200", "nowhere.tgz", "--data-dir must be a folder of images, but nowhere.tgz is missing"),
        ("cub200", ".", "is missing; name the folder that has them"),
    ],
)
def test_a_set_that_is_not_there_is_named_before_anything_else(
    config: str, where: str | None, law: str, empty: Path, capfd: Capture
) -> None:
    data = [] if where is None else ["--data-dir", where]
    assert law in refused(search(capfd, "--space", space(config), *sets(TINY), *data))


def unlabelled(*more: str, losses: str = "kd") -> list[str]:
    """A study that distils from images without labels, taught by a network with weights of its own."""
    if not Path("images").exists():
        for index in range(40):
            picture(Path("images", "day" if index % 2 else ".", f"{index}.jpg"), index % 3, index)
        torch.manual_seed(0)
        teacher = STUDENTS["resnet8"](classes=3, channels=3, image_size=32, width=0.25)
        save_weights(teacher, Path("teacher.safetensors"))
        Path("bare.yaml").write_text("data: {name: unlabelled, classes: 3}\nparent: {distil: {ce_weight: 0}}\n")
        Path("space.yaml").write_text(
            "config: bare.yaml\nstudent: {name: resnet8, width: 0.25}\ndistil: {init: scratch, ce_weight: 0, loss: " + losses + "}\n"
        )
    known = ["teacher.weights=teacher.safetensors", "teacher.mean=[0.4, 0.4, 0.4]", "teacher.std=[0.3, 0.3, 0.3]", "hardware.amp=off"]
    return ["--space", "space.yaml", "--study", "bare", "--data-dir", "images", *sets([*TINY, *known]), *more]


@pytest.mark.slow
def test_unlabelled_images_are_searched_by_agreement_with_the_teacher_and_named_so(empty: Path, capfd: Capture) -> None:
    answer = search(capfd, *unlabelled("--trials", "1"))
    assert answer.code == 0, answer.err
    assert "100.00 % of 8 search images (its own answers: nobody labelled them)" in answer.out + answer.err
    assert "accuracy: agreement with the teacher's top-1: 8 search images" in answer.out
    exported = export(capfd, "--study", "bare")
    assert exported.code == 0, exported.err
    assert "test agreement with the teacher's top-1" in exported.out
    readme = Path("exported/bare-rank0/README.md").read_text()
    assert "- test agreement with the teacher's top-1: " in readme
    assert "test accuracy" not in readme


@pytest.mark.parametrize(
    ("setting", "law"),
    [
        ("distil.ce_weight=0.1", "unlabelled images have no cross-entropy, but distil.ce_weight is 0.1; set it to 0"),
        ("distil.loss=dkd", "losses that ask for no label (kd, lskd, apprentice, hint, at), but distil.loss may be dkd"),
        ("parent.distil.ce_weight=0.1", "but parent.distil.ce_weight is 0.1; set it to 0"),
        ("teacher.weights=null", "take a teacher that is trained, but resnet8 has no weights; give --weights FILE"),
        ("teacher.std=null", "set teacher.mean and teacher.std, one value a channel"),
        ("data.classes=null", "do not say how many classes the teacher tells apart; set data.classes=10"),
    ],
)
def test_whatever_needs_labels_is_refused_at_the_start_where_there_are_none(setting: str, law: str, empty: Path, capfd: Capture) -> None:
    assert law in refused(search(capfd, *unlabelled("--set", setting)))


def test_a_number_of_classes_is_for_unlabelled_images_alone(empty: Path, capfd: Capture) -> None:
    assert "data.classes is for images without labels" in refused(search(capfd, "--space", SPACE_OF_DIGITS, "--set", "data.classes=10"))
