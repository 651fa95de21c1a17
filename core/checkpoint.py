"""A training that was interrupted goes on from its last epoch: everything it needs for that in one file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from core.files import write_atomically
from core.students.own import DAMAGED

SUFFIX = ".part"
"""Of files that go when their training is done, or will never be."""
MADE_BY = "made_by"
"""Key of the digest of recipe, seed, loss and data in such a file."""


class Stateful(Protocol):
    """A model, an optimiser, a scheduler ..."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


class Generators:
    """torch's own random generators, of the CPU and of the training `device`: dropout draws from the latter."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def state_dict(self) -> dict[str, torch.Tensor]:
        states = {"cpu": torch.get_rng_state()}
        return states | ({"cuda": torch.cuda.get_rng_state(self.device)} if self.device.type == "cuda" else {})

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor], /) -> None:
        torch.set_rng_state(state_dict["cpu"])
        if self.device.type == "cuda" and "cuda" in state_dict:  # a training may go on elsewhere
            torch.cuda.set_rng_state(state_dict["cuda"], self.device)


def keep(path: Path | None, step: int, parts: Mapping[str, Stateful], made_by: str) -> None:
    """Write what `parts` are after `step` steps of the training that `made_by` names; never half a file. Nothing where `path` is None.

    Raises DiskRefused when the disk refuses.
    """
    if path is None:
        return
    states = {name: part.state_dict() for name, part in parts.items()}
    content = io.BytesIO()  # where a disk refuses, torch says so in a RuntimeError of its own
    torch.save({"step": step, MADE_BY: made_by, **states}, content)
    write_atomically(path, content.getvalue())


def resume(path: Path | None, parts: Mapping[str, Stateful], made_by: str) -> int:
    """Bring `parts` back to where an interrupted training, named `made_by`, left them; the steps that were done, 0 without a file.

    A file that is damaged, of another training, or of a version with other parts, is removed and counts as none.
    """
    if path is None or not path.exists():
        return 0
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED:
        path.unlink(missing_ok=True)
        return 0
    if kept.keys() != {"step", MADE_BY, *parts} or kept[MADE_BY] != made_by:
        path.unlink(missing_ok=True)
        return 0
    for name, part in parts.items():
        part.load_state_dict(kept[name])
    return int(kept["step"])


def forget(folder: Path) -> None:
    """Remove the checkpoints in `folder`."""
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)
