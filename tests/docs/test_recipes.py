"""Every recipe and example is a command that runs: loaded, planned, and run on small images in the layout of its data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from core.cli import run_main
from core.data.cifar import CIFAR10
from core.yaml_io import load_yaml
from search import run
from search.setup import build_parser, resolve_arguments
from tests.docs.home import make_home
from tests.docs.pages import ROOT, codes
from tests.image_layouts import cifar
from tests.search.studies import load, sets, states

SPACES = sorted(str(path.relative_to(ROOT)) for folder in ("recipes", "examples") for path in (ROOT / "spaces" / folder).glob("*.yaml"))
IMAGES = {"digits": [], "cifar10": ["--data-dir", "ten"], "cifar100": ["--data-dir", "cifar"], "cub200": ["--data-dir", "CUB_200_2011"]}
IMAGES |= {"imagenet": ["--data-dir", "imagenet"]}
EPOCHS = ["teacher.train.epochs=0.3", "parent.train.epochs=0.3", "finetune.epochs=0.3", "quantise.train.epochs=0.3"]
ENGINE = ["quantise.calibration_images=8", "runtime.max_s=0.02", "runtime.warmup_s=0"]
SMALL = [
    *EPOCHS,
    *ENGINE,
    "data.image_size=32",
    "data.search_fraction=0.25",
    "views.number=2",
    "data.workers=0",
    "teacher.pretrained=false",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets as stand-ins, one folder for all recipes: teachers are kept."""
    home = make_home(tmp_path_factory.mktemp("home"))
    (home / "ten").mkdir()
    cifar(home / "ten", CIFAR10)
    return home


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_learning_rate_stands_beside_its_optimiser_and_another_optimiser_beside_its_whole_recipe(path: Path) -> None:
    stated = load_yaml(path)
    name = stated.get("base", "")
    below = load_yaml(path.parent / name if name.endswith(".yaml") else ROOT / "configs" / f"{name}.yaml")
    for section in ("teacher", "parent", "finetune", "quantise"):
        mine, base = (section_of(content, section) for content in (stated, below))
        if "optimiser" in base and "lr" in mine:
            assert "optimiser" in mine, section
        if mine.get("optimiser", base.get("optimiser")) != base.get("optimiser"):
            assert {*base} - {"rest_lr"} <= {*mine}, section


def section_of(content: dict[str, Any], section: str) -> dict[str, Any]:
    """The training of a section, as far as a file states it."""
    found: dict[str, Any] = content.get(section, {})
    return found if section == "finetune" else found.get("train", {})


def data_of(space: str) -> str:
    args = build_parser().parse_args(["--space", space, "--data-dir", "."])
    return resolve_arguments(args)[1].data.name


@pytest.mark.parametrize("space", SPACES)
def test_a_space_that_ships_is_valid_as_it_stands_and_says_first_what_it_is(space: str) -> None:
    words = [line for line in (ROOT / space).read_text().splitlines() if not line.startswith("# yaml-language-server")]
    assert words[0].startswith("# ")
    assert data_of(str(ROOT / space)) in IMAGES


@pytest.mark.parametrize("space", SPACES)
def test_the_page_of_recipes_has_a_command_for_it(space: str) -> None:
    assert any(f"--space {space} " in text for text in codes("docs/recipes.md"))


SHORT_TEACHER = ["teacher.name=resnet8", "teacher.width=0.5"]
NARROW = [*SHORT_TEACHER, "student.width=0.25"]
RUNS: dict[str, list[str]] = {
    "resnet32x4_resnet8x4": NARROW,
    "cub200_vgg13_vgg8": NARROW,
    "imagenet_resnet34_resnet18": ["teacher.name=torchvision:resnet18"],
    "deep_compression": NARROW,
}
"""What makes a recipe small beside SMALL: one of every data set. Methods have tests of their own."""


LARGE = [f"recipes/{Path(space).name}" for space in SPACES if data_of(str(ROOT / space)) in ("cifar100", "cub200", "imagenet")]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.slow
def test_a_recipe_runs_on_a_small_stand_in_of_its_data(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    space = str(ROOT / "spaces" / "recipes" / f"{name}.yaml")
    given = sets([*SMALL, *RUNS[name]])
    assert run_main(run.main, ["--space", space, *IMAGES[data_of(space)], *given, "--trials", "1", "--quiet"]) == 0
    assert states(load(name)).count("COMPLETE") == 1


TRAINED = [space for space in SPACES if "/recipes/" in space]
TRAINED += [f"spaces/{name}.yaml" for name in ("cifar100", "cub200", "imagenet", "examples/phone", "examples/microcontroller")]


@pytest.mark.recipes
@pytest.mark.parametrize("space", TRAINED, ids=lambda space: Path(space).stem)
def test_every_recipe_trains_its_own_networks_on_a_stand_in(space: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make recipes`: minutes."""
    monkeypatch.chdir(home)
    path, name = str(ROOT / space), Path(space).stem
    given = [*IMAGES[data_of(path)], *sets(SMALL), "--study", f"own_{name}"]
    if name == "lora":  # adapts published weights; as the recipe says, they may come from a file
        torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
        given += ["--weights", "resnet18.pth"]
    assert run_main(run.main, ["--space", path, *given, "--trials", "1", "--quiet"]) == 0
    assert states(load(f"own_{name}")).count("COMPLETE") == 1


@pytest.fixture
def foreseen(home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What a dry run says of a space below spaces/ with so many more arguments; it must succeed."""
    monkeypatch.chdir(home)
    monkeypatch.setattr("search.foresee.DRAWS_S", 1.0)  # not all that it can measure in half a minute
    monkeypatch.setattr("search.dry_run.MEASURING_S", 6.0)

    def say(space: str, *more: str) -> str:
        path = str(ROOT / "spaces" / space)
        words = ["--space", path, "--study", f"foreseen_{Path(space).stem}", *IMAGES[data_of(path)], *more]
        assert run_main(run.main, [*words, "--dry-run"]) == 0
        return capfd.readouterr().out

    return say


@pytest.mark.parametrize("space", LARGE)
@pytest.mark.slow
def test_a_recipe_for_a_gpu_can_be_foreseen_before_it_is_begun(
    space: str, foreseen: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own networks."""
    monkeypatch.setattr("search.dry_run.MEASURING_S", 0.5)
    assert "hours" in foreseen(space, *sets(SMALL), "--trials", "1")


@pytest.mark.parametrize("name", ["phone", "jetson", "server_gpu", "microcontroller"])
@pytest.mark.slow
def test_an_example_for_a_device_passes_the_dry_run(name: str, foreseen: Callable[..., str]) -> None:
    here = ["runtime.name=openvino", "runtime.precision=f32", *ENGINE]  # TensorRT is not here: what the file says for a machine without it
    said = foreseen(f"examples/{name}.yaml", *sets(here))
    assert "reach      " in said
    assert "out of reach" not in said
