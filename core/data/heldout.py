"""The only door to the test split: for the export and refinement of finalists, never for a choice (docs/architecture.md, decision 7)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core.config import DataConfig
    from core.data.types import Images


def load_test_data(config: DataConfig, cache_dir: Path) -> Images:
    """Test split of the set `config.name`: its own, else the `test_fraction` that `load_search_data` leaves out with the same config."""
    from core.data.splits import load_raw, split_test

    return split_test(load_raw(config, cache_dir), config)
