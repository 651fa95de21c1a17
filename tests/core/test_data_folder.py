"""Image folders: layouts, the decoded cache, and every mistake in words."""

import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.config import DataConfig
from core.data.cache import cached_arrays
from core.data.folder import load_folder
from core.data.listing import is_image_folder
from core.data.splits import load_raw, split_search, split_test
from core.data.types import RawData
from core.errors import UserError


def add_images(folder: Path, number: int = 3, size: tuple[int, int] = (8, 8), mode: str = "L", suffix: str = "png") -> None:
    """`number` images whose pixels follow from their folder and number."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        rng = np.random.RandomState([*folder.name.encode(), index])
        Image.fromarray(rng.randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(folder / f"{index}.{suffix}")


@pytest.fixture
def split_folder(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    for split, number in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            add_images(root / split / name, number)
    return root


def load(root: Path | None, **options: object) -> RawData:
    cache = (root.parent if root is not None else Path()) / "cache"
    return load_folder(DataConfig.model_validate({"name": "folder", "dir": root, **options}), cache)


def refusal(root: Path | None, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        load(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_train_and_test_folders_are_two_splits_with_labels_by_class_name(split_folder: Path) -> None:
    raw = load(split_folder)
    assert raw.classes == ("cat", "dog")
    assert raw.train.images.shape == (8, 1, 8, 8)
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 4
    assert raw.test is not None
    assert raw.test.labels.tolist() == [0, 0, 1, 1]
    assert (raw.train.images[5, 0].numpy() == np.asarray(Image.open(split_folder / "train/dog/1.png"))).all()


def test_val_stands_in_for_a_missing_test_folder_only(split_folder: Path) -> None:
    for name in ("cat", "dog"):
        add_images(split_folder / "val" / name, 1)
    first = load(split_folder).test
    shutil.rmtree(split_folder / "test")
    second = load(split_folder).test
    assert first is not None
    assert second is not None
    assert (len(first), len(second)) == (4, 2)


@pytest.mark.parametrize("resident_gb", [1.0, 1e-9], ids=["resident", "streamed"])
def test_val_beside_test_is_the_search_split_and_nothing_is_held_out_of_train(split_folder: Path, resident_gb: float) -> None:
    for name in ("cat", "dog"):
        add_images(split_folder / "val" / name, 3)
    (split_folder / "val" / "dog" / "bad.png").write_bytes(b"no image")
    config = DataConfig(name="folder", dir=split_folder, resident_gb=resident_gb, skip_bad=True, search_fraction=0.5)
    raw = load_raw(config, split_folder / "cache")
    data = split_search(raw, config)
    assert (len(data.train), len(data.search), len(split_test(raw, config))) == (8, 6, 4)
    assert data.search.labels.tolist() == [0] * 3 + [1] * 3
    first = np.asarray(Image.open(split_folder / "val" / "cat" / "0.png"))
    assert (data.search.take(torch.tensor([0]))[0, 0].numpy() == first).all()


def test_a_class_that_val_lacks_is_named(split_folder: Path) -> None:
    add_images(split_folder / "val" / "cat", 1)
    assert "train and val must have the same classes" in refusal(split_folder)


def test_class_folders_alone_have_no_test_split(split_folder: Path) -> None:
    assert load(split_folder / "train").test is None


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("bus", "train"):
        add_images(tmp_path / "set" / name)
    assert load(tmp_path / "set").classes == ("bus", "train")


def test_other_files_hidden_files_and_nesting_do_not_disturb(split_folder: Path) -> None:
    (split_folder / "train/cat/notes.txt").write_text("no image")
    (split_folder / "train/cat/._0.png").write_bytes(b"resource fork")
    (split_folder / "train/.git").mkdir()
    add_images(split_folder / "train/cat/more/deep", 2, suffix="JPEG")
    assert len(load(split_folder).train) == 10


@pytest.mark.parametrize(
    ("sizes", "side"),
    [([(8, 8)], 8), ([(64, 64)], 64), ([(65, 65)], 32), ([(8, 8), (9, 9)], 32), ([(12, 8)], 32)],
)
def test_a_small_square_size_that_all_share_is_kept_else_32(sizes: list[tuple[int, int]], side: int, tmp_path: Path) -> None:
    for name in ("a", "b"):
        for index, size in enumerate(sizes):
            add_images(tmp_path / "set" / name / str(index), 2, size)
    assert load(tmp_path / "set").train.images.shape[-1] == side
    assert load(tmp_path / "set", image_size=20).train.images.shape[-1] == 20


def test_images_that_are_made_smaller_unasked_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        add_images(tmp_path / "set" / name, 3, (70, 90))
    assert load(tmp_path / "set", image_size=64).train.images.shape[-1] == 64
    assert not caplog.text
    assert load(tmp_path / "set").train.images.shape[-1] == 32
    told = "images of up to 70 px are scaled to 32 px, as data.image_size is not set"
    assert told in caplog.text
    for resident_gb in (1.0, 0.0, 0.0):  # also where they come from the cache
        caplog.clear()
        load(tmp_path / "set", resident_gb=resident_gb)
        assert told in caplog.text


def test_one_colour_image_makes_the_set_colour(split_folder: Path) -> None:
    assert load(split_folder).train.images.shape[1] == 1
    add_images(split_folder / "test/cat", 1, mode="RGB")
    assert load(split_folder).train.images.shape[1] == 3
    assert load(split_folder, channels=1).train.images.shape[1] == 1


def test_every_mode_goes_into_one_set(tmp_path: Path) -> None:
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
        add_images(tmp_path / "set/a" / mode, 1, mode=mode)
    add_images(tmp_path / "set/b", 3, (30, 17), "RGB", "jpg")
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(tmp_path / "set/b/deep.png")
    assert load(tmp_path / "set").train.images.shape == (10, 3, 32, 32)


def test_folders_are_decoded_once(split_folder: Path) -> None:
    first = load(split_folder)
    (cache,) = (split_folder.parent / "cache").glob("images-*")
    written = cache.stat().st_mtime_ns
    again = load(split_folder)
    assert cache.stat().st_mtime_ns == written
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.train.labels, again.train.labels)


def test_a_changed_file_another_size_or_another_root_is_decoded_anew(split_folder: Path) -> None:
    before = load(split_folder)
    picture = split_folder / "train/cat/0.png"
    Image.new("L", (8, 8), 255).save(picture)
    os.utime(picture, ns=(1, 1))
    after = load(split_folder)
    load(split_folder, image_size=9)
    shutil.copytree(split_folder, split_folder.with_name("copy"))
    load(split_folder.with_name("copy"))
    assert not torch.equal(before.train.images, after.train.images)
    assert len(list((split_folder.parent / "cache").glob("images-*"))) == 4


@given(st.data())
@settings(max_examples=80)
def test_a_damaged_cache_is_built_again_never_believed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.unlink(missing_ok=True)
    truth = {"images": np.arange(60, dtype=np.uint8).reshape(3, 20), "labels": np.arange(3), "bad": np.array(["x: é"])}
    cached_arrays(path, lambda: truth)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    read = cached_arrays(path, lambda: truth)
    assert all((read[name] == truth[name]).all() for name in truth)
    assert {name: array.dtype for name, array in cached_arrays(path, dict).items()} == {name: a.dtype for name, a in truth.items()}


def test_a_truncated_cache_is_replaced_by_a_whole_one(split_folder: Path) -> None:
    first = load(split_folder)
    (cache,) = (split_folder.parent / "cache").glob("images-*")
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    assert torch.equal(load(split_folder).train.images, first.train.images)
    assert len(cache.read_bytes()) == len(whole)


def test_workers_that_start_together_share_one_cache(split_folder: Path) -> None:
    results: list[RawData] = []
    threads = [threading.Thread(target=lambda: results.append(load(split_folder, image_size=8, channels=1))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(torch.equal(result.train.images, results[0].train.images) for result in results)
    assert len(list((split_folder.parent / "cache").glob("images-*"))) == 1


def test_a_cache_that_cannot_be_written_says_so(split_folder: Path) -> None:
    (split_folder.parent / "cache").write_text("a file in the way")
    assert "must be writable, but: File exists; free space or mend its folder" in refusal(split_folder)


def test_a_corrupt_image_is_named_and_can_be_left_out(split_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (split_folder / "train/dog/2.png").write_bytes(b"not an image")
    (split_folder / "test/cat/0.png").write_bytes(b"")
    message = refusal(split_folder)
    assert "train/dog/2.png is not" in message
    assert "(1 more like it)" in message
    assert "--skip-bad" in message
    raw = load(split_folder, skip_bad=True)
    assert raw.test is not None
    assert (len(raw.train), len(raw.test)) == (7, 3)
    assert raw.train.labels.tolist() == [0] * 4 + [1] * 3
    assert "skipped 2 unreadable image(s)" in caplog.text
    assert refusal(split_folder) == message


def test_a_dangling_link_is_a_corrupt_image(split_folder: Path) -> None:
    (split_folder / "train/cat/9.png").symlink_to("nowhere.png")
    assert "train/cat/9.png is not: No such file" in refusal(split_folder)


def test_a_class_of_which_every_image_is_bad_is_named_even_when_skipping(split_folder: Path) -> None:
    for path in (split_folder / "train/dog").iterdir():
        path.write_bytes(b"x")
    assert "has none for 'dog'" in refusal(split_folder, skip_bad=True)


def test_each_wrong_layout_has_its_own_words(split_folder: Path, tmp_path: Path) -> None:
    assert "--data-dir FOLDER" in refusal(None)
    assert "is missing" in refusal(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    assert "is a file" in refusal(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "has no class folders" in refusal(tmp_path / "empty")
    add_images(tmp_path / "flat")
    assert "has images but no class folders" in refusal(tmp_path / "flat")
    add_images(tmp_path / "one/cat")
    assert "at least 2 classes, but" in refusal(tmp_path / "one")
    assert "has only 'cat'" in refusal(tmp_path / "one")
    (tmp_path / "one/dog").mkdir()
    assert "has none for 'dog'" in refusal(tmp_path / "one")
    shutil.copytree(split_folder / "test", tmp_path / "untrained/test")
    assert "train is missing" in refusal(tmp_path / "untrained")
    for name in ("Training", "Testing"):
        shutil.copytree(split_folder / "test", tmp_path / "named" / name)
    assert "splits are called train, test and val, but" in refusal(tmp_path / "named")
    shutil.copytree(split_folder, tmp_path / "roboflow")
    shutil.copytree(split_folder / "test", tmp_path / "roboflow/valid")
    assert "holds 'valid' with the same classes; rename or move it" in refusal(tmp_path / "roboflow")
    add_images(tmp_path / "odd/cat")
    os.makedirs(os.fsencode(tmp_path) + b"/odd/caf\xe9")
    assert "a class must have a name in UTF-8, but" in refusal(tmp_path / "odd")


def test_classes_that_differ_between_train_and_test_are_named(split_folder: Path) -> None:
    (split_folder / "test/dog").rename(split_folder / "test/dogs")
    assert "(only in train: 'dog'; only in test: 'dogs')" in refusal(split_folder)


def test_images_too_small_to_train_on_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        add_images(tmp_path / "set" / name, 2, (2, 2))
    assert "image_size must be at least 4" in refusal(tmp_path / "set")
    assert load(tmp_path / "set", image_size=8).train.images.shape[-1] == 8


def test_an_image_folder_is_told_from_a_download_folder(split_folder: Path) -> None:
    assert is_image_folder(split_folder)
    assert is_image_folder(split_folder / "train")
    assert is_image_folder(split_folder / "train/cat")
    assert not is_image_folder(split_folder.parent)
    assert not is_image_folder(split_folder / "gone")
