"""A table of table_search.py, read, and what a search of it has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from benchmarks.table_search import record_of
from core.yaml_io import parse
from results.analysis import hypervolume, logarithmic, reference_of
from results.front import Point, objectives
from results.record import TeacherReport, TrialRecord
from search.space import Space


@dataclass(frozen=True)
class Table:
    """A recorded table: records numbered by their place in it. `parents`: seconds that a parent's training took."""

    rows: tuple[TrialRecord, ...]
    teacher: TeacherReport
    reference: Point
    parents: Mapping[str, float]


def read_table(content: Mapping[str, Any], classes: int) -> Table:
    """From the JSON of table_search.py. A parent that several studies have trained counts once, with its mean."""
    teacher = TeacherReport.model_validate(content["facts"]["teacher"])
    rows = tuple(record_of(row, number) for number, row in enumerate(content["rows"]))
    told = [study["parent_seconds"] for study in content["studies"].values()]
    names = sorted({name for each in told for name in each})
    parents = {name: mean(each[name] for each in told if name in each) for name in names}
    return Table(rows, teacher, reference_of(teacher, classes), parents)


def space_of(content: Mapping[str, Any]) -> Space:
    """What the rows were drawn from."""
    return parse(Space, content["shared"]["space"], "the table's space")


def volume(records: Sequence[TrialRecord], reference: Point) -> float:
    """Hypervolume of what was found."""
    return hypervolume([logarithmic(objectives(record)) for record in records], reference)
