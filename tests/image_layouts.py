"""Small data sets in the layouts in which the real ones are published."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from core.data.cifar import Archive

WNIDS = ("n01440764", "n02084071", "n02980441")
BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
THREE_BIRDS = (*BIRDS, "003.Sooty_Albatross")
"""As many as standardised logits want."""


def picture(path: Path, label: int, seed: int, size: tuple[int, int] = (48, 40)) -> None:
    """A JPEG whose class is plain to see: noise, brighter in the channel of its label."""
    random = np.random.default_rng([label, seed])
    pixels = random.integers(0, 120, (size[1], size[0], 3))
    pixels[..., label % 3] += 130
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, format="JPEG")


def imagenet(root: Path, per_class: int = 8, val_per_class: int = 3, flat: bool = False, classes: Sequence[str] = WNIDS) -> Path:
    """train/<wnid>/*.JPEG and val/<wnid>/*.JPEG; `flat`: val/*.JPEG, and the meta.bin that torchvision makes of the devkit."""
    import torch

    for label, wnid in enumerate(classes):
        for index in range(per_class):
            picture(root / "train" / wnid / f"{wnid}_{index}.JPEG", label, index, (48 + index, 40))
    wnids = [wnid for _ in range(val_per_class) for wnid in classes]
    for index, wnid in enumerate(wnids):
        name = f"ILSVRC2012_val_{index + 1:08d}.JPEG"
        picture(root / "val" / name if flat else root / "val" / wnid / name, classes.index(wnid), 1000 + index)
    if flat:
        torch.save(({wnid: (wnid, "a name") for wnid in classes}, wnids), root / "meta.bin")
    return root


def cub200(root: Path, per_class: int = 8, birds: Sequence[str] = BIRDS) -> Path:
    """CUB_200_2011 with its four tables; every fourth image is a test image."""
    rows = [(label, name, index) for label, name in enumerate(birds) for index in range(per_class)]
    tables: dict[str, list[str]] = {"images": [], "image_class_labels": [], "train_test_split": []}
    for number, (label, name, index) in enumerate(rows, start=1):
        file = f"{name}/Bird_{index:04d}_{number}.jpg"
        picture(root / "images" / file, label, index, (40, 52))
        tables["images"].append(f"{number} {file}")
        tables["image_class_labels"].append(f"{number} {label + 1}")
        tables["train_test_split"].append(f"{number} {int(index % 4 != 3)}")
    tables["classes"] = [f"{label + 1} {name}" for label, name in enumerate(birds)]
    for name, lines in tables.items():
        (root / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return root


def cifar(root: Path, archive: Archive, per_file: int | None = None) -> Path:
    """The binary archive of CIFAR-10 or CIFAR-100, every class `per_file` / classes times in a file (default: 2)."""
    count = per_file or 2 * archive.classes
    random = np.random.RandomState(0)
    contents = {archive.names: "".join(f"class_{number}\n" for number in range(archive.classes)).encode()}
    for name in (*archive.train, archive.test):
        records = random.randint(0, 256, (count, archive.record), dtype=np.uint8)
        records[:, archive.label_bytes - 1] = np.arange(count) % archive.classes
        contents[name] = records.tobytes()
    with tarfile.open(root / archive.name, "w:gz") as tar:
        for name, content in contents.items():
            member = tarfile.TarInfo(f"{archive.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return root / archive.name


def noise(root: Path, size: int) -> Path:
    """`root/train` and `root/test` of 10 classes with 4 and 1 images of size x size pixels: nothing to learn. Returns `root`."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 1)):
        for label in range(10):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(random.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root
