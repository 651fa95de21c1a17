"""ImageNet and CUB-200-2011 in their own layouts: splits, labels, and every mistake in one line."""

import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core.config import DataConfig
from core.data import load_search_data
from core.data.cub import load_cub200
from core.data.files import ImageFiles
from core.data.heldout import load_test_data
from core.data.imagenet import load_imagenet
from core.data.types import ImageSet, RawData
from core.errors import UserError
from tests.image_layouts import BIRDS, WNIDS, cub200, imagenet


def load_in(root: Path, load: Callable[[DataConfig, Path], RawData] = load_imagenet, **options: object) -> RawData:
    return load(DataConfig.model_validate({"dir": root, "workers": 0, **options}), root.parent / "cache")


def refusal(root: Path, load: Callable[[DataConfig, Path], RawData], **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load_in(root, load, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_imagenet_is_never_resident_and_its_test_split_is_val(tmp_path: Path) -> None:
    root = imagenet(tmp_path / "imagenet")
    (root / "test").mkdir()  # images without labels
    raw = load_in(root, resident_gb=100)
    assert isinstance(raw.train, ImageFiles)
    assert isinstance(raw.test, ImageFiles)
    assert raw.classes == WNIDS
    assert (len(raw.train), len(raw.test)) == (24, 9)
    assert raw.train.shape == (3, 224, 224)
    assert raw.test.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_flat_validation_images_take_their_labels_from_torchvisions_file(tmp_path: Path) -> None:
    sorted_in = load_in(imagenet(tmp_path / "sorted"), image_size=32).test
    flat = load_in(imagenet(tmp_path / "flat", flat=True), image_size=32).test
    assert sorted_in is not None
    assert flat is not None
    assert torch.equal(sorted_in.labels, flat.labels)
    assert torch.equal(sorted_in.survey(), flat.survey())


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (lambda root: shutil.rmtree(root / "val"), r"val is missing; name the folder that has them"),
        (lambda root: shutil.rmtree(root / "train"), r"train is missing; name the folder that has them"),
        (lambda root: shutil.rmtree(root / "val" / WNIDS[1]), f"same classes, but .* differ \\(only in train: '{WNIDS[1]}'\\)"),
        (lambda root: shutil.rmtree(root / "train" / WNIDS[1]), f"same classes, but .* differ \\(only in val: '{WNIDS[1]}'\\)"),
    ],
)
def test_an_imagenet_folder_that_lacks_something_names_it(spoil: Callable[[Path], None], law: str, tmp_path: Path) -> None:
    root = imagenet(tmp_path / "imagenet")
    spoil(root)
    with pytest.raises(UserError, match=law):
        load_in(root)


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (lambda root: (root / "meta.bin").unlink(), "flat validation images need their labels, .*put ILSVRC2012_devkit_t12"),
        (lambda root: (root / "meta.bin").write_bytes(b"no pickle"), "flat validation images need their labels"),
        (lambda root: next((root / "val").iterdir()).unlink(), r"val must hold the 9 images that meta\.bin has labels for, but .* has 8"),
        (lambda root: shutil.rmtree(root / "train" / WNIDS[1]), f"train has no folder {WNIDS[1]}; add it"),
        (lambda root: (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(b"x") and (root / "meta.bin").unlink(), "corrupted"),
    ],
)
def test_flat_validation_images_that_do_not_fit_their_labels_are_refused(spoil: Callable[[Path], None], law: str, tmp_path: Path) -> None:
    root = imagenet(tmp_path / "imagenet", flat=True)
    spoil(root)
    with pytest.raises(UserError, match=law) as caught:
        load_in(root)
    assert "\n" not in str(caught.value)


def test_cub_has_its_own_test_split_and_its_names(tmp_path: Path) -> None:
    raw = load_in(cub200(tmp_path / "CUB_200_2011"), load_cub200, image_size=32)
    assert raw.classes == BIRDS
    assert raw.test is not None
    assert (len(raw.train), len(raw.test)) == (12, 4)
    assert raw.test.labels.tolist() == [0, 0, 1, 1]
    # label 1 is brighter in the second channel
    pixels = raw.train.survey().float().mean((2, 3))
    assert torch.equal(pixels.argmax(1), raw.train.labels)


def test_cub_is_resident_when_small_and_streamed_at_224_pixels_where_that_is_too_much(tmp_path: Path) -> None:
    root = cub200(tmp_path / "CUB_200_2011")
    assert isinstance(load_in(root, load_cub200, image_size=32).train, ImageSet)
    streamed = load_in(root, load_cub200, resident_gb=16 * 3 * 224 * 224 / 1e9 - 1e-6).train
    assert isinstance(streamed, ImageFiles)
    assert streamed.shape == (3, 224, 224)
    assert isinstance(load_in(root, load_cub200, resident_gb=16 * 3 * 224 * 224 / 1e9).train, ImageSet)


def test_the_archive_the_folder_and_the_folder_above_are_the_same_birds(tmp_path: Path) -> None:
    root = cub200(tmp_path / "above" / "CUB_200_2011")
    archive = tmp_path / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root, "CUB_200_2011")
    sources = [load_in(place, load_cub200, resident_gb=0, image_size=32) for place in (root, root.parent, archive, archive)]
    assert all(torch.equal(raw.train.survey(), sources[0].train.survey()) for raw in sources)
    infos = [
        load_search_data(DataConfig(name="cub200", dir=place, image_size=32, resident_gb=0), tmp_path / "cache").info
        for place in (root, archive)
    ]
    assert infos[0] == infos[1]
    assert len(list((tmp_path / "cache").glob("cub200-*"))) == 1


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (lambda root: (root / "train_test_split.txt").unlink(), r"train_test_split\.txt is missing; name the folder"),
        (lambda root: (root / "classes.txt").write_text("1\n"), r"classes\.txt must hold lines of two words"),
        (lambda root: (root / "image_class_labels.txt").write_text("1 1\n"), r"labels\.txt must name the images of .*, but 15 are"),
        (lambda root: (root / "classes.txt").write_text(f"1 {BIRDS[0]}\n"), r"a class of classes\.txt, but image 9 .* class '2'"),
        (lambda root: next((root / "images" / BIRDS[1]).iterdir()).unlink(), r"every image of images\.txt must be there, but .* is not"),
        (lambda root: _replace(root / "images.txt", "1 001", "1 ../001"), r"must name files below images/, but names \.\./001"),
        (lambda root: _replace(root / "train_test_split.txt", " 0", " 1"), f"has none for '{BIRDS[0]}', '{BIRDS[1]}'"),
        (lambda root: _replace(root / "train_test_split.txt", "1 1\n", "1 2\n"), r"must have split 1 or 0 .* split '2'"),
    ],
)
def test_birds_whose_tables_contradict_each_other_are_refused(spoil: Callable[[Path], None], law: str, tmp_path: Path) -> None:
    root = cub200(tmp_path / "CUB_200_2011")
    spoil(root)
    with pytest.raises(UserError, match=law) as caught:
        load_in(root, load_cub200)
    assert "\n" not in str(caught.value)


def _replace(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def test_a_damaged_archive_of_birds_is_refused_and_not_kept(tmp_path: Path) -> None:
    archive = tmp_path / "CUB_200_2011.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(cub200(tmp_path / "CUB_200_2011"), "CUB_200_2011")
    archive.write_bytes(archive.read_bytes()[:-2000])
    assert "must be the archive CUB_200_2011.tgz, but cannot be unpacked" in refusal(archive, load_cub200)
    assert [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_streamed_splits_are_disjoint_complete_and_the_same_every_time(tmp_path: Path) -> None:
    config = DataConfig(name="imagenet", dir=imagenet(tmp_path / "imagenet"), image_size=32, search_fraction=0.25, workers=0)
    data, test = load_search_data(config, tmp_path / "cache"), load_test_data(config, tmp_path / "cache")
    again = load_search_data(config, tmp_path / "cache")
    parts = [set(split.paths.tolist()) for split in (data.train, data.search, test)]  # type: ignore[attr-defined]
    assert [len(part) for part in parts] == [18, 6, 9]
    assert len(set.union(*parts)) == 33
    assert data.info == again.info
    assert len(load_search_data(config.model_copy(update={"train_limit": 6}), tmp_path / "cache").train) == 6


def test_another_file_under_the_same_name_changes_the_digest_of_a_streamed_set(tmp_path: Path) -> None:
    config = DataConfig(name="imagenet", dir=imagenet(tmp_path / "imagenet"), image_size=32, workers=0)
    before = load_search_data(config, tmp_path / "cache").info.digest
    shutil.copytree(tmp_path / "imagenet", tmp_path / "moved")
    moved = config.model_copy(update={"dir": tmp_path / "moved"})
    assert load_search_data(moved, tmp_path / "cache").info.digest == before
    file = tmp_path / "moved" / "train" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    file.write_bytes(file.read_bytes() + b"\0")
    assert load_search_data(moved, tmp_path / "cache").info.digest != before
