"""What every entry of DATASETS promises: disjoint splits of uint8 images, resident or streamed, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import DataConfig
from core.data import DATASETS, load_search_data
from core.data.cifar import CIFAR10, CIFAR100
from core.data.heldout import load_test_data
from core.data.types import Images
from tests.image_layouts import cifar, cub200, imagenet


def pixels(images: Images) -> torch.Tensor:
    return torch.cat(list(images.chunks()))


def rows(images: Images) -> list[bytes]:
    return sorted(str(int(label)).encode() + image.numpy().tobytes() for image, label in zip(pixels(images), images.labels, strict=True))


def write_source(name: str, root: Path) -> dict[str, object]:
    """Settings with which the entry `name` finds a tiny set of its own kind under `root`."""
    rng = np.random.RandomState(0)
    if name == "digits":
        return {}
    if name in ("folder", "unlabelled"):
        for index in range(20):
            file = root / "ab"[index % 2] / f"{index}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.randint(0, 256, (8, 8), dtype=np.uint8)).save(file)
    if name.startswith("cifar"):
        cifar(root, {"cifar10": CIFAR10, "cifar100": CIFAR100}[name])
    if name == "cub200":
        cub200(root)
    if name == "imagenet":
        imagenet(root)
    small: dict[str, object] = {"image_size": 24} if name in ("cub200", "imagenet") else {}
    return {"dir": root, **small, **({"classes": 5} if name == "unlabelled" else {})}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_data_set_keeps_the_contract(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    config = DataConfig.model_validate({"name": name, "workers": 0, **write_source(name, source)})
    data, test = load_search_data(config, tmp_path / "cache"), load_test_data(config, tmp_path / "cache")
    info = data.info
    for split in (data.train, data.search, test):
        images = pixels(split)
        assert images.shape == (len(split), *split.shape)
        assert split.shape == (info.channels, info.image_size, info.image_size)
        assert (images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        assert set(split.labels.tolist()) == (set(range(len(info.classes))) if info.labelled else {-1})
        some = torch.tensor([1, 0])
        assert torch.equal(split.take(some), images[some])
        assert torch.equal(pixels(split.subset(some)), images[some])
        assert torch.equal(split.subset(some).labels, split.labels[some])
        assert split.labelled(split.labels + 1).labels.tolist() == (split.labels + 1).tolist()
    assert len(info.mean) == len(info.std) == info.channels
    assert not set(rows(data.train) + rows(data.search)) & set(rows(test))
    assert load_search_data(config, tmp_path / "cache").info == info
    sized = load_search_data(config.model_copy(update={"image_size": 16, "channels": 3}), tmp_path / "cache")
    assert sized.train.shape == (3, 16, 16)
