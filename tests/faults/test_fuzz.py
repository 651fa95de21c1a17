"""Mutated input is refused in one line (`make faults` tries 500)."""

from __future__ import annotations

from pathlib import Path

from tests.core.bundle_samples import make_bundle
from tests.faults.fuzz import fuzz, is_fine


def test_mutated_spaces_configurations_and_bundles_end_in_one_line_or_in_success(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    rows = fuzz(tmp_path / "work", 60, seed=1, bundle=make_bundle(tmp_path / "sample"))
    assert [row for row in rows if not is_fine(row)] == []
    assert {row["code"] for row in rows if row["kind"] == "bundle"} == {0, 2}
