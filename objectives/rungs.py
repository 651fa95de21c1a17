"""What is known at the end of an epoch: the learning rate, and a candidate's accuracy on a fixed part of the search split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from core.candidate import Rung
from core.config import TrainConfig
from core.layers import evaluating
from core.train import EpochFn, learning_rate, predict
from objectives.bench import Workbench

MOST_IMAGES = 1000
SHARE = 0.1
"""Of the training images. A forward pass costs a third of a training step: a rung takes at most 3 to 4 % of its epoch."""
FEWEST_IMAGES = 100


@dataclass(frozen=True)
class Watch:
    """Looks at a network at each of its rungs, and tells `on_rung`. That may raise."""

    bench: Workbench
    on_rung: Callable[[Rung], None] = lambda rung: None

    def __call__(self, model: nn.Module, stage: str, config: TrainConfig, on_epoch: EpochFn) -> EpochFn:
        """The epoch callback for a training of `model`, which is looked at as it is then, in the precision of its training."""

        def at_epoch(done: float, epochs: float, *numbers: float) -> None:
            rung = Rung(stage=stage, epoch=done, accuracy=accuracy_now(model, self.bench))
            on_epoch(done, epochs, *numbers, rung.accuracy)
            self.on_rung(rung)

        return with_rate(at_epoch, config, len(self.bench.train_set))


def with_rate(on_epoch: EpochFn, config: TrainConfig, images: int) -> EpochFn:
    """The epoch callback of a training on so many `images`: tells `on_epoch` the learning rate too, behind the loss."""
    steps = math.ceil(images / config.batch_size)
    return lambda done, *numbers: on_epoch(done, *numbers, learning_rate(config, steps, done))


def accuracy_now(model: nn.Module, bench: Workbench) -> float:
    """Share of the rung's images that `model` gets right, rounded to 4 digits; modes and weights stay as they are."""
    search = bench.data.search
    indices = rung_images(len(search), len(bench.train_set))
    with evaluating(model):
        logits = predict(model, search.take(indices), bench.teacher.normalise, bench.device, amp=True)
    return round(float((logits.argmax(1) == search.labels[indices].cpu()).float().mean()), 4)


def rung_images(search: int, train: int) -> torch.Tensor:
    """Indices of the search images that a rung looks at, evenly spread; int64."""
    count = min(search, MOST_IMAGES, max(FEWEST_IMAGES, int(SHARE * train)))
    return torch.linspace(0, search - 1, count).long()
