"""Seconds of training per image, timed on a few steps: of the smallest and the largest network of a space, and of its teachers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from core.candidate import SELF
from core.config import Config, TrainConfig
from core.data.types import DataInfo
from core.layers import count_macs
from core.teacher import build_network, build_teacher_network, normalisation_of
from core.train import fit
from core.views import viewed
from search.preflight import Inputs
from search.space import Space, options

STEPS, ROUNDS = 3, 2
"""Steps of a training that is timed, and how often; the first time also pays for what is set up once."""
PROBE = 8
"""Images of the step that is timed before, to know how many there is time for."""


class Dense(NamedTuple):
    """An unpruned network of the space."""

    student: str
    width: float
    macs: int
    file_bytes: int
    """Of its weights in float."""


@dataclass(frozen=True)
class Speed:
    """Seconds of training per image, as a line through the smallest and the largest network."""

    macs: tuple[int, int]
    seconds: tuple[float, float]

    def at(self, macs: int) -> float:
        """Never below the smaller network's: a step has its price."""
        low, high = self.macs
        share = (macs - low) / (high - low) if high > low else 0.0
        return max(self.seconds[0], self.seconds[0] + share * (self.seconds[1] - self.seconds[0]))


class TimeIsUp(Exception):
    """A training that is timed would go on for too long."""


def training_speed(dense: Sequence[Dense], config: Config, inputs: Inputs, deadline: float) -> tuple[Speed | None, list[float | None]]:
    """Of the smallest and the largest network, timed on a few steps; and seconds per image of each teacher, 0 for one with weights.

    None: there was no time. What is timed first is what most of a run's hours depend on.
    """
    small, large = min(dense, key=lambda each: each.macs), max(dense, key=lambda each: each.macs)
    ends, teachers = dict.fromkeys((large, small)), [each for each in config.teachers if not (each.weights or each.pretrained)]
    left = len(ends) + len(teachers)

    def timed(network: nn.Module, recipe: TrainConfig) -> float | None:
        nonlocal left
        limit_s, left = (deadline - time.monotonic()) / left, left - 1
        return seconds_per_image(network, recipe, config, inputs, limit_s)

    info = inputs.data.info
    found = {each: timed(build_network(each.student, each.width, config.teacher, info), config.finetune) for each in ends}
    taught = [timed(build_teacher_network(each, info), each.train) if each in teachers else 0.0 for each in config.teachers]
    first, last = found[small], found[large]
    return None if first is None or last is None else Speed((small.macs, large.macs), (first, max(first, last))), taught


def seconds_per_image(network: nn.Module, recipe: TrainConfig, config: Config, inputs: Inputs, limit_s: float) -> float | None:
    """Of a training step on labels, within about `limit_s`: with fewer images a step where the recipe's take longer. None: no time.

    The teacher's kept answers cost next to nothing beside it.
    """
    until = time.monotonic() + limit_s
    tried = _timed(network, recipe, min(PROBE, recipe.batch_size), 1, config, inputs, until) if limit_s > 0 else None
    if tried is None:
        return None
    fitting = int((until - time.monotonic()) / (tried * STEPS * ROUNDS))
    if fitting <= PROBE:
        return tried
    return _timed(network, recipe, min(fitting, recipe.batch_size), STEPS, config, inputs, until) or tried


def _timed(network: nn.Module, recipe: TrainConfig, batch: int, steps: int, config: Config, inputs: Inputs, until: float) -> float | None:
    """Seconds per image of `steps` steps, after as many that are not counted; None where a step would begin after `until`."""
    rates: list[float] = []
    short = recipe.model_copy(update={"epochs": float(ROUNDS), "batch_size": batch, "lora": None, "early_sizes": ()})

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        if time.monotonic() > until:
            raise TimeIsUp
        return nn.functional.cross_entropy(outputs.float(), batch.labels.clamp_min(0))

    subset = inputs.data.train.subset(torch.arange(min(len(inputs.data.train), steps * batch)))
    few = viewed(subset, normalisation_of(inputs.data.info), config.views, config.seed, inputs.device.device)
    try:
        fit(network, few, loss, short, inputs.device, seed=0, on_epoch=lambda done, epochs, rate, mean: rates.append(rate))
    except TimeIsUp:
        return None
    return 1.0 / rates[-1]


def dense_of(space: Space, config: Config, info: DataInfo) -> list[Dense]:
    """Every unpruned network; each is built and let go, as many may be large."""
    found = []
    for name, width in pairs(space):
        network = build_network(name, width, config.teacher, info)
        weights = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
        found.append(Dense(name, width, count_macs(network, info.shape), weights))
    return found


def pairs(space: Space) -> list[tuple[str, float]]:
    """(student, width) of every parent."""
    names, widths = options(space.student.name), options(space.student.width)
    return [(name, width) for name in names for width in (widths if name != SELF else (1.0,))]


def whole_epochs(recipe: TrainConfig, side: int) -> float:
    """Epochs on images of `side` pixels that take as long as the recipe's: the time of a step goes with the pixels."""
    share, before = 0.0, 0.0
    for size, until in recipe.early_sizes:
        share, before = share + (until - before) * min(1.0, size / side) ** 2, until
    return recipe.epochs * (share + 1.0 - before)
