"""A folder of images that nobody labelled, flat or nested: a teacher's answers are all there is to learn from and to be judged by."""

from __future__ import annotations

from pathlib import Path

import torch

from core.config import DataConfig
from core.data.folder import load_listing
from core.data.listing import list_unlabelled
from core.data.types import RawData
from core.errors import UserError


def load_unlabelled(config: DataConfig, cache_dir: Path) -> RawData:
    """Every image below `config.dir` with label -1, and as many numbered classes as `config.classes` says that the teacher has.

    Raises UserError where either is missing, and as `load_folder` for images.
    """
    if config.dir is None or config.classes is None:
        raise UserError(
            "unlabelled images need their folder and the number of the teacher's classes,"
            f" but data.dir is {config.dir} and data.classes is {config.classes}; give --data-dir FOLDER and set data.classes=10"
        )
    raw = load_listing(list_unlabelled(config.dir), config, cache_dir)
    nobody_knows = torch.full_like(raw.train.labels, -1)
    return RawData(raw.train.labelled(nobody_knows), None, tuple(f"class {number}" for number in range(config.classes)), labelled=False)
