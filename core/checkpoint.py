"""A training that was interrupted goes on from its last epoch: everything it needs for that in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import torch

SUFFIX = ".part"
"""Of files that go when their training is done, or will never be."""


class Stateful(Protocol):
    """A model, an optimiser, a scheduler ..."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state_dict: Any, /) -> Any: ...


def keep(path: Path | None, step: int, parts: Mapping[str, Stateful]) -> None:
    """Write what `parts` are after `step` steps, and the state of torch's generator; never half a file. Nothing where `path` is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    states = {name: part.state_dict() for name, part in parts.items()}
    whole = path.with_name(f"{path.name}.{uuid4().hex}{SUFFIX}")
    torch.save({"step": step, "generator": torch.get_rng_state(), **states}, whole)
    whole.replace(path)


def resume(path: Path | None, parts: Mapping[str, Stateful]) -> int:
    """Bring `parts` back to where an interrupted training of the same kind left them; the steps that were done, 0 without a file."""
    if path is None or not path.exists():
        return 0
    kept = torch.load(path, map_location="cpu", weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(kept[name])
    torch.set_rng_state(kept["generator"])
    return int(kept["step"])


def forget(folder: Path) -> None:
    """Remove the checkpoints in `folder`."""
    for path in folder.glob(f"*{SUFFIX}"):
        path.unlink(missing_ok=True)
