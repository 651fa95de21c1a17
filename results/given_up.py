"""Trials that ended early: the kinds of them, the sign of each kind in the figures, and all that is known of one."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from core.candidate import KB
from results.plots import genes
from results.record import Ending, TrialRecord
from results.table import student_name


class Kind(NamedTuple):
    """How trials of a kind are named and drawn."""

    name: str
    flat: str
    """Plotly's symbol in a plane: on an axis line an upright cross would be lost."""
    solid: str
    """Its symbol in 3-D, where there are eight. They are letters of a font, and few fonts have the one for "x"."""


FAILED = Kind("failed", "x-thin", "cross")
KINDS: dict[Ending | None, Kind] = {
    "skipped": Kind("skipped", "x-thin", "cross"),
    "stopped": Kind("stopped", "square-open", "square-open"),
    "limit": Kind("beyond a limit", "diamond-open", "diamond-open"),
    "reused": Kind("same as one given up", "circle-open", "circle-open"),
    None: Kind("pruned", "square", "square"),  # studies of an earlier version do not say which
}


def given_up(records: Sequence[TrialRecord]) -> list[tuple[Kind, list[TrialRecord]]]:
    """The kinds of pruned trials that occur, each with its trials in the order of `records`."""
    pruned = [record for record in records if record.state == "PRUNED"]
    found = [(kind, [record for record in pruned if record.ending == ending]) for ending, kind in KINDS.items()]
    return [(kind, members) for kind, members in found if members]


def last_accuracy(record: TrialRecord) -> float | None:
    """In [0, 1]: measured, also where a limit of accuracy was then missed, else of the last rung; None where nobody looked."""
    point = record.reached
    if point is not None:
        return point.accuracy
    return record.rungs[-1].accuracy if record.rungs else None


def why(record: TrialRecord, quality: str = "accuracy") -> str:
    """Everything known of a pruned or failed trial, and why it ended, in plotly's HTML."""
    kind = FAILED if record.state == "FAIL" else KINDS[record.ending]
    known = [] if record.size_bytes is None else [f"size {record.size_bytes / KB:.1f} KB"]
    known += [] if record.latency_ms is None else [f"latency {record.latency_ms:.3f} ms"]
    known += [] if record.mean_bits is None else [f"mean bits {record.mean_bits:.2f}"]
    who = f" · {escape(student_name(record))}" if record.student else ""
    lines = [
        f"<b>{kind.name}</b> · trial {record.number}{who}",
        _accuracy(record, quality),
        *([" · ".join(known)] if known else []),
        *(genes(record.candidate) if record.candidate else ()),
        *(escape(line) for line in textwrap.wrap(f"why: {record.reason or 'no reason given'}", 70)),
    ]
    return "<br>".join(lines)


def _accuracy(record: TrialRecord, quality: str) -> str:
    value = last_accuracy(record)
    if value is None:
        return f"no {quality}: the trial ended before one was measured"
    point = record.reached
    if point is not None:
        return f"{quality} {100 * value:.2f} % of {point.images} images"
    rung = record.rungs[-1]
    return f"{quality} last seen {100 * value:.2f} %, {escape(rung.when)}"
