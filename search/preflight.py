"""What must hold before the first expensive minute, checked without training, measuring or touching a study."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from core.config import Config
from core.data import load_search_data
from core.data.types import SearchData
from core.errors import UserError
from core.runtimes import building_runtime, check_precision, on_grid, running_runtime
from core.start import load_start
from core.teacher import build_teacher_network
from core.train import Device, open_device
from search.methods import check_answers
from search.space import Space

NEEDED_MB = 200
"""Decoded images, candidates: tens of MB each on small-image data. Kept logits are counted apart (`check_answers`)."""


@dataclass(frozen=True)
class Inputs:
    """What the user gave, loaded."""

    device: Device
    data: SearchData
    teachers: tuple[nn.Module, ...]


def load_inputs(space: Space, config: Config, cache: Path) -> Inputs:
    """Device, data, and the teachers with the weights given. Raises UserError for the first thing that would stop a run."""
    check_disk(Path())
    if config.runtime.agent is None:  # an agent's runtimes are checked when the engine host asks it
        name, targets = config.runtime.name, config.runtime.build_for
        runtime = building_runtime(name, targets) if targets else running_runtime(name)
        check_precision(runtime, config.runtime.precision)
        if config.runtime.activation_grid != "auto":
            on_grid(runtime, config.runtime.activation_grid)
    device = open_device(config.hardware)
    data = load_search_data(config.data, cache)
    check_answers(space, config, data.info, len(data.train), cache)
    teachers = tuple(build_teacher_network(each, data.info) for each in config.teachers)
    for teacher, each in zip(teachers, config.teachers, strict=True):
        load_start(teacher, each, data.info.channels)
    return Inputs(device, data, teachers)


def check_disk(folder: Path) -> None:
    """Raises UserError where a run would soon fill the disk."""
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < NEEDED_MB:
        raise UserError(f"a run needs {NEEDED_MB} MB of free disk, but {folder.resolve()} has {free_mb:.0f}; free some, or run elsewhere")
