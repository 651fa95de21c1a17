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
from core.runtimes import check_precision, installed_runtime, resolve_runtime
from core.teacher import build_teacher_network, load_given_weights
from core.train import Device, open_device

NEEDED_MB = 200
"""Decoded images, kept logits, candidates: tens of MB each on small-image data."""


@dataclass(frozen=True)
class Inputs:
    """What the user gave, loaded."""

    device: Device
    data: SearchData
    teacher: nn.Module


def load_inputs(config: Config, cache: Path) -> Inputs:
    """Device, data, and the teacher with the weights given. Raises UserError for the first thing that would stop a run."""
    check_disk(Path())
    check_precision(installed_runtime(resolve_runtime(config.runtime.name)), config.runtime.precision)
    device = open_device(config.hardware)
    data = load_search_data(config.data, cache)
    teacher = build_teacher_network(config.teacher, data.info)
    if config.teacher.weights:
        load_given_weights(teacher, config.teacher, config.teacher.weights)
    return Inputs(device, data, teacher)


def check_disk(folder: Path) -> None:
    """Raises UserError where a run would soon fill the disk."""
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < NEEDED_MB:
        raise UserError(f"a run needs {NEEDED_MB} MB of free disk, but {folder.resolve()} has {free_mb:.0f}; free some, or run elsewhere")
