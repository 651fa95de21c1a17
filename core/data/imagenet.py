"""ImageNet (ILSVRC 2012), always streamed: train/<wnid>/*.JPEG, and val/<wnid>/*.JPEG or val/*.JPEG with the labels of its devkit.

References: O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", 2015; https://www.image-net.org
"""

from __future__ import annotations

import pickle
from pathlib import Path

from core.config import DataConfig
from core.data.folder import streamed
from core.data.listing import Entry, Listing, list_images, list_unlabelled, require_images
from core.data.types import RawData
from core.errors import UserError, one_line

IMAGE_SIZE = 224
META = "meta.bin"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
LAYOUT = f"train/<wnid>/*.JPEG and val/<wnid>/*.JPEG, or val/*.JPEG beside {META} or {DEVKIT}"


def load_imagenet(config: DataConfig, cache_dir: Path) -> RawData:
    """Files of the training and the validation images, which are the test split; 224 pixels unless `config.image_size` says otherwise.

    The search split is held out of the training images. A class is called by its WordNet id.
    """
    if config.dir is None:
        raise UserError("the data set 'imagenet' needs its folder, but none is named; give --data-dir FOLDER")
    listing = list_imagenet(config.dir)
    return streamed(listing, config, cache_dir, config.image_size or IMAGE_SIZE, config.channels or 3)


def list_imagenet(root: Path) -> Listing:
    """All images by class. Raises UserError for every other layout."""
    for name in ("train", "val"):
        if not (root / name).is_dir():
            raise UserError(f"ImageNet must hold {LAYOUT}, but {root / name} is missing; name the folder that has them")
    if any(path.is_dir() for path in (root / "val").iterdir()):
        return list_images(root, ("val",))  # a folder test/ holds images without labels
    train = list_images(root / "train")
    moved = tuple(entry._replace(path=f"train/{entry.path}") for entry in train.train)
    return Listing(root, train.classes, moved, _flat(root, train.classes))


def _flat(root: Path, classes: tuple[str, ...]) -> tuple[Entry, ...]:
    """The validation images, whose classes the devkit lists in the order of their names."""
    files = list_unlabelled(root / "val").train
    wnids = _devkit_labels(root)
    numbers = {name: number for number, name in enumerate(classes)}
    if len(wnids) != len(files):
        raise UserError(f"val must hold the {len(wnids)} images that {META} has labels for, but {root / 'val'} has {len(files)}; mend it")
    if unknown := sorted({*wnids} - {*classes}):
        raise UserError(f"train and val must have the same classes, but {root / 'train'} has no folder {unknown[0]}; add it")
    entries = (entry._replace(path=f"val/{entry.path}", label=numbers[wnid]) for entry, wnid in zip(files, wnids, strict=True))
    found = tuple(sorted(entries, key=lambda entry: (entry.label, entry.path)))
    require_images(found, classes, root / "val")
    return found


def _devkit_labels(root: Path) -> list[str]:
    """WordNet id of every validation image, from the file that torchvision makes of the devkit."""
    import torch
    from torchvision.datasets.imagenet import parse_devkit_archive

    try:
        if not (root / META).is_file():
            parse_devkit_archive(root)  # compares the MD5
        _, wnids = torch.load(root / META, weights_only=True)
        return [str(wnid) for wnid in wnids]
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = one_line(error, 200)
        raise UserError(
            f"flat validation images need their labels, but {root / META} cannot be read or made ({reason}); put {DEVKIT} into {root},"
            " or sort val/ into folders"
        ) from error
