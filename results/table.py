"""The front as a table: on the terminal (rich), as plain text, and as CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.candidate import KB, BuildReport, LatencyReport, Measurement, milliseconds
from core.files import write_atomically
from results.record import TeacherReport, TrialRecord

if TYPE_CHECKING:
    from rich.table import Table

UNSTABLE = "*"
"""Marks a latency whose interval stayed wide."""

HEADINGS = ("rank", "trial", "accuracy %", "KB", "ms", "x smaller", "x faster", "student (width)", "mean bits")


def front_table(front: Sequence[TrialRecord], teacher: TeacherReport | None = None, rows: int | None = None) -> Table:
    """A rich table of the front's first `rows` ranks (None: all), with the teacher below; its caption states units and method."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    text = caption(front, teacher, rows)
    table = Table(caption=text, caption_justify="left", padding=(0, 1, 0, 0), pad_edge=False, box=SIMPLE_HEAD)
    for heading in HEADINGS:
        # Two-line headings: with them the table fits a terminal of 80 columns.
        table.add_column(heading.replace(" ", "\n"), justify="left" if heading.startswith("student") else "right", no_wrap=True)
    shown = list(enumerate(front[:rows]))
    for rank, record in shown:
        # Text, not str: rich would read a student's "[name]" as markup.
        table.add_row(*(Text(cell) for cell in cells(rank, record, teacher)), end_section=rank == shown[-1][0])
    if teacher is not None:
        table.add_row(*(Text(cell) for cell in teacher_cells(teacher)), style="dim")
    return table


def front_text(front: Sequence[TrialRecord], teacher: TeacherReport | None = None) -> str:
    """The same table as plain ASCII lines, for logs and files."""
    lines = [HEADINGS, *(cells(rank, record, teacher) for rank, record in enumerate(front))]
    lines += [teacher_cells(teacher)] if teacher is not None else []
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text = ["  ".join(_pad(cell, width, column) for column, (cell, width) in enumerate(zip(line, widths, strict=True))) for line in lines]
    text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([line.rstrip() for line in text] + [caption(front, teacher)])


def front_csv(front: Sequence[TrialRecord], teacher: TeacherReport | None, path: Path) -> None:
    """One line per rank with every number of its measurement; units are in the columns' names (KB = 1000 bytes)."""
    import pandas as pd

    frame = pd.DataFrame([csv_row(rank, record, teacher) for rank, record in enumerate(front)], columns=list(CSV_COLUMNS))
    write_atomically(path, frame.to_csv(index=False, lineterminator="\n"))


CSV_COLUMNS = (
    "rank",
    "trial",
    "accuracy",
    "judged_by",
    "images",
    "size_bytes",
    "size_kb",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_low_ms",
    "latency_high_ms",
    "latency_stable",
    "times_smaller",
    "times_faster",
    "student",
    "width",
    "mean_bits",
    "parameters",
    "macs",
    "agreement",
    "runtime",
    "precision",
    "batch",
    "threads",
    "device",
    "fingerprint",
    "path",
)


def csv_row(rank: int | None, record: TrialRecord, teacher: TeacherReport | None) -> dict[str, Any]:
    """The values of `CSV_COLUMNS`; rank None is off the front."""
    measured = measurement(record)
    latency = measured.latency
    timed = latency if isinstance(latency, LatencyReport) else None
    return {
        "rank": rank,
        "trial": record.number,
        "accuracy": measured.accuracy,
        "judged_by": measured.judged_by,
        "images": measured.images,
        "size_bytes": measured.size_bytes,
        "size_kb": measured.size_bytes / KB,
        "latency_p50_ms": timed and timed.p50_ms,
        "latency_p95_ms": timed and timed.p95_ms,
        "latency_low_ms": timed and timed.ci_ms[0],
        "latency_high_ms": timed and timed.ci_ms[1],
        "latency_stable": timed and timed.stable,
        "times_smaller": times_smaller(record, teacher),
        "times_faster": times_faster(record, teacher),
        "student": record.student,
        "width": record.width,
        "mean_bits": mean_bits(record),
        "parameters": measured.parameters,
        "macs": measured.macs,
        "agreement": measured.agreement,
        "runtime": latency.runtime,
        "precision": latency.precision,
        "batch": latency.batch,
        "threads": latency.threads,
        "device": latency.fingerprint,
        "fingerprint": record.fingerprint,
        "path": record.path,
    }


def cells(rank: int, record: TrialRecord, teacher: TeacherReport | None) -> tuple[str, ...]:
    """One rank under `HEADINGS`; "-" where there is nothing to compare with."""
    measured = measurement(record)
    return (
        str(rank),
        str(record.number),
        f"{100 * measured.accuracy:.2f}",
        f"{measured.size_bytes / KB:.1f}",
        _ms(measured.latency),
        _times(times_smaller(record, teacher)),
        _times(times_faster(record, teacher)),
        student_name(record),
        f"{mean_bits(record):.1f}",
    )


def teacher_cells(teacher: TeacherReport) -> tuple[str, ...]:
    """The teacher's line under `HEADINGS`."""
    size_kb, faster = f"{teacher.size_bytes / KB:.1f}", "1.0" if milliseconds(teacher.latency) else "-"
    return ("-", "-", f"{100 * teacher.accuracy:.2f}", size_kb, _ms(teacher.latency), "1.0", faster, "teacher", "32.0")


def caption(front: Sequence[TrialRecord], teacher: TeacherReport | None = None, rows: int | None = None) -> str:
    """Units, method and marks of the table, in a sentence or two."""
    if not front:
        return "no complete trial yet"
    measured = measurement(front[0])
    judge = "accuracy" if measured.judged_by == "labels" else "accuracy: agreement with the teacher's top-1"
    parts = [f"{judge}: {measured.images} search images", f"KB: {KB} bytes of the weight file"]
    parts.append(f"{'' if isinstance(measured.latency, BuildReport) else 'ms: median, '}{conditions(measured.latency)}")
    latencies = [measurement(record).latency for record in front] + ([teacher.latency] if teacher else [])
    if any(isinstance(latency, LatencyReport) and not latency.stable for latency in latencies):
        parts.append(f"{UNSTABLE}: unstable")
    if rows is not None and len(front) > rows:
        parts.append(f"{len(front) - rows} more ranks")
    return "; ".join(parts)


def conditions(latency: LatencyReport | BuildReport) -> str:
    """Under which conditions a latency was taken: 'batch 1, 1 thread, openvino'; or why there is none."""
    if isinstance(latency, BuildReport):
        targets = ", ".join(latency.compute_capability)
        return f"latency: not measurable here, {latency.runtime} only built engines for {targets} (answers by {latency.scored_in})"
    return f"batch {latency.batch}, {latency.threads} thread{'' if latency.threads == 1 else 's'}, {latency.runtime}"


def times_smaller(record: TrialRecord, teacher: TeacherReport | None) -> float | None:
    """Teacher's bytes over the record's; None without a teacher."""
    return None if teacher is None else teacher.size_bytes / measurement(record).size_bytes


def times_faster(record: TrialRecord, teacher: TeacherReport | None) -> float | None:
    """Teacher's median latency over the record's; None unless both were taken on one device, runtime, batch and thread count."""
    latency = measurement(record).latency
    if teacher is None or isinstance(latency, BuildReport) or isinstance(teacher.latency, BuildReport):
        return None
    return teacher.latency.p50_ms / latency.p50_ms if _taken(teacher.latency) == _taken(latency) else None


def measurement(record: TrialRecord) -> Measurement:
    """The measurement of a record that is known to have one."""
    assert record.measurement is not None, f"trial {record.number} is not measured"
    return record.measurement


def quality(record: TrialRecord) -> str:
    """What a measured record's first objective is called: 'accuracy', or 'agreement' with the teacher where images have no labels."""
    return "accuracy" if measurement(record).judged_by == "labels" else "agreement"


def student_name(record: TrialRecord) -> str:
    """'resnet8 (0.5)'."""
    return f"{record.student or 'student'}" + ("" if record.width is None else f" ({record.width:g})")


def duration(seconds: float) -> str:
    """'42 s', '12 min', '3 h 05 min'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def mean_bits(record: TrialRecord) -> float:
    """Of the shape plan where the record holds it, else of the measurement."""
    return record.mean_bits if record.mean_bits is not None else measurement(record).mean_bits


def _taken(latency: LatencyReport) -> tuple[str, str, int, int]:
    return latency.fingerprint, latency.runtime, latency.batch, latency.threads


def _ms(latency: LatencyReport | BuildReport) -> str:
    if isinstance(latency, BuildReport):
        return "-"
    return f"{latency.p50_ms:.3f}" + ("" if latency.stable else UNSTABLE)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _pad(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if HEADINGS[column].startswith("student") else cell.rjust(width)
