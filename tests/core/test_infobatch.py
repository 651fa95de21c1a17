"""Who sits out an epoch, and that the gradient stays the same in expectation."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from core.config import TeacherTrainConfig
from core.infobatch import InfoBatch
from core.students import STUDENTS
from core.train import Batch, Device, fit
from tests.tiny_data import CLASSES, SIZE, view_set

CPU = torch.device("cpu")
COUNT = 1000
ORDER = torch.randperm(COUNT, generator=torch.Generator().manual_seed(3))
LOSSES = torch.rand(COUNT, generator=torch.Generator().manual_seed(4)) ** 3


def seen(share: float = 0.5, seed: int = 0) -> InfoBatch:
    """After an epoch in which every image had its loss."""
    chosen = InfoBatch(COUNT, share, 8.0, seed, CPU)
    chosen.mean(LOSSES, torch.arange(COUNT))
    return chosen


@pytest.mark.parametrize(("share", "epoch"), [(0.0, 4), (0.5, 0), (0.5, 1), (0.5, 7)])
def test_without_a_share_and_in_the_first_and_last_epochs_everybody_stays(share: float, epoch: int) -> None:
    chosen = seen(share)
    assert torch.equal(chosen.stay(ORDER, epoch), ORDER)
    assert float(chosen.mean(LOSSES, torch.arange(COUNT))) == pytest.approx(float(LOSSES.mean()))


def test_only_learned_images_are_left_out_and_the_others_keep_their_order() -> None:
    staying = seen().stay(ORDER, 4)
    learned = LOSSES.mean() > LOSSES
    left = sorted(set(range(COUNT)) - set(staying.tolist()))
    assert 0.4 * int(learned.sum()) < len(left) < 0.6 * int(learned.sum())
    assert bool(learned[left].all())
    assert staying.tolist() == [index for index in ORDER.tolist() if index in set(staying.tolist())]


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_the_sum_over_an_epoch_is_the_whole_one_in_expectation(share: float) -> None:
    sums = []
    for seed in range(200):
        chosen = seen(share, seed)
        staying = chosen.stay(ORDER, 4)
        sums.append(float(chosen.mean(LOSSES[staying], staying)) * len(staying))
    assert sum(sums) / len(sums) == pytest.approx(float(LOSSES.sum()), rel=0.01)


def test_an_epoch_of_fewer_images_has_as_many_steps() -> None:
    data = view_set(96)
    torch.manual_seed(0)
    model = STUDENTS["light_cnn"](classes=CLASSES, channels=1, image_size=SIZE, width=0.25)
    images: list[list[int]] = []

    class Counted(InfoBatch):
        def stay(self, order: Tensor, epoch: int) -> Tensor:
            images.append([])
            return super().stay(order, epoch)

    chosen = Counted(len(data), 0.5, 8.0, 0, CPU)

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        images[-1].append(len(batch.indices))
        return chosen.mean(torch.nn.functional.cross_entropy(logits.float(), batch.labels, reduction="none"), batch.indices)

    fit(model, data, loss, TeacherTrainConfig(epochs=8.0, batch_size=16, lr=0.05), Device(CPU, None), seed=0, chosen=chosen)
    assert [len(epoch) for epoch in images] == [6] * 8
    assert [sum(epoch) == 96 for epoch in images] == [True, True, False, False, False, False, False, True]


def test_batches_that_would_get_too_small_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"at least 8, but batch_size is 16 and infobatch 0.6; set a larger batch_size"):
        TeacherTrainConfig(batch_size=16, infobatch=0.6)
