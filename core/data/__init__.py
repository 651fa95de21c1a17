"""Image sets, resident or streamed, split three ways (docs/architecture.md, decision 7). The test split is behind core/data/heldout.py.

Importing this package imports no torch: what needs it is imported inside the functions, since every command passes here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.config import DataConfig
    from core.data.types import RawData, SearchData


def _digits(config: DataConfig, cache_dir: Path) -> RawData:
    from core.data.digits import load_digits

    return load_digits(config, cache_dir)


def _cifar10(config: DataConfig, cache_dir: Path) -> RawData:
    from core.data.cifar import CIFAR10, load_cifar

    return load_cifar(CIFAR10, config, cache_dir)


def _cifar100(config: DataConfig, cache_dir: Path) -> RawData:
    from core.data.cifar import CIFAR100, load_cifar

    return load_cifar(CIFAR100, config, cache_dir)


def _cub200(config: DataConfig, cache_dir: Path) -> RawData:
    from core.data.cub import load_cub200

    return load_cub200(config, cache_dir)


def _imagenet(config: DataConfig, cache_dir: Path) -> RawData:
    from core.data.imagenet import load_imagenet

    return load_imagenet(config, cache_dir)


def _folder(config: DataConfig, cache_dir: Path) -> RawData:
    from core.data.folder import load_folder

    return load_folder(config, cache_dir)


def _unlabelled(config: DataConfig, cache_dir: Path) -> RawData:
    from core.data.unlabelled import load_unlabelled

    return load_unlabelled(config, cache_dir)


DATASETS: dict[str, Callable[[DataConfig, Path], RawData]] = {
    "digits": _digits,
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "cub200": _cub200,
    "imagenet": _imagenet,
    "folder": _folder,
    "unlabelled": _unlabelled,
}
"""Name -> loader of all images of a set. It honours `dir`, `image_size`, `channels` and `skip_bad`; limits and splits are applied later."""


def load_search_data(config: DataConfig, cache_dir: Path) -> SearchData:
    """Training and search split of the set `config.name`, by `config.seed`; never a test image.

    `cache_dir` holds decoded image folders and may be missing. Raises UserError for anything wrong with the user's data.
    """
    from core.data.splits import load_raw, split_search

    return split_search(load_raw(config, cache_dir), config)
