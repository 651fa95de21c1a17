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


@pytest.fixture(autouse=True)
def _denormals() -> Iterator[None]:
    """An engine in this process may have switched them off for the whole thread."""
    yield
    torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def _no_handler_of_child_exits() -> Iterator[None]:
    """A DataLoader with workers leaves a handler of SIGCHLD behind.

    Hundreds of tests later the kernel ended this process with SIGSEGV (SI_KERNEL) as the signal was delivered: seen with torch 2.15 and
    openvino 2026.4 in one process, in two of three orders of the test files; the cause is not found.
    """
    yield
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
