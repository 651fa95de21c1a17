"""Augmentation is a plan: the same view of the same image is the same in every trial."""

from __future__ import annotations

import pytest
import torch

from core.config import ViewsConfig
from core.views import Normalisation
from tests.tiny_data import SIZE, image_set, view_set

ALL = torch.arange(24)


def plain_images() -> torch.Tensor:
    return Normalisation((0.3,), (0.25,))(image_set(24).images)


def test_a_view_of_an_image_is_the_same_every_time_and_in_every_batch() -> None:
    first, second = view_set(24, ViewsConfig(number=8)), view_set(24, ViewsConfig(number=8))
    for view in range(8):
        whole = first.batch(ALL, view)
        assert torch.equal(whole, second.batch(ALL, view))
        order = torch.tensor([7, 3, 3, 20])
        assert torch.equal(first.batch(order, view), whole[order])


def test_views_differ_from_one_another_and_between_seeds() -> None:
    data = view_set(24, ViewsConfig(number=8))
    assert not torch.equal(data.batch(ALL, 0), data.batch(ALL, 2))
    assert not torch.equal(data.batch(ALL, 0), view_set(24, ViewsConfig(number=8), seed=1).batch(ALL, 0))


def test_how_many_views_there_are_changes_none_of_them() -> None:
    few, many = view_set(24, ViewsConfig(number=2)), view_set(24, ViewsConfig(number=16))
    assert all(torch.equal(few.batch(ALL, view), many.batch(ALL, view)) for view in (0, 1))


def test_a_flip_alternates_from_view_to_view() -> None:
    data = view_set(24, ViewsConfig(number=4, flip=True, shift=0))
    plain = plain_images()
    flipped = [
        torch.tensor([torch.equal(seen, image.flip(-1)) for seen, image in zip(data.batch(ALL, v), plain, strict=True)]) for v in range(4)
    ]
    assert torch.equal(flipped[0], ~flipped[1])
    assert torch.equal(flipped[0], flipped[2])
    assert 0 < int(flipped[0].sum()) < 24
    torch.testing.assert_close(torch.where(flipped[0][:, None, None, None], data.batch(ALL, 1), data.batch(ALL, 0)), plain)


def test_without_flip_and_shift_every_view_is_the_image() -> None:
    data = view_set(24, ViewsConfig(number=3, flip=False, shift=0))
    assert all(torch.equal(data.batch(ALL, view), plain_images()) for view in range(3))


@pytest.mark.parametrize("shift", [0, 1, 4, 50])
def test_plain_undoes_the_padding(shift: int) -> None:
    data = view_set(24, ViewsConfig(number=2, shift=shift))
    assert torch.equal(data.plain(ALL), plain_images())
    assert data.plan.shift == min(shift, SIZE - 1)


def test_a_shift_moves_the_image_by_at_most_that_many_pixels() -> None:
    data = view_set(24, ViewsConfig(number=1, flip=False, shift=2))
    padded = torch.nn.functional.pad(plain_images(), (2, 2, 2, 2), mode="reflect")
    moves = set()
    for image, seen in zip(padded, data.batch(ALL, 0), strict=True):
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(image[:, y : y + SIZE, x : x + SIZE], seen)]
        assert found
        moves.add(found[0])
    assert len(moves) > 5


def test_batches_are_float32_and_channels_last() -> None:
    batch = view_set(24, channels=3).batch(ALL, 0)
    assert batch.shape == (24, 3, SIZE, SIZE)
    assert batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_normalisation_maps_mean_to_zero_and_one_deviation_to_one() -> None:
    normalise = Normalisation((0.2, 0.4), (0.1, 0.2))
    images = torch.tensor([0.2, 0.4]).mul(255).round().to(torch.uint8).view(1, 2, 1, 1)
    torch.testing.assert_close(normalise(images), torch.zeros(1, 2, 1, 1), atol=1e-6, rtol=0)
    torch.testing.assert_close(normalise(torch.full((1, 2, 1, 1), 255, dtype=torch.uint8)).flatten(), torch.tensor([8.0, 3.0]))
