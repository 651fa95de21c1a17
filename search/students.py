"""Whether the students of a space can be compressed at all, asked before the teacher trains."""

from __future__ import annotations

from core.candidate import SELF
from core.cli import required
from core.compress import check_compressible, check_prunable
from core.config import Config
from core.data.types import DataInfo
from core.errors import UserError
from core.layers import layer_infos
from core.students.zoo import in_zoo
from core.teacher import build_network
from search.space import Space, options

ENDLESS = ("swin",)
"""Starts of names on whose shifted windows Torch-Pruning 1.6.1 had not finished after nine minutes."""


def is_endless(name: str) -> bool:
    """Whether pruning the network `library:name` does not come to an end."""
    return name.partition(":")[2].startswith(ENDLESS)


def check_students(space: Space, config: Config, info: DataInfo) -> None:
    """Raises UserError for the first student, among `self` and those of a library, that cannot be planned, or cut where ratios ask it.

    And for one with more layers than `per_layer` has positions.
    """
    cut = any(options(space.prune.ratio))
    if space.allocation.strategy == "per_layer":
        check_positions(space, config, info)
    for name in options(space.student.name):
        source = config.teacher.name if name == SELF and config.teacher.model is None else name
        if name != SELF and not in_zoo(name):
            continue
        model = build_network(name, 1.0, config.teacher, info).eval()
        if source == SELF:
            check_compressible(model, info.shape)
            continue
        try:
            check_compressible(model, info.shape)
            if cut and is_endless(source):
                raise UserError("Torch-Pruning does not come to an end on it; set prune.ratio to 0")
            if cut:
                with required("half of its channels must be removable, or prune.ratio 0"):
                    check_prunable(model, info.shape)
        except UserError as error:
            raise UserError(f"{source} can be a teacher but no student of this space: {error}") from error


def check_positions(space: Space, config: Config, info: DataInfo) -> None:
    """Raises UserError unless every layer of every student has a position."""
    for name in options(space.student.name):
        layers = len(layer_infos(build_network(name, 1.0, config.teacher, info), info.shape))
        if layers > space.quantise.positions:
            raise UserError(
                f"allocation per_layer takes a position for every layer, but {name} has {layers} and quantise.positions is "
                f"{space.quantise.positions}; set quantise.positions to {layers}"
            )
