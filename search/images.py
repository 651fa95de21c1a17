"""Which images a study may begin with, checked before torch is imported: the folder or archive, and what goes without labels."""

from __future__ import annotations

from collections.abc import Sequence

from core.candidate import SELF
from core.config import Config, TeacherConfig
from core.data import DATASETS
from core.errors import UserError
from core.methods import METHODS, method_of
from core.tables import lookup
from search.space import Space, options

FROM_FOLDER = ("folder", "unlabelled", "imagenet", "cub200")
"""Sets that are nowhere but where the user has them."""
OWN_WORDS = ("cifar10", "cifar100")
"""Sets whose loaders say themselves what may lie in the folder: an archive, its files, or nothing yet."""


def check_images(space: Space, config: Config) -> None:
    """Raises UserError for a set that is not known or not there, and for whatever needs labels where there are none."""
    data = config.data
    lookup(DATASETS, "data set", data.name)
    if data.name in FROM_FOLDER and data.dir is None:
        raise UserError(f"the data set {data.name!r} needs a folder, but none is named; give --data-dir FOLDER")
    archive = data.name == "cub200" and data.dir is not None and data.dir.is_file()
    if data.name not in OWN_WORDS and data.dir is not None and not data.dir.is_dir() and not archive:
        raise UserError(f"--data-dir must be a folder of images, but {data.dir} is {'a file' if data.dir.exists() else 'missing'}")
    if data.name == "unlabelled":
        _check_unlabelled(space, config)
    elif data.classes is not None:
        raise UserError(f"data.classes is for images without labels, but {data.name!r} has its own classes; leave it out")


def _check_unlabelled(space: Space, config: Config) -> None:
    """Without labels the teachers alone teach and judge, so they must be trained, and known in full."""
    if config.data.classes is None:
        raise UserError("unlabelled images do not say how many classes the teacher tells apart; set data.classes=10, or what it has")
    for teacher in config.teachers:
        _check_teacher(teacher)
    stages: list[tuple[str, Sequence[str], object]] = [("distil", options(space.distil.loss), space.distil.ce_weight)]
    if set(options(space.student.name)) != {SELF}:  # which is its own parent
        stages.append(("parent.distil", [config.parent.distil.loss], config.parent.distil.ce_weight))
    free = ", ".join(name for name, method in METHODS.items() if not method.labels)
    for key, losses, ce_weight in stages:
        if found := [name for name in losses if method_of(name).labels]:
            raise UserError(f"unlabelled images go with losses that ask for no label ({free}), but {key}.loss may be {found[0]}; change it")
        if ce_weight != 0:
            stated = "as published" if ce_weight is None else ce_weight
            raise UserError(f"unlabelled images have no cross-entropy, but {key}.ce_weight is {stated}; set it to 0")


def _check_teacher(teacher: TeacherConfig) -> None:
    name = teacher.model or teacher.name
    if teacher.weights is None and not teacher.pretrained:
        raise UserError(f"unlabelled images take a teacher that is trained, but {name} has no weights; give --weights FILE")
    if teacher.train.lora is not None:
        raise UserError(f"unlabelled images cannot train the teacher, but teacher.train.lora of {name} is set; leave it out")
    if not teacher.pretrained and (teacher.mean is None or teacher.std is None):
        raise UserError(
            f"unlabelled images do not tell how those of {name} were normalised; set teacher.mean and teacher.std, one value a channel"
        )
