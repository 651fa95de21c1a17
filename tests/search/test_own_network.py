"""My network and my images in, a front out: no YAML, and a plugin for what the program lacks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import save_file

from tests.search.studies import COLOURS, begun, blobs, export, load, predict, refused, search, sets

Capture = pytest.CaptureFixture[str]
NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes, channels):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        return self.head(x.mean((2, 3)))


def build(classes, channels=3):
    return Net(classes, channels)
"""
QUICK = sets(["finetune.epochs=2", "quantise.train.epochs=1", "runtime.max_s=0.02", "runtime.warmup_s=0", "prune.ratio=[0, 0.3]"])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with my_net.py, its weights (trained on [0, 1] pixels) in two formats, and images/{train,test}/<colour>."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "my_net.py").write_text(NET)
    blobs(folder / "images" / "train", 40, seed=0)
    blobs(folder / "images" / "test", 10, seed=1)
    state = trained(folder).state_dict()
    save_file(state, folder / "W.safetensors")
    torch.save({"state_dict": state}, folder / "W.pt")
    return folder


def trained(folder: Path) -> torch.nn.Module:
    from core.config import DataConfig
    from core.data import load_search_data
    from core.students.own import load_own_model

    torch.manual_seed(0)
    data = load_search_data(DataConfig(name="folder", dir=folder / "images"), folder / "cache").train
    model = load_own_model(f"{folder}/my_net.py:build", classes=3, channels=3, image_size=16).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.02)
    images = data.images.float() / 255
    for _ in range(40):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(images), data.labels).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of home as the working directory."""
    folder = tmp_path / "home"
    shutil.copytree(home, folder)
    monkeypatch.chdir(folder)
    return folder


OWN = [
    "--model",
    "my_net.py:build",
    "--weights",
    "W.safetensors",
    "--data-dir",
    "images",
    "--max-latency-ms",
    "50",
    "--trials",
    "2",
    *QUICK,
]


def test_my_network_and_my_images_in_a_front_out_and_its_bundle_knows_new_images(here: Path, capfd: Capture) -> None:
    answer = search(capfd, *OWN)
    assert answer.code == 0, answer
    ended = begun(load("own"))
    # the second is stopped where the first one's 100 % are as small and, on this machine, as fast
    assert ended in (["COMPLETE", "COMPLETE"], ["COMPLETE", "PRUNED"])
    table = pandas.read_csv("runs/own/front.csv")
    assert table["accuracy"].max() > 0.8
    assert set(table["student"]) == {"self"}
    assert (table["times_smaller"] > 2).all()

    answer = export(capfd, "--rank", "0")
    assert answer.code == 0, answer
    assert "of 30 images" in answer.out
    bundle = "exported/own-rank0"
    assert json.loads(Path(bundle, "labels.json").read_text()) == sorted(COLOURS)

    new = blobs(here / "new", 10, seed=7)
    answer = predict(capfd, "--bundle", bundle, "--csv", "new.csv", str(new))
    assert answer.code == 0
    rows = pandas.read_csv("new.csv")
    assert list(rows) == ["path", "label", "probability"]
    assert len(rows) == 30
    assert sum(Path(path).parent.name == label for path, label in zip(rows["path"], rows["label"], strict=True)) > 24

    # the folder moves: the study goes on, the export says what it needs
    shutil.move("images", "moved")
    message = refused(export(capfd, "--rank", "0", "--out", "second"))
    assert message == "an export scores the point on the search's own test images, but there is no folder images; name it with --data-dir"
    assert export(capfd, "--rank", "0", "--out", "second", "--data-dir", "moved").code == 0
    assert search(capfd, *[word.replace("images", "moved") for word in OWN]).code == 0
    assert begun(load("own")) == ended
    assert export(capfd, "--rank", "0", "--out", "third").code == 0

    # so is another network, which cannot be the searched one's float twin
    source = Path("my_net.py").read_text()
    Path("my_net.py").write_text(source + "\n\ndef another() -> None: ...\n")
    message = refused(search(capfd, *[word.replace("images", "moved") for word in OWN]))
    assert message.startswith("a study keeps the network's file that it began with")
    answer = export(capfd, "--rank", "0", "--out", "without")
    assert answer.code == 0
    assert "no float twin was timed: the network's file must say what it said in the search, but my_net.py:build was changed" in answer.out
    Path("my_net.py").write_text(source)

    # another image is another study
    shutil.copy("moved/train/red/000.png", "moved/train/red/more.png")
    message = refused(search(capfd, *[word.replace("images", "moved") for word in OWN]))
    assert message.startswith("a study keeps the images that it began with, but 'own' began with ")
    assert refused(export(capfd, "--rank", "0", "--out", "fourth")).startswith("the test images must belong to the data of the search")


@pytest.mark.slow
def test_other_weights_are_another_study_and_a_state_dict_is_as_good_as_safetensors(here: Path, capfd: Capture) -> None:
    none = [*OWN, "--max-size-kb", "0.001"]
    assert search(capfd, *none).code == 0
    assert "teacher my_net.py:build: 100.00 %" in search(capfd, *[word.replace("W.safetensors", "W.pt") for word in none]).out
    state = {
        key: value + 0.001 if key == "head.bias" else value for key, value in torch.load("W.pt", weights_only=True)["state_dict"].items()
    }
    torch.save(state, "W.pt")
    message = refused(search(capfd, *[word.replace("W.safetensors", "W.pt") for word in none]))
    assert message.startswith("a study keeps the weights or network that it began with")


PLUGIN = """
import torch
from core.data import DATASETS
from core.data.types import ImageSet, RawData
from core.losses import DISTIL_LOSSES
from core.students import STUDENTS
from core.tables import register
from tests.search.studies import Dot


def stripes(config, cache_dir):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (120, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.arange(120) % 2
    images[labels == 0, :, ::2] += 150
    images[labels == 1, :, :, ::2] += 150
    return RawData(ImageSet(images, labels), None, ("lying", "standing"))


def distance(student, teacher, labels, plan):
    return (student.float() - teacher.float()).square().mean()


register(STUDENTS, "plugin_dot", Dot)
register(DISTIL_LOSSES, "distance", distance)
register(DATASETS, "stripes", stripes)
"""
SPACE = """
student: {name: plugin_dot}
distil: {loss: distance}
prune: {ratio: [0, 0.25], round_to: 2}
quantise: {weight_bits: [4, 8], positions: 2}
config: how.yaml
"""
HOW = """
data: {name: stripes}
views: {flip: false, shift: 0}
teacher: {name: plugin_dot, train: {epochs: 4}}
parent: {train: {epochs: 4}}
finetune: {epochs: 2}
quantise: {train: {epochs: 1}}
runtime: {max_s: 0.02, warmup_s: 0}
"""


@pytest.mark.slow
def test_a_plugin_brings_a_student_a_loss_and_images_and_a_space_names_them(empty: Path, capfd: Capture) -> None:
    from core.data import DATASETS
    from core.losses import DISTIL_LOSSES
    from core.students import STUDENTS

    def unload() -> None:
        for table, name in ((STUDENTS, "plugin_dot"), (DISTIL_LOSSES, "distance"), (DATASETS, "stripes")):
            table.pop(name, None)

    for name, text in (("plugin.py", PLUGIN), ("space.yaml", SPACE), ("how.yaml", HOW)):
        Path(name).write_text(text)
    try:
        answer = search(capfd, "--plugin", "plugin.py", "--space", "space.yaml", "--trials", "2")
        assert answer.code == 0, answer
        assert pandas.read_csv("runs/space/front.csv")["student"][0] == "plugin_dot"
        unload()
        message = refused(export(capfd, "--rank", "0"))
        assert message == "the data set 'stripes' is not one of this program's; name the file that registers it with --plugin"
        answer = export(capfd, "--rank", "0", "--plugin", "plugin.py")
        assert answer.code == 0, answer
        assert json.loads(Path("exported/space-rank0/labels.json").read_text()) == ["lying", "standing"]
    finally:
        unload()
