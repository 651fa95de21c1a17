"""The folder in which the commands of the pages run: the files that the pages speak of, small."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import torch

from core.data.cifar import CIFAR100
from core.students import STUDENTS
from core.students.own import load_own_model, save_weights
from tests.docs.pages import PAGES, ROOT, blocks
from tests.image_layouts import THREE_BIRDS, cifar, cub200, imagenet
from tests.search.studies import blobs
from tests.tiny_onnx import Classifier

NAME = re.compile(r"# ([\w/]+\.(?:py|yaml))$")


def make_home(folder: Path) -> Path:
    """Spaces and configurations of the checkout, every file that a page shows, images, networks. Returns `folder`."""
    for shared in ("spaces", "configs", "docs", "benchmarks"):
        (folder / shared).symlink_to(ROOT / shared)
    for name, text in shown_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    blobs(folder / "photos", 14)
    for seed, (split, per_class) in enumerate({"train": 14, "test": 4}.items()):
        blobs(folder / "my_images" / split, per_class, seed=seed)
    for photo in ("photo.png", "a.png", "b.png"):
        shutil.copy(folder / "photos" / "red" / "000.png", folder / photo)
    (folder / "photos" / "plain.png").symlink_to(folder / "photo.png")
    cifar(_made(folder / "cifar"), CIFAR100)
    imagenet(_made(folder / "imagenet"))
    cub200(_made(folder / "CUB_200_2011"), birds=THREE_BIRDS)
    torch.manual_seed(0)
    own = load_own_model(f"{folder}/my_net.py:build", classes=3, channels=3, image_size=16)
    save_weights(own, folder / "my_net.safetensors")
    save_weights(STUDENTS["resnet20"](classes=10, channels=3, image_size=32), folder / "teacher.safetensors")
    (folder / "resnet18-f37072fd.pth").touch()
    (folder / "CUB_200_2011.tgz").touch()
    Classifier().save(folder / "model.onnx")
    return folder


def shown_files() -> dict[str, str]:
    """Files that stand on the pages in full: a block whose first line is a comment with the file's name."""
    found = {}
    for page in PAGES:
        for block in blocks(page):
            match = NAME.match(block.text.partition("\n")[0])
            if match is not None and block.language in ("python", "yaml"):
                found[match[1]] = block.text
    return found


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder
