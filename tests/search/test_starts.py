"""Published weights, adapters and networks of libraries: what a user may ask for, and one line for what makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from core.config import Config
from core.data.types import DataInfo
from core.errors import UserError
from core.students.own import save_weights
from core.students.zoo import find_student
from search.setup import build_parser, resolve_arguments
from search.space import Space
from search.students import check_students
from tests.search.studies import SPACE, command, search, sets

INFO = DataInfo("tiny", tuple("abcd"), 3, 32, (0.5,) * 3, (0.25,) * 3, "0" * 16)
EPOCHS_1 = ["teacher.train.epochs=2", "teacher.train.lr=0.02", "parent.train.epochs=1", "finetune.epochs=1"]
FIXED = ["student.width=1", "student.name=resnet8"]


def resolve(*settings: str) -> tuple[Space, Config]:
    return resolve_arguments(build_parser().parse_args(["--space", SPACE, *sets([*FIXED, *settings])]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["student.name=timm:resnet188"], r"unknown student 'timm:resnet188', did you mean 'timm:resnet18.*student.name\)"),
        (["student.name=[timm:resnet18, resnet8]", "student.width=[0.5, 1]"], "must have width 1.0 where timm:resnet18 is a name"),
        (["teacher.name=torchvision:resnet19"], r"did you mean 'torchvision:resnet18'\?.*\(teacher.name\)"),
        (
            ["teacher.name=timm:resnet18", "teacher.width=0.5"],
            "teacher.width must be 1.0, as timm:resnet18 has .* but got 0.5",
        ),
        (["teacher.pretrained=true"], "teacher.pretrained needs a library's network, but the teacher is resnet20; set teacher.name to"),
        (["parent.pretrained=true"], "parent.pretrained needs a library's student, .* but student.name is resnet8"),
        (["student.name=self"], "student.name self is your own network: name it with --model my_net.py:build, or a library's"),
        (["finetune.lora.rank=0"], "`rank` must be at least 1, but got 0"),
        (["finetune.lora.alpha=0"], "`alpha` must be greater than 0, but got 0"),
        (["teacher.train.lora.rank=2"], "teacher.train.lora adapts weights that are trained, .* set teacher.pretrained or teacher.weights"),
        (["parent.train.lora.rank=2"], r"parent.train.lora adapts .* set parent.pretrained"),
        (["finetune.lora.rank=2", "distil.init=[inherit, scratch]"], r"finetune.lora adapts .* set distil.init inherit"),
        (["quantise.train.lora.rank=2"], "quantise.train.lora must be null"),
        (
            ["finetune.lora.rank=2", "distil.init=inherit", "order=[quantise, prune]", "quantise.quantiser=lsq", "prune.ratio=0.5"],
            "finetune.lora adapts float weights, but with order quantise, prune",
        ),
        (
            ["parent.pretrained=true", "parent.train.lora.rank=2", "student.name=[timm:resnet18, resnet8]", "student.width=1"],
            "parent.train.lora adapts published weights, but student.name has resnet8, of which there are none; leave it out",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line_before_anything_starts(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve(*settings)


def test_weights_come_from_one_place(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_text("")
    with pytest.raises(UserError, match=r"come from one place, but teacher.pretrained is true and teacher.weights is .*w.pt; drop one"):
        resolve("teacher.name=timm:resnet18", "teacher.pretrained=true", f"teacher.weights={tmp_path / 'w.pt'}")


def test_libraries_names_are_plain_yaml_and_stand_beside_ours() -> None:
    space, config = resolve(
        "student.name=[timm:mobilenetv3_small_050, resnet8]", "teacher.name=torchvision:resnet18", "teacher.pretrained=true"
    )
    assert space.student.name == ("resnet8", "timm:mobilenetv3_small_050")
    assert (config.teacher.name, config.teacher.pretrained) == ("torchvision:resnet18", True)
    assert resolve("student.name=self", "teacher.name=timm:resnet18")[0].student.name == "self"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torchvision:shufflenet_v2_x0_5", "cannot be pruned by Torch-Pruning; set prune.ratio to 0: ZeroDivisionError"),
        ("torchvision:swin_t", "Torch-Pruning does not come to an end on it; set prune.ratio to 0"),
        ("timm:tf_efficientnet_lite0", "'network.conv_stem' is a Conv2dSame with a forward of its own"),
    ],
)
def test_a_network_that_cannot_be_compressed_is_named_before_the_teacher_trains(name: str, reason: str) -> None:
    space, config = resolve(f"student.name={name}", "prune.ratio=[0.0, 0.5]")
    with pytest.raises(UserError, match=f"{name} can be a teacher but no student of this space: .*{reason}"):
        check_students(space, config, INFO)


def test_a_network_that_cannot_be_pruned_is_a_student_where_nothing_is_pruned() -> None:
    space, config = resolve("student.name=torchvision:shufflenet_v2_x0_5", "prune.ratio=0.0")
    check_students(space, config, INFO)


@pytest.mark.slow
def test_a_library_s_teacher_is_adapted_and_compressed_as_self_with_adapters(empty: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Weights for other classes -> a new head and adapters; then a pruned student of it, and one beside it."""
    torch.manual_seed(0)
    save_weights(find_student("timm:test_resnet")(classes=7, image_size=8).network, empty / "w.safetensors")
    network = ["teacher.name=timm:test_resnet", f"teacher.weights={empty / 'w.safetensors'}", "student.name=[self, timm:test_resnet]"]
    recipes = ["teacher.train.lora.rank=4", "finetune.lora.rank=4", "student.width=1", "prune.ratio=0.5"]
    images = ["data.train_limit=100", "data.image_size=32", "quantise.quantiser=ptq"]
    answer = search(capfd, *command("--trials", "2", settings=[*network, *recipes, *images, *EPOCHS_1]))
    assert answer.code == 0, answer.err
    assert "self" in answer.out
    assert "timm:test_resnet" in answer.out
