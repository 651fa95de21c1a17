"""Tables that are made row by row: what is finished is kept, what fails is tried again, shards share what is dear."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rows import Table
from core.errors import TrainingDiverged, UserError


@dataclass(frozen=True)
class Plain:
    group: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.group}:{self.number}"


ROWS = tuple(Plain(group, number) for group in "abc" for number in range(2))
BAD = {"b:0"}


@contextmanager
def opened(args: argparse.Namespace) -> Iterator[set[str]]:
    yield args.bad


def made(row: Plain, bad: set[str]) -> dict[str, Any]:
    if row.name in bad:
        raise TrainingDiverged("the loss must stay finite, but is nan")
    return {"row": row.name, "test_accuracy": 0.5, "seconds": 1.0}


TABLE = Table(ROWS, "group:number", opened, lambda bad: {"same": 1}, made, json.dumps, together=lambda row: row.group)


def test_what_is_not_compared_may_stand_on_another_teacher_and_what_is_may_not(tmp_path: Path) -> None:
    facts, asked = {"teacher": 1, "data": 1}, []

    def make(row: Plain, bad: set[str]) -> dict[str, Any]:
        asked.append(row.name)
        return made(row, bad)

    table = Table(ROWS, "group:number", opened, lambda bad: dict(facts), make, json.dumps, together=lambda row: row.group, own=("teacher",))

    def run_rows(names: str) -> dict[str, Any]:
        table.run(argparse.Namespace(rows=names, shard="0/1", markdown=False, out=tmp_path / "t.json", bad=set()))
        content: dict[str, Any] = json.loads((tmp_path / "t.json").read_text())
        return content

    run_rows("a:0")
    facts["teacher"] = 2
    content = run_rows("b:0")
    assert (content["data"], content["together"]) == (1, {"a": {"teacher": 1}, "b": {"teacher": 2}})
    made_before = len(asked)
    with pytest.raises(UserError, match="has another teacher"):
        run_rows("b:1,a:1")
    assert len(asked) == made_before  # it is said before anything is made
    (tmp_path / "t.json").write_text(json.dumps(content | {"rows": [row for row in content["rows"] if row["row"] != "a:0"]}))
    assert run_rows("a:1")["together"]["a"] == {"teacher": 2}  # what has no rows binds nobody
    facts["data"] = 2
    with pytest.raises(UserError, match="has another data"):
        run_rows("b:1")


def run(out: Path, bad: set[str]) -> dict[str, Any]:
    TABLE.run(argparse.Namespace(rows=None, shard="0/1", markdown=False, out=out, bad=bad))
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def test_a_row_that_fails_ends_no_other_and_is_tried_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path / "t.json", BAD)
    assert [row["row"] for row in first["rows"]] == [row.name for row in ROWS if row.name not in BAD]
    assert first["failed"] == {"b:0": "TrainingDiverged: the loss must stay finite, but is nan"}
    assert "b:0: failed: the loss must stay finite" in capsys.readouterr().out
    second = run(tmp_path / "t.json", set())
    assert [row["row"] for row in second["rows"]] == [row.name for row in ROWS]
    assert "failed" not in second


def test_rows_that_share_something_dear_are_of_one_shard() -> None:
    shards = [TABLE.choose(None, f"{index}/2") for index in range(2)]
    assert [{row.group for row in shard} for shard in shards] == [{"a", "c"}, {"b"}]
    assert sorted(row.name for shard in shards for row in shard) == sorted(row.name for row in ROWS)
