"""A plugin whose student ends its own process as the kernel does when memory runs out; $DEATHS_LEFT names a file with how often."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from core.students import STUDENTS
from core.tables import register
from tests.search.studies import Dot


class Hungry(Dot):
    """Dies at its first training step in a worker, as long as deaths are left."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As Dot's."""
        if self.training and (left := int(Path(os.environ["DEATHS_LEFT"]).read_text())):
            Path(os.environ["DEATHS_LEFT"]).write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


def hungry(**options: Any) -> Hungry:
    """The table's entry."""
    return Hungry(**options)


register(STUDENTS, "dot", Dot)
register(STUDENTS, "hungry", hungry)
