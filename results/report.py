"""The report of a study: one web page that needs no network, the same as Markdown, and a CSV line per trial."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.candidate import KB
from core.files import write_atomically
from results import report_front, report_models, report_search, report_text
from results.analysis import MIN_TRIALS, hypervolume_of, importances, reference_point
from results.choices import COLUMNS, columns
from results.given_up import given_up
from results.record import TrialRecord
from results.report_text import Table
from results.table import CSV_COLUMNS, csv_row, mean_bits
from results.view import StudyView

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Section(NamedTuple):
    """One part of the report. What it cannot show, its text says in a sentence."""

    title: str
    text: str
    """Plain; a line is a paragraph."""
    figures: tuple[go.Figure, ...] = ()
    table: Table | None = None
    folded: bool = False
    """A long table that a reader opens."""


def write_report(view: StudyView, folder: Path) -> list[Path]:
    """Write report.html, report.md and report.csv into `folder`; their paths."""
    from results.report_page import page  # late: it holds the whole of plotly's script

    built = sections(view)
    return [
        write_atomically(folder / "report.html", page(view, built)),
        write_atomically(folder / "report.md", as_markdown(view, built)),
        write_atomically(folder / "report.csv", as_csv(view)),
    ]


def sections(view: StudyView) -> list[Section]:
    """All sections, in order."""
    return [build(view) for build in SECTIONS]


def _chosen(view: StudyView) -> Section:
    title = "Teacher and chosen models"
    if not view.front:
        return Section(title, "No trial is complete yet, so there is no model to show: search on with more --trials.")
    known = "" if view.teacher else " The teacher's numbers are missing: run.json of this study is not there."
    table = report_text.chosen(view, reference_point(view))
    together = "accuracy, size and latency" if view.timed else "accuracy and size"
    balanced = f" The balanced one gains most over the teacher when {together} count together."
    text = (
        f"Which model is best depends on what you can spend.{balanced if any('balanced' in row[0] for row in table.rows) else ''} "
        f"Higher is better for {view.quality}, lower for KB and ms.{known}"
    )
    return Section(title, text, table=table)


def _front(view: StudyView) -> Section:
    if not view.front:
        return Section("The front", "There is no complete trial to draw.")
    shown = (
        "Every circle is a model of the front; its number is the rank. Grey dots are models that another one beats. "
        f"{_signs(view)}{'The star is the teacher. ' if view.teacher is not None else ''}"
    )
    if not view.timed:
        text = f"{shown}Better is up and to the left. There is no latency: engines were only built, for GPUs that are not here."
        return Section("The front", text, (report_front.planes(view, report_front.PLANES[:1]),))
    text = (
        f"{shown}Better is up and to the left in the first two planes, down and to the left in the third; latencies carry their 95 % "
        "intervals. Point at a model to see all that is known of it. Below, all three objectives in one picture: turn it with the mouse."
    )
    return Section("The front", text, (report_front.planes(view), report_front.cube(view)))


def _signs(view: StudyView) -> str:
    """What the signs of given-up trials say; nothing where there are none."""
    if not given_up(view.records):
        return ""
    return (
        "Pale signs are trials that were given up: skipped before training, stopped in the first half of training (at "
        "the accuracy last seen), or beyond a limit. Those without an accuracy stand on the base line; pointing at one says why it ended. "
    )


def _ranks(view: StudyView) -> Section:
    if not view.front:
        return Section("All models of the front", "There are none yet.")
    return Section(
        "All models of the front",
        f"Write any of them as a folder that runs: {report_text.command(view, 'export_best')} --rank R.",
        table=report_text.whole_front(view),
    )


def _growth(view: StudyView) -> Section:
    title = "How the search went on"
    numbers, volumes = hypervolume_of(view)
    if not numbers:
        lacking = "no complete trial" if not view.front else "no teacher or no exported teacher model to measure from"
        damage = f" ({view.damaged[None]})" if view.front and None in view.damaged else ""
        return Section(title, f"The hypervolume is left out: there is {lacking}{damage}.")
    text = (
        "The hypervolume is one number for a whole front: the room between it and a fixed corner, here the error of guessing, the "
        f"teacher's bytes{' and ms, with size and latency' if view.timed else ', with size'} counted in halvings. It grows whenever the "
        "front gets better; when it has been flat for long, more trials will add little. Signs on the base line are trials that were given "
        "up or failed. On the right it stands over the minutes that trials took, added up in the order of their numbers: where several "
        "workers searched at once, the clock showed less."
    )
    return Section(
        title,
        f"{text} It stands at {volumes[-1]:.3f} after {len(numbers)} distinct models.",
        (report_search.growth(view, numbers, volumes),),
    )


def _parallel(view: StudyView) -> Section:
    title = "From choices to results"
    if not any(record.candidate for record in view.front):
        return Section(title, "Left out: there is no complete trial to draw.")
    text = (
        "A line is a model, from its choices on the left to its results on the right; coloured lines are on the front. Drag along an axis "
        "to keep only the models in that range."
    )
    return Section(title, text, (report_search.parallel(view),))


def _importance(view: StudyView) -> Section:
    title = "What mattered"
    shares = importances(view)
    if not shares:
        return Section(
            title,
            f"Left out: importances need at least {MIN_TRIALS} distinct complete trials that differ, and there are {len(view.trials)}.",
        )
    text = (
        f"For each objective, the share of its variation over {len(view.trials)} models that a choice explains (fANOVA). bits_i, exec_i "
        "and ratio_i are the bits, the execution and the share of channels removed at depth position i. What "
        f"cannot change an objective is left out there: {_idle(view)}. With few trials, small shares are noise."
    )
    return Section(title, text, (report_search.importance(shares),))


def _idle(view: StudyView) -> str:
    """In words what `decides` says."""
    costs = [*([] if view.coded else ["size"]), *(["latency"] if view.timed else [])]
    bits = ["bits up to 8 of latency"] if view.timed else []
    return " and ".join([*([f"the training of {' and '.join(costs)}"] if costs else []), *bits]) or "nothing"


def _bits(view: StudyView) -> Section:
    title = "Bits in every layer"
    damaged = [f"Rank {rank} is left out: {what}." for rank, what in view.damaged.items() if rank is not None]
    if not view.layers:
        return Section(title, "\n".join(damaged or ["Left out: the files of the models of the front are not in this run's folder."]))
    text = (
        f"How many bits each weight of a layer takes in the file{', before it is coded' if view.coded else ''}, from the first layer "
        f"to the last. f marks a layer that computes in float instead of INT8. {report_text.command(view, 'explain')} --rank R says more "
        "about one model."
    )
    return Section(title, "\n".join([text, *damaged]), (report_models.bits(view),))


def _curves(view: StudyView) -> Section:
    title = "Learning curves"
    if not view.epochs:
        return Section(title, "Left out: this study has no epochs.csv in its folder, so its epochs were not recorded.")
    return Section(
        title,
        "Mean training loss after each epoch and, where a candidate was watched, its accuracy in PyTorch on a part of the search split; "
        "coloured curves belong to models of the front.",
        (report_search.curves(view),),
    )


def _time(view: StudyView) -> Section:
    title = "Where the time went"
    if not any(record.seconds for record in view.records):
        return Section(title, "Left out: no trial has recorded its seconds.")
    text = (
        "Seconds of each stage over the whole study, and of each trial. A parent is trained once per student and width; the trial that "
        "comes first pays for it."
    )
    return Section(title, text, (report_models.time(view),))


def _unfinished(view: StudyView) -> Section:
    table = report_text.unfinished(view.records)
    if not table.rows:
        return Section("Trials that did not finish", "There are none.")
    return Section("Trials that did not finish", f"{len(table.rows)} trials ended early, and why.", table=table, folded=True)


def _device(view: StudyView) -> Section:
    table = report_text.device(view)
    lacking = [] if table.rows else ["The device is not known: run.json of this study is not there."]
    text = "\n".join([*report_text.protocol(view), *lacking])
    return Section("How it was measured", text, table=table if table.rows else None)


def _glossary(view: StudyView) -> Section:
    return Section("Words", "", table=report_text.glossary(view))


SECTIONS: tuple[Callable[[StudyView], Section], ...] = (
    _chosen,
    _front,
    _ranks,
    _growth,
    _parallel,
    _importance,
    _bits,
    _curves,
    _time,
    _unfinished,
    _device,
    _glossary,
)


def as_markdown(view: StudyView, built: list[Section]) -> str:
    """The words and tables of the report; figures are named, they are in report.html."""
    parts = [f"# Study {view.name}", report_text.opening(view)]
    for section in built:
        parts += [f"## {section.title}", *section.text.split("\n")]
        parts += [report_text.markdown(section.table)] if section.table is not None else []
        parts += ["(Drawn in report.html.)"] if section.figures else []
    return "\n\n".join(part for part in parts if part) + "\n"


def as_csv(view: StudyView) -> str:
    """One line per finished trial, complete or not: its numbers, what it chose, its seconds; units are in the columns' names."""
    import pandas as pd

    rows = [_row(view, record) for record in view.records]
    frame = pd.DataFrame(rows, columns=[*HEAD, *CSV_COLUMNS[2:], *COLUMNS, "seconds"]).convert_dtypes()
    return str(frame.to_csv(index=False, lineterminator="\n"))


HEAD = ("trial", "state", "ending", "reason", "rank")
TIMED = ("latency_p50_ms", "latency_p95_ms", "latency_low_ms", "latency_high_ms", "latency_stable", "times_faster", "threads", "device")
"""Columns that are empty where the latency is not known: of a trial that was refused on another device before `--remeasure`."""


def _row(view: StudyView, record: TrialRecord) -> dict[str, Any]:
    rank = view.rank(record)
    known: dict[str, Any] = {"student": record.student, "width": record.width, "fingerprint": record.fingerprint, "path": record.path}
    known |= {"size_bytes": record.size_bytes, "size_kb": record.size_bytes and record.size_bytes / KB}
    known |= {"latency_p50_ms": record.latency_ms}
    known |= {} if record.reached is None else csv_row(rank, record.model_copy(update={"measurement": record.reached}), view.teacher)
    known |= {} if record.measurement or record.latency_ms is not None else dict.fromkeys(TIMED)
    known |= {"trial": record.number, "state": record.state, "ending": record.ending, "reason": record.reason, "rank": rank}
    known |= {"mean_bits": mean_bits(record)} if record.mean_bits is not None else {}
    return known | ({} if record.candidate is None else columns(record.candidate)) | {"seconds": sum(record.seconds.values())}
