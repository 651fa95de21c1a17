"""Extension tables, and files that are whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.candidate import Candidate, GroupPlan, fingerprint
from core.errors import UserError
from core.files import write_atomically
from core.tables import lookup, nearest, register


def test_an_entry_is_found_by_its_name() -> None:
    assert lookup({"kd": 1, "dkd": 2}, "loss", "dkd") == 2


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(UserError, match=r"^unknown loss 'kdd', did you mean 'dkd'\?; known: ce, dkd$"):
        lookup({"dkd": 1, "ce": 2}, "loss", "kdd")
    with pytest.raises(UserError, match=r"^unknown loss 'zzzz'; known: ce, dkd$"):
        lookup({"dkd": 1, "ce": 2}, "loss", "zzzz")


def test_nothing_near_is_no_suggestion() -> None:
    assert nearest("latency", ["bits"]) == ""


def test_a_new_name_is_added_and_a_taken_one_refused() -> None:
    table = {"kd": print}
    register(table, "mine", len)
    assert lookup(table, "loss", "mine") is len
    with pytest.raises(UserError, match="the name 'kd' is taken"):
        register(table, "kd", len)
    assert table["kd"] is print


def test_a_file_is_written_with_its_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    path = write_atomically(tmp_path / "a" / "b.txt", "grün")
    assert path.read_bytes() == "grün".encode()
    assert write_atomically(path, b"new").read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["b.txt"]


def test_equal_values_have_equal_fingerprints_whatever_they_were_made_of() -> None:
    first = Candidate(student="resnet8", groups=(GroupPlan(weight_bits=4),))
    second = Candidate.model_validate_json(first.model_dump_json())
    assert fingerprint(first, {"a": 1, "b": 2}) == fingerprint(second, {"b": 2, "a": 1})
    assert fingerprint(first) != fingerprint(first.model_copy(update={"width": 0.5}))
    assert len(fingerprint(first)) == 16
