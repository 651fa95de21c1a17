"""Networks of torchvision and timm: known by name at once, the library's own function, one interface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn

from core.cli import run_main
from core.compress import check_compressible
from core.config import Config, TeacherConfig
from core.errors import UserError
from core.layers import count_parameters, layer_infos
from core.prune import prune_channels
from core.start import load_start
from core.students.own import load_state, save_weights
from core.students.zoo import check_zoo_name, find_student, in_zoo, main, zoo_names
from core.students.zoo_net import LibraryNetwork, RegionalNetwork
from core.teacher import obtain_teacher
from core.teacher_logits import check_regions
from core.train import Device
from core.views import Normalisation
from tests.tiny_data import search_data

CPU = Device(torch.device("cpu"), None)
SMALL = (
    "torchvision:mobilenet_v3_small",
    "torchvision:regnet_x_400mf",
    "timm:test_resnet",
    "timm:test_efficientnet",
    "timm:mobilenetv3_small_050",
)
CELLS = {"torchvision:regnet_x_400mf": 2, "timm:test_resnet": 2, "timm:test_efficientnet": 2, "timm:mobilenetv3_small_050": 1}
"""Side of the map of a 64 px image; the last has layers between pooling and classifier, so that its map is what they give."""
GREY = Normalisation((sum((0.485, 0.456, 0.406)) / 3,), (sum((0.229, 0.224, 0.225)) / 3,))


def network(name: str, classes: int = 5, channels: int = 3, image_size: int = 64) -> LibraryNetwork:
    torch.manual_seed(0)
    model = find_student(name)(classes=classes, channels=channels, image_size=image_size).eval()
    assert isinstance(model, LibraryNetwork)
    return model


def library_s_own(name: str, classes: int, seed: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    library, _, inner = name.partition(":")
    build = torchvision.models.get_model if library == "torchvision" else timm.create_model
    return build(inner, num_classes=classes).eval()


def images(count: int = 2, channels: int = 3, size: int = 64) -> torch.Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_read_from_the_sources_are_those_that_the_libraries_list() -> None:
    assert list(zoo_names("torchvision")) == sorted(torchvision.models.list_models(module=torchvision.models))
    assert list(zoo_names("timm")) == sorted(timm.list_models())


def test_the_command_lists_one_library_or_both(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(main, ["torchvision"]) == 0
    listed = capsys.readouterr().out.split()
    assert listed == [f"torchvision:{name}" for name in zoo_names("torchvision")]
    assert run_main(main, []) == 0
    assert set(listed) < set(capsys.readouterr().out.split())
    assert run_main(main, ["tim"]) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet188", r"unknown student 'timm:resnet188', did you mean 'timm:resnet18\w*'\? timm has \d+ networks, listed by"),
        ("torchvision:zzz", r"unknown student 'torchvision:zzz'; torchvision has \d+ networks"),
        ("tim:resnet18", r"must be named torchvision:<name> or timm:<name>, but got 'tim:resnet18', did you mean 'timm'\?"),
        ("timm:", "unknown student 'timm:'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_zoo_name(name)


def test_a_tag_of_published_weights_belongs_to_a_name_and_an_unknown_tag_is_refused() -> None:
    check_zoo_name("timm:resnet18.a1_in1k")
    with pytest.raises(UserError, match=r"timm:resnet18.nonsense .* timm refuses it \(Invalid pretrained tag"):
        network("timm:resnet18.nonsense")


def test_names_are_checked_without_importing_torch_or_a_library() -> None:
    code = """
import sys
from core.students.zoo import check_zoo_name
check_zoo_name("timm:resnet18"), check_zoo_name("torchvision:resnet18")
raise SystemExit(bool({"torch", "torchvision", "timm"} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_library_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.students.zoo.find_spec", lambda name: None)
    with pytest.raises(UserError, match="timm:resnet18 needs the package timm, but it is not installed; run: python -m pip install timm"):
        check_zoo_name("timm:resnet18")


def test_names_of_our_own_students_are_looked_up_as_ever() -> None:
    assert not in_zoo("resnet8")
    with pytest.raises(UserError, match="unknown student 'resnet9', did you mean 'resnet8"):
        find_student("resnet9")


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("channels", [1, 3])
def test_logits_have_a_column_per_class_whatever_the_channels(name: str, channels: int) -> None:
    with torch.no_grad():
        assert network(name, channels=channels)(images(channels=channels)).shape == (2, 5)


@pytest.mark.parametrize("name", SMALL)
def test_with_the_library_s_weights_it_computes_what_the_library_s_network_does(name: str) -> None:
    original, model = library_s_own(name, classes=5), network(name)
    assert not model.has_other_head(original.state_dict())
    load_state(model, model.renamed(original.state_dict()), "the test")
    with torch.no_grad():
        torch.testing.assert_close(model(images()), original(images()))


@pytest.mark.parametrize("name", SMALL)
def test_a_head_for_other_classes_stays_as_initialised_and_all_else_is_loaded(name: str) -> None:
    original, model = library_s_own(name, classes=7), network(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.has_other_head(original.state_dict())
    load_state(model, model.renamed(original.state_dict()), "the test")
    kept = {key for key, value in model.state_dict().items() if torch.equal(value, before[key]) and "weight" in key and value.ndim > 1}
    assert kept == {f"{model.head}.weight"}


@pytest.mark.parametrize("name", SMALL)
def test_on_grey_images_the_colour_stem_computes_what_it_did_on_three_equal_channels(name: str) -> None:
    original, model = library_s_own(name, classes=5), network(name, channels=1)
    load_state(model, model.renamed(original.state_dict()), "the test")
    grey = images(channels=1)
    with torch.no_grad():
        torch.testing.assert_close(model(grey), original(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_our_own_names_of_weights_stay(name: str) -> None:
    model = network(name)
    assert list(model.renamed(model.state_dict())) == list(model.state_dict())


@pytest.mark.parametrize("name", SMALL)
def test_features_are_exposed_exactly_where_logits_are_linear_in_their_mean(name: str) -> None:
    model = network(name)
    assert isinstance(model, RegionalNetwork) == (name in CELLS)
    if not isinstance(model, RegionalNetwork):
        with pytest.raises(UserError, match="needs a network with features"):
            check_regions(model, images(), 1, name)
        return
    assert model.features(images()).shape[-1] == CELLS[name]
    check_regions(model, images(), CELLS[name], name)
    if CELLS[name] == 1:
        with pytest.raises(UserError, match=r"has a map of 1 x 1 and grid 2"):
            check_regions(model, images(), 2, name)


@pytest.mark.parametrize("name", SMALL)
def test_they_are_traced_and_half_of_their_channels_can_be_pruned(name: str) -> None:
    model, shape = network(name), (3, 64, 64)
    check_compressible(model, shape)
    pruned = prune_channels(model, {info.name: 0.5 for info in layer_infos(model, shape)}, shape)
    assert count_parameters(pruned) < 0.6 * count_parameters(model)
    if isinstance(pruned, RegionalNetwork):
        check_regions(pruned, images(), 1, name)


def test_a_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"timm:test_resnet must have width 1.0, .* but got 0.5; set width to 1.0"):
        find_student("timm:test_resnet")(classes=5, width=0.5)


@pytest.mark.parametrize(("name", "size"), [("torchvision:alexnet", 32), ("timm:test_vit", 8)])
def test_images_that_are_too_small_for_a_network_are_one_line(name: str, size: int) -> None:
    with pytest.raises(UserError, match=rf"{name} .*{size}.*\(.*\); (raise|change) data.image_size, or take another network"):
        network(name, image_size=size)


# --- weights ---------------------------------------------------------------------------------------------------------


def teacher(tmp_path: Path, **keys: object) -> Config:
    recipe = {"epochs": 1.0, "batch_size": 32, "lr": 0.01}
    return Config.model_validate({"teacher": {"name": "timm:test_resnet", "train": recipe, **keys}, "views": {"number": 1, "shift": 0}})


def test_published_weights_of_other_classes_are_fine_tuned_and_kept(tmp_path: Path) -> None:
    data = search_data()
    save_weights(library_s_own("timm:test_resnet", classes=9), tmp_path / "w.safetensors")
    epochs: list[float] = []
    found = [
        obtain_teacher(teacher(tmp_path, weights=tmp_path / "w.safetensors"), data, CPU, tmp_path, lambda done, *rest: epochs.append(done))
        for _ in range(2)
    ]
    assert epochs == [1.0]
    assert found[0].digest == found[1].digest
    # as timm says of this network, not what the images say
    assert found[0].normalise == Normalisation((0.5,), (0.5,))


def test_weights_with_the_data_s_classes_are_used_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(5)
    given = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    torch.save(given.state_dict(), tmp_path / "w.pt")
    epochs: list[float] = []
    found = obtain_teacher(teacher(tmp_path, weights=tmp_path / "w.pt"), search_data(), CPU, tmp_path, lambda *n: epochs.append(n[0]))
    assert not epochs
    image = images(channels=1, size=8)
    with torch.no_grad():
        torch.testing.assert_close(found.model(image), given.eval()(image))


def test_weights_of_another_network_are_refused_with_the_file_s_name(tmp_path: Path) -> None:
    save_weights(library_s_own("timm:test_efficientnet", classes=4), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"the weights in .*w.safetensors do not fit the model: \d+ missing"):
        load_start(network("timm:test_resnet"), TeacherConfig(name="timm:test_resnet", weights=tmp_path / "w.safetensors"), 3)


def test_published_weights_come_from_the_library_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the library would download, the file already lies."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    original = library_s_own("torchvision:shufflenet_v2_x0_5", classes=1000)
    file = Path(torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url).name
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(original.state_dict(), tmp_path / "hub" / "checkpoints" / file)
    name = "torchvision:shufflenet_v2_x0_5"
    model = network(name, classes=4, channels=1)
    start = load_start(model, TeacherConfig(name=name, pretrained=True), channels=1)
    assert (start.given, start.new_head, start.normalise) == (True, "network.fc", GREY)
    assert torch.equal(model.network.conv5[0].weight, original.conv5[0].weight)
    full = network(name, classes=1000)
    assert load_start(full, TeacherConfig(name=name, pretrained=True), channels=3).new_head == ""
    with torch.no_grad():
        torch.testing.assert_close(full(images()), original(images()))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18"])
def test_without_a_network_the_remedy_is_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=rf"weights of {name} must be in the library's cache or downloadable, .*; give them as a file with"):
        load_start(network(name, image_size=32), TeacherConfig(name=name, pretrained=True), 3)


def test_a_network_without_published_weights_says_so() -> None:
    with pytest.raises(UserError, match="timm publishes no weights of convnext_atto_rms"):
        load_start(network("timm:convnext_atto_rms", image_size=32), TeacherConfig(name="timm:x", pretrained=True), 3)
