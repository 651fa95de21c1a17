"""Three splits: laws of the cut."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.config import DataConfig
from core.data import DATASETS, load_search_data
from core.data.heldout import load_test_data
from core.data.splits import allot, channel_statistics, cut, load_raw, split_search
from core.data.types import ImageSet, RawData
from core.errors import UserError

counts_per_class = st.lists(st.integers(2, 40), min_size=2, max_size=6)


def labels_of(counts: list[int]) -> np.ndarray:
    return np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)), counts))


@given(counts_per_class, st.floats(0.01, 0.99), st.integers(-5, 2**40))
def test_a_cut_is_a_partition_with_every_class_on_both_sides(counts: list[int], fraction: float, seed: int) -> None:
    labels = labels_of(counts)
    rest, held = cut(labels, fraction, [str(i) for i in range(len(counts))], (seed, 0), "search")
    assert sorted([*rest, *held]) == list(range(len(labels)))
    assert set(labels[rest]) == set(labels[held]) == set(range(len(counts)))


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8), st.data())
def test_quotas_sum_to_the_total_and_stay_within_the_counts(counts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(len(counts), sum(counts)))
    quotas = allot(np.array(counts), total)
    assert quotas.sum() == total
    assert (quotas >= 1).all()
    assert (quotas <= counts).all()


def test_equal_classes_get_equal_quotas_and_remainders_go_to_the_largest() -> None:
    assert allot(np.array([50, 50]), 10).tolist() == [5, 5]
    assert allot(np.array([10, 20, 30]), 7).tolist() == [1, 2, 4]


def test_a_round_share_is_not_rounded_up_by_binary_fractions() -> None:
    labels = labels_of([15, 15])
    assert len(cut(labels, 0.1, "ab", (0, 0), "search")[1]) == 3


def test_a_class_of_one_image_cannot_be_cut_and_is_named() -> None:
    with pytest.raises(UserError, match=r"search split takes at least 2 images per class, but class 'b' has 1"):
        cut(np.array([0, 0, 1]), 0.5, ("a", "b"), (0, 1), "search")


def digits(**settings: object) -> DataConfig:
    return DataConfig.model_validate({"name": "digits", **settings})


def rows(images: ImageSet) -> list[bytes]:
    return sorted(bytes([int(label)]) + image.numpy().tobytes() for image, label in zip(images.images, images.labels, strict=True))


def test_digits_have_360_test_images_and_the_three_splits_are_all_of_them(tmp_path: Path) -> None:
    data, test = load_search_data(digits(), tmp_path), load_test_data(digits(), tmp_path)
    raw = load_raw(digits(), tmp_path)
    assert len(test) == 360
    assert len(data.train) + len(data.search) + len(test) == 1797
    assert sorted(rows(data.train) + rows(data.search) + rows(test)) == rows(raw.train)
    assert (data.info.channels, data.info.image_size, data.info.classes) == (1, 8, tuple("0123456789"))
    assert int(raw.train.images.max()) == 255


def test_the_same_seed_gives_the_same_splits_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (load_search_data(digits(seed=seed), tmp_path) for seed in (3, 3, 4))
    assert first.info == again.info
    assert torch.equal(first.train.images, again.train.images)
    assert first.info.digest != other.info.digest
    assert rows(first.search) != rows(other.search)


def test_the_test_split_depends_on_nothing_but_its_fraction_and_the_seed(tmp_path: Path) -> None:
    plain = load_test_data(digits(), tmp_path)
    assert rows(plain) == rows(load_test_data(digits(search_fraction=0.3, train_limit=50), tmp_path))
    assert rows(plain) != rows(load_test_data(digits(seed=1), tmp_path))


def test_a_train_limit_keeps_that_many_of_every_class_and_leaves_the_search_split(tmp_path: Path) -> None:
    full, limited = load_search_data(digits(), tmp_path), load_search_data(digits(train_limit=100), tmp_path)
    assert len(limited.train) == 100
    assert limited.train.labels.bincount().min() >= 9
    assert set(rows(limited.train)) <= set(rows(full.train))
    assert rows(limited.search) == rows(full.search)
    assert limited.info.digest != full.info.digest


def test_a_train_limit_beyond_the_images_changes_nothing_and_one_below_the_classes_is_refused(tmp_path: Path) -> None:
    assert load_search_data(digits(train_limit=10**6), tmp_path).info == load_search_data(digits(), tmp_path).info
    with pytest.raises(UserError, match=r"train_limit must leave an image of each of the 10 classes, but is 9"):
        load_search_data(digits(train_limit=9), tmp_path)


def test_size_and_channels_of_the_embedded_set_can_be_changed(tmp_path: Path) -> None:
    data = load_search_data(digits(image_size=12, channels=3), tmp_path)
    assert data.train.images.shape[1:] == (3, 12, 12)
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])


def test_statistics_equal_those_of_torch_in_float64() -> None:
    images = torch.randint(0, 256, (2000, 3, 5, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = channel_statistics(images)
    exact = (images.double() / 255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(exact.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(exact.std(1, correction=0).tolist(), abs=1e-12)


def test_constant_images_have_a_deviation_that_can_be_divided_by() -> None:
    assert channel_statistics(torch.full((3, 1, 4, 4), 7, dtype=torch.uint8))[1] == pytest.approx((1 / 255,))


def test_one_changed_pixel_changes_the_digest() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=generator)
    raw = RawData(ImageSet(images, torch.arange(40) % 2), ImageSet(images, torch.arange(40) % 2), ("a", "b"))
    before = split_search(raw, digits()).info.digest
    images[0, 0, 0, 0] ^= 1
    assert len(before) == 16
    assert split_search(raw, digits()).info.digest != before


def test_an_unknown_data_set_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown data set 'digit', did you mean 'digits'\?; known: cifar10, .*, unlabelled"):
        load_search_data(digits(name="digit"), tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "law"),
    [
        (torch.zeros(4, 1, 8, 8), torch.tensor([0, 1, 0, 1]), "images must be square uint8"),
        (torch.zeros(4, 1, 8, 9, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), "images must be square uint8"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0]), "labels must be of the images' number"),
        (torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0, 2]), r"labels must be 0\.\.1"),
    ],
)
def test_a_registered_loader_that_breaks_the_contract_is_named(
    images: torch.Tensor, labels: torch.Tensor, law: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DATASETS, "mine", lambda config, cache_dir: RawData(ImageSet(images, labels), None, ("a", "b")))
    with pytest.raises(UserError, match=f"{law}.*'mine'"):
        load_search_data(digits(name="mine"), tmp_path)


def test_a_subset_is_a_copy_in_the_order_of_its_indices() -> None:
    images = ImageSet(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.arange(4))
    part = images.subset(np.array([3, 1])).to("cpu")
    part.images[0] = 9
    assert part.labels.tolist() == [3, 1]
    assert images.images.flatten().tolist() == [0, 1, 2, 3]
