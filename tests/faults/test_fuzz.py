"""Mutated input is refused in one line (`make faults` tries 500)."""

from __future__ import annotations

from pathlib import Path

from tests.core.bundle_samples import make_bundle
from tests.faults.fuzz import fuzz, is_fine, make_study


def test_mutated_input_of_every_kind_ends_in_one_line_or_in_success(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    rows = fuzz(tmp_path / "work", 72, seed=1, bundle=make_bundle(tmp_path / "sample"), study=make_study(tmp_path / "told"))
    assert [row for row in rows if not is_fine(row)] == []
    for kind in ("bundle", "candidate", "record"):
        assert {row["code"] for row in rows if row["kind"] == kind} == {0, 2}, kind
    for kind in ("space", "config"):
        assert {row["read"] for row in rows if row["kind"] == kind} == {False, True}, kind
