"""What every entry of DATASETS promises: disjoint splits of resident uint8 images, the same every time."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import DataConfig
from core.data import DATASETS, load_search_data
from core.data.heldout import load_test_data
from core.data.types import ImageSet


def rows(images: ImageSet) -> list[bytes]:
    return sorted(bytes([int(label)]) + image.numpy().tobytes() for image, label in zip(images.images, images.labels, strict=True))


def write_source(name: str, root: Path) -> dict[str, object]:
    """Settings with which the entry `name` finds a tiny set of its own kind under `root`."""
    rng = np.random.RandomState(0)
    if name == "digits":
        return {}
    if name == "folder":
        for index in range(20):
            file = root / "ab"[index % 2] / f"{index}.png"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.randint(0, 256, (8, 8), dtype=np.uint8)).save(file)
    if name == "cifar10":
        with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz") as tar:
            for file_name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
                records = rng.randint(0, 256, (20, 3073), dtype=np.uint8)
                records[:, 0] = np.arange(20) % 10
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{file_name}")
                member.size = records.nbytes
                tar.addfile(member, BytesIO(records.tobytes()))
    return {"dir": root}


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_data_set_keeps_the_contract(name: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    config = DataConfig.model_validate({"name": name, **write_source(name, source)})
    data, test = load_search_data(config, tmp_path / "cache"), load_test_data(config, tmp_path / "cache")
    info = data.info
    for split in (data.train, data.search, test):
        assert split.images.shape == (len(split), info.channels, info.image_size, info.image_size)
        assert (split.images.dtype, split.labels.dtype) == (torch.uint8, torch.int64)
        assert set(split.labels.tolist()) == set(range(len(info.classes)))
    assert len(info.mean) == len(info.std) == info.channels
    assert not set(rows(data.train) + rows(data.search)) & set(rows(test))
    assert load_search_data(config, tmp_path / "cache").info == info
    sized = load_search_data(config.model_copy(update={"image_size": 16, "channels": 3}), tmp_path / "cache")
    assert sized.train.images.shape[1:] == (3, 16, 16)
