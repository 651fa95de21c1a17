"""Streamed views: replayable, the same whoever decodes them, and what resident sets promise as well."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from core.config import DataConfig, TrainConfig, ViewsConfig
from core.data.files import ImageFiles
from core.data.folder import load_folder
from core.data.splits import split_search
from core.data.types import Images, ImageSet
from core.errors import Disturbed, UserError
from core.infobatch import InfoBatch
from core.stream import ASPECT, StreamedViews, draw_crop
from core.students import STUDENTS
from core.train import Batch, Device, fit, predict_all
from core.views import Normalisation, ViewedSet, viewed
from tests.image_layouts import imagenet

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
DEVICE = Device(CPU, None)
PLAN = ViewsConfig(number=4)
NORMALISE = Normalisation((0.4,) * 3, (0.3,) * 3)
SIZE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return imagenet(tmp_path_factory.mktemp("set"))


def load(folder: Path, **options: object) -> Images:
    values = {"name": "folder", "dir": folder, "image_size": SIZE, "channels": 3, "resident_gb": 0, "workers": 0, **options}
    return load_folder(DataConfig.model_validate(values), folder.parent / "cache").train


def views(folder: Path, plan: ViewsConfig = PLAN, seed: int = 0, **options: object) -> ViewedSet:
    return viewed(load(folder, **options), NORMALISE, plan, seed, CPU)


def test_how_many_views_there_are_changes_none_of_them(folder: Path) -> None:
    few, many = views(folder, ViewsConfig(number=2)), views(folder, ViewsConfig(number=16))
    some = torch.tensor([5, 0, 11])
    assert all(torch.equal(few.batch(some, view), many.batch(some, view)) for view in (0, 1))


def test_a_view_is_the_same_every_time_in_every_batch_and_from_every_worker(folder: Path) -> None:
    here, workers = views(folder), views(folder, workers=2)
    order = [(torch.tensor([5, 0, 11]), 0), (torch.tensor([3, 5]), 3), (torch.tensor([5]), 0)]
    seen = list(workers.batches(order))
    assert [(indices.tolist(), view) for _, indices, view in seen] == [(indices.tolist(), view) for indices, view in order]
    for (images, indices, view), (again, _, _) in zip(seen, here.batches(order), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(images, here.batch(indices, view))
    assert torch.equal(seen[0][0][0], seen[2][0][0])


def test_views_differ_between_views_images_and_seeds(folder: Path) -> None:
    first = views(folder).batch(torch.tensor([0, 1]), 0)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, views(folder).batch(torch.tensor([0, 1]), 2))
    assert not torch.equal(first, views(folder, seed=1).batch(torch.tensor([0, 1]), 0))


def test_a_view_keeps_its_pixels_where_the_set_is_cut_to_a_part(folder: Path) -> None:
    whole = load(folder)
    part = viewed(whole.subset(torch.tensor([4, 7])), NORMALISE, ViewsConfig(number=1, flip=False, min_area=1.0), 0, CPU)
    assert isinstance(part, StreamedViews)
    assert part.files.path(1) == whole.path(7)  # type: ignore[attr-defined]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1), st.integers(0, 15), st.integers(0, 10**6), st.floats(0.01, 1.0))
def test_a_crop_lies_in_the_image_and_has_the_area_and_aspect_that_were_asked(
    width: int, height: int, seed: int, view: int, index: int, min_area: float
) -> None:
    plan = ViewsConfig(min_area=min_area)
    crop = draw_crop(width, height, plan, seed, view, index)
    assert crop == draw_crop(width, height, plan, seed, view, index)
    assert crop.top >= 0
    assert crop.left >= 0
    assert 0 < crop.height <= height - crop.top
    assert 0 < crop.width <= width - crop.left
    if min(width, height) >= 100 and max(width, height) / min(width, height) < 2 and min_area < 0.5:
        assert crop.height * crop.width >= 0.9 * min_area * width * height
        assert 0.9 * ASPECT[0] <= crop.width / crop.height <= 1.1 * ASPECT[1]


def test_crops_are_distributed_as_those_of_torchvision() -> None:
    ours = np.array([draw_crop(500, 375, ViewsConfig(), 0, 0, index)[:4] for index in range(2000)])
    torch.manual_seed(0)
    image = torch.empty(1, 375, 500)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], list(ASPECT)) for _ in range(2000)])
    error = np.sqrt(ours.var(0) / 2000 + theirs.var(0) / 2000)
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4 * error).all()
    assert (np.abs(ours.std(0) / theirs.std(0) - 1) < 0.08).all()


def test_a_flip_alternates_from_view_to_view_and_can_be_left_out() -> None:
    flips = np.array([[draw_crop(50, 50, ViewsConfig(), 3, view, index).flip for index in range(100)] for view in range(4)])
    assert (flips[0] != flips[1]).all()
    assert (flips[0] == flips[2]).all()
    assert 20 < flips[0].sum() < 80
    assert not any(draw_crop(50, 50, ViewsConfig(flip=False), 3, 0, index).flip for index in range(100))


@pytest.mark.parametrize("channels", [1, 3])
def test_streamed_and_resident_sets_hold_the_same_plain_images(channels: int, folder: Path) -> None:
    streamed, resident = load(folder, channels=channels), load(folder, channels=channels, resident_gb=1)
    assert isinstance(streamed, ImageFiles)
    assert isinstance(resident, ImageSet)
    assert torch.equal(torch.cat(list(streamed.chunks())), resident.images)
    assert torch.equal(streamed.survey(), resident.images)
    assert torch.equal(streamed.labels, resident.labels)
    assert streamed.shape == resident.shape == (channels, SIZE, SIZE)
    pick = torch.tensor([7, 0])
    assert torch.equal(streamed.take(pick), resident.take(pick))
    plain = [viewed(images, Normalisation((0.4,) * channels, (0.3,) * channels), PLAN, 0, CPU) for images in (streamed, resident)]
    assert torch.equal(plain[0].plain(pick), plain[1].plain(pick))
    assert plain[0].batch(pick, 0).shape == (2, channels, SIZE, SIZE)


def test_large_sets_come_in_parts_that_fit_into_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.data.types.CHUNK_VALUES", 7 * 3 * SIZE * SIZE)
    images = load(folder)
    assert [len(part) for part in images.chunks()] == [7, 7, 7, 3]
    model = STUDENTS["light_cnn"](classes=3, channels=3, image_size=SIZE, width=0.25).eval()
    resident = load(folder, resident_gb=1)
    torch.testing.assert_close(predict_all(model, images, NORMALISE, DEVICE), predict_all(model, resident, NORMALISE, DEVICE))


def test_batches_are_float32_and_channels_last(folder: Path) -> None:
    images, _, _ = next(iter(views(folder).batches([(torch.arange(4), 0)])))
    assert images.shape == (4, 3, SIZE, SIZE)
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_training_sees_every_image_once_an_epoch_and_learns(workers: int, folder: Path) -> None:
    data = split_search_data(folder, workers)
    seen: list[int] = []

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        seen.extend(batch.indices.tolist())
        return F.cross_entropy(logits.float(), batch.labels)

    torch.manual_seed(0)
    model = STUDENTS["light_cnn"](classes=3, channels=3, image_size=SIZE, width=0.25)
    train_set = viewed(data, NORMALISE, PLAN, 0, CPU)
    fit(model, train_set, loss, TrainConfig(epochs=6, batch_size=8, lr=0.05), DEVICE, seed=0)
    assert sorted(seen[: len(data)]) == list(range(len(data)))
    logits = predict_all(model, load(folder), NORMALISE, DEVICE)
    assert (logits.argmax(1) == load(folder).labels).float().mean() > 0.9


@pytest.mark.parametrize("workers", [0, 2])
def test_who_sits_out_an_epoch_is_decided_when_the_one_before_it_is_over(workers: int, folder: Path) -> None:
    """Processes read ahead: not beyond what is known."""
    train_set = viewed(split_search_data(folder, workers), NORMALISE, PLAN, 0, CPU)
    chosen, weights, done = InfoBatch(len(train_set), 0.5, 6.0, 0, CPU), [], []
    batches = math.ceil(len(train_set) / 4)

    def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        done.append(batch.indices.tolist())
        if len(done) <= 2 * batches:
            weights.extend(chosen._weights[batch.indices].tolist())
        return chosen.mean(batch.indices.float() + 0 * logits.sum(1), batch.indices)

    model = STUDENTS["light_cnn"](classes=3, channels=3, image_size=SIZE, width=0.25)
    fit(model, train_set, loss, TrainConfig(epochs=6, batch_size=4, lr=0.05), DEVICE, seed=0, chosen=chosen)
    assert set(weights) == {1.0}
    learned = [index for index in range(len(train_set)) if index < (len(train_set) - 1) / 2]
    third = {index for indices in done[2 * batches : 3 * batches] for index in indices}
    assert third > set(range(len(train_set))) - set(learned)  # those with the larger losses all stay
    assert len(third) < len(train_set)


def test_reading_ahead_draws_none_of_the_random_numbers_of_a_training(folder: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert len(list(views(folder, workers=0).batches([(torch.arange(4), 0)]))) == 1
    assert torch.equal(before, torch.get_rng_state())


def test_files_of_one_name_and_size_with_other_pixels_are_another_set(tmp_path: Path) -> None:
    def content(colours: tuple[str, str]) -> list[bytes]:
        for name, colour in zip(("a", "b"), colours, strict=True):
            (tmp_path / "set" / name).mkdir(parents=True, exist_ok=True)
            for index in range(2):
                Image.new("RGB", (40, 40), colour).save(tmp_path / "set" / name / f"{index}.bmp")
        return [bytes(part) for part in load(tmp_path / "set").content()]

    first = content(("red", "blue"))
    assert content(("red", "blue")) == first
    assert content(("blue", "red")) != first


def split_search_data(folder: Path, workers: int) -> Images:
    config = DataConfig(name="folder", dir=folder, image_size=SIZE, channels=3, resident_gb=0, workers=workers)
    data = split_search(load_folder(config, folder.parent / "cache"), config)
    assert isinstance(data.search, ImageFiles)
    return data.train


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_file_is_named_in_one_line_when_it_is_met(workers: int, tmp_path: Path) -> None:
    bad = imagenet(tmp_path / "set") / "train" / "n02084071" / "n02084071_3.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    data = views(tmp_path / "set", workers=workers)
    with pytest.raises(UserError, match=r"n02084071_3\.JPEG is not: .*--skip-bad$") as caught:
        list(data.batches([(torch.arange(8), 0), (torch.arange(8, 16), 0)]))
    assert "\n" not in str(caught.value)
    with pytest.raises(Disturbed, match=r"n02084071_3\.JPEG is not: .*--skip-bad$"):
        data.plain(torch.arange(16))


def test_bad_files_are_left_out_where_that_is_asked_and_looked_for_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = imagenet(tmp_path / "set") / "train" / "n02084071" / "n02084071_3.JPEG"
    bad.write_bytes(b"no picture")
    kept = load(tmp_path / "set", skip_bad=True)
    assert len(kept) == 23
    assert "skipped 1 unreadable image(s); the first: an image must be readable" in caplog.text
    (found,) = (tmp_path / "cache").glob("unreadable-*.npz")
    written = found.stat().st_mtime_ns
    assert len(load(tmp_path / "set", skip_bad=True)) == 23
    assert found.stat().st_mtime_ns == written
    assert len(list(viewed(kept, NORMALISE, PLAN, 0, CPU).batches([(torch.arange(23), 1)]))) == 1


LOSES_ITS_WORKERS = """
import multiprocessing, sys
from pathlib import Path
from core.cli import run_main
from core.config import TrainConfig
from core.train import fit
from tests.core.test_stream import DEVICE, SIZE, STUDENTS, views

def main(argv):
    def loss(logits, batch):
        for worker in multiprocessing.active_children():
            worker.kill()
        return logits.sum()

    model = STUDENTS["light_cnn"](classes=3, channels=3, image_size=SIZE, width=0.25)
    fit(model, views(Path(argv[0]), workers=1), loss, TrainConfig(epochs=50, batch_size=8), DEVICE, seed=0)
    return 0

raise SystemExit(run_main(main, sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_in_one_line_with_its_remedy(folder: Path) -> None:
    """In a process of its own: PyTorch raises from a signal handler, wherever the process is at that moment."""
    command = [sys.executable, "-c", LOSES_ITS_WORKERS, str(folder)]
    answer = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert answer.returncode == 2, answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert answer.stderr.startswith("error: the processes that decode images must live, but ")
    assert answer.stderr.endswith("; set data.workers lower, 0 for none\n")
