"""What every test process shares with the others on its machine, and what every test finds."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile("any speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any speed")  # a busy or slow machine fails no law

FIRST = (
    *("faults/test_kills.py", "docs/test_tutorial.py", "docs/test_walk.py", "docs/test_recipes.py", "search/test_workers.py"),
    *("search/test_methods.py", "search/test_export_best.py", "search/test_resume.py", "search/test_bad_input.py"),
)
"""Files of few long tests: two workers that take one file after the other end together when these come first."""
LAST = ("results/", "contracts/")
"""Many short tests."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order of files; within a file the order stays."""

    def place(item: pytest.Item) -> int:
        name = item.path.as_posix().partition("/tests/")[2]
        return FIRST.index(name) if name in FIRST else len(FIRST) + name.startswith(LAST)

    items.sort(key=place)


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
