"""What every test process shares with the others on its machine, and what every test finds."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # two cores are shared by everything
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    # a job in the background of a script ignores SIGINT, and so would its children
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """An engine in this process may have switched them off for the whole thread."""
    yield
    torch.set_flush_denormal(False)
