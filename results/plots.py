"""The front as one offline web page: accuracy over size and over latency, and the table below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.candidate import KB, BuildReport, Candidate, LatencyReport, milliseconds
from core.files import write_atomically
from results.choices import executions, unusual
from results.front import complete, objectives
from results.record import TeacherReport, TrialRecord
from results.table import (
    HEADINGS,
    caption,
    cells,
    conditions,
    mean_bits,
    measurement,
    quality,
    student_name,
    teacher_cells,
    times_faster,
    times_smaller,
)
from results.web import ACCENT, DIM, STAR, document, figure_html, table_html

if TYPE_CHECKING:
    import plotly.graph_objects as go

TAUGHT = "agreement with the teacher, %"
SIZE, LATENCY = 1, 2
"""Axes of `objectives`, which are also the panels' columns."""
MOST_TICKS = 10
"""Of which the labels on a logarithmic axis do not touch."""
LONGEST = 0.4
"""Share of a logarithmic axis that may be without a tick."""
DIGITS = ((10,), (10, 30), (10, 20, 50), (10, 12, 15, 20, 25, 30, 40, 50, 60, 80), range(10, 100, 5))
"""Of round numbers, from coarse to fine."""


def front_html(
    records: Sequence[TrialRecord], front: Sequence[TrialRecord], teacher: TeacherReport | None, path: Path, title: str = "Pareto front"
) -> None:
    """Write the page of a study: `records` are all its trials, `front` its ranks. It opens without a network (about 5 MB)."""
    states = [record.state for record in records]
    summary = f"{len(states)} trials: {states.count('COMPLETE')} complete, {states.count('PRUNED')} pruned, {states.count('FAIL')} failed"
    facts = [summary, f"{len(front)} on the front"] + ([conditions(measurement(front[0]).latency)] if front else [])
    body = _drawn(records, front, teacher) if front else "<p>No complete trial yet: there is nothing to draw.</p>"
    write_atomically(path, document(title, f"<p>{escape(' · '.join(facts))}</p>{body}"))


def _drawn(records: Sequence[TrialRecord], front: Sequence[TrialRecord], teacher: TeacherReport | None) -> str:
    rows = [cells(rank, record, teacher) for rank, record in enumerate(front)] + ([teacher_cells(teacher)] if teacher is not None else [])
    picture, table = figure_html("front", front_figure(records, front, teacher)), table_html(HEADINGS, rows)
    return f"<section>{picture}</section><section>{table}<p>{escape(caption(front, teacher))}</p></section>"


def front_figure(records: Sequence[TrialRecord], front: Sequence[TrialRecord], teacher: TeacherReport | None) -> go.Figure:
    """The plotly figure alone. Circles carry their rank; trials off the front are dimmed; the teacher is a star."""
    from plotly.subplots import make_subplots

    axes = axes_of(front)
    figure = make_subplots(rows=1, cols=len(axes), shared_yaxes=True, horizontal_spacing=0.035)
    on_front = {record.number for record in front}
    dominated = [record for record in complete(records) if record.number not in on_front]
    for axis in axes:
        if front:
            figure.add_trace(_reach(front, axis), row=1, col=axis)
        if dominated:
            figure.add_trace(_dominated(dominated, teacher, axis), row=1, col=axis)
        if teacher is not None:
            figure.add_trace(_teacher(teacher, axis), row=1, col=axis)
        if front:
            figure.add_trace(_front(front, teacher, axis), row=1, col=axis)
    sizes_kb = [objectives(record)[SIZE] / KB for record in (*front, *dominated)] + ([teacher.size_bytes / KB] if teacher else [])
    _style(figure, sizes_kb, quality(front[0]) if front else "accuracy", timed=LATENCY in axes)
    return figure


def axes_of(front: Sequence[TrialRecord]) -> tuple[int, ...]:
    """What accuracy is drawn over: size, and latency where it was measured."""
    return (SIZE,) if front and len(objectives(front[0])) <= LATENCY else (SIZE, LATENCY)


def hover(record: TrialRecord, teacher: TeacherReport | None, rank: int | None = None) -> str:
    """Everything known of a trial, in plotly's HTML."""
    measured, latency = measurement(record), measurement(record).latency
    head = f"<b>{'off the front' if rank is None else f'rank {rank}'}</b> · trial {record.number} · {escape(student_name(record))}"
    smaller, faster = times_smaller(record, teacher), times_faster(record, teacher)
    lines = [
        head,
        f"{quality(record)} {100 * measured.accuracy:.2f} % of {measured.images} images",
        f"size {measured.size_bytes / KB:.1f} KB" + ("" if smaller is None else f" · {smaller:.1f} x smaller"),
        _latency(latency) + ("" if faster is None else f" · {faster:.1f} x faster"),
        f"mean bits {mean_bits(record):.2f} · {measured.parameters:,} parameters · {measured.macs / 1e6:.2f} MMACs",
        f"top-1 agreement with PyTorch {100 * measured.agreement:.2f} %",
        *(genes(record.candidate) if record.candidate else ()),
        *([f"{sum(record.seconds.values()):.0f} s: " + _stages(record.seconds)] if record.seconds else ()),
    ]
    return "<br>".join(lines)


def teacher_hover(teacher: TeacherReport) -> str:
    """The same of the teacher."""
    accuracy, size = f"accuracy {100 * teacher.accuracy:.2f} %", f"size {teacher.size_bytes / KB:.1f} KB"
    return "<br>".join(("<b>teacher</b>", accuracy, size, _latency(teacher.latency)))


def _latency(latency: LatencyReport | BuildReport) -> str:
    if isinstance(latency, BuildReport):
        count = "layers unknown" if latency.layers is None else f"{latency.int8_layers} of {latency.layers} layers in INT8"
        return f"engine of {latency.engine_bytes / KB:.0f} KB, {count}; not timed"
    spread = f"p95 {latency.p95_ms:.3f}, interval {latency.ci_ms[0]:.3f} to {latency.ci_ms[1]:.3f}, n {latency.samples}"
    return f"median {latency.p50_ms:.3f} ms ({spread}){'' if latency.stable else f', {latency.unrest()}'}"


def genes(candidate: Candidate) -> list[str]:
    """What was chosen, in lines of plotly's HTML: bits and execution by depth, ratios, distillation, quantiser, what is not usual."""
    groups, distil = candidate.groups, candidate.distil
    ran = zip(groups, executions(candidate), strict=True)
    bits = " ".join(f"{group.weight_bits}{'' if execution == 'int8' else 'f'}" for group, execution in ran)
    runs = [(ratio, len(list(run))) for ratio, run in groupby(group.prune_ratio for group in groups)]
    ratios = ", ".join(f"{ratio:.0%}" + (f" ({count} times)" if count > 1 else "") for ratio, count in runs)
    taught = f"{escape(distil.loss)} T {distil.temperature:g} weight {distil.weight:g}, init {distil.init}"
    rest = _wrapped("; ".join(unusual(candidate).values()))
    return [*_wrapped(f"bits {bits} (f: float)"), *_wrapped(f"pruned {ratios}"), f"{taught}, {escape(candidate.quantiser)}", *rest]


def _wrapped(text: str, width: int = 64) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)


def _stages(seconds: dict[str, float]) -> str:
    return ", ".join(f"{escape(stage)} {value:.0f}" for stage, value in sorted(seconds.items(), key=lambda item: -item[1])[:4])


def _xy(records: Sequence[TrialRecord], axis: int) -> dict[str, list[float]]:
    values = [objectives(record) for record in records]
    return {"x": [value[axis] / (KB if axis == SIZE else 1) for value in values], "y": [100 * value[0] for value in values]}


def _front(front: Sequence[TrialRecord], teacher: TeacherReport | None, axis: int) -> go.Scatter:
    import plotly.graph_objects as go

    marker = {"size": 19, "color": ACCENT, "opacity": 1, "line": {"color": "white", "width": 1.5}}
    ranked = list(enumerate(front))[::-1]  # drawn last, the best rank lies on top
    return go.Scatter(
        **_xy([record for _, record in ranked], axis),
        mode="markers+text",
        marker=marker,
        text=[str(rank) for rank, _ in ranked],
        textfont={"color": "white", "size": 10},
        textposition="middle center",
        cliponaxis=False,
        hovertext=[hover(record, teacher, rank) for rank, record in ranked],
        hoverinfo="text",
        **_legend("front (number: rank)", axis),
    )


def _dominated(records: Sequence[TrialRecord], teacher: TeacherReport | None, axis: int) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        **_xy(records, axis),
        mode="markers",
        marker={"size": 8, "color": DIM, "opacity": 0.45},
        hovertext=[hover(record, teacher) for record in records],
        hoverinfo="text",
        **_legend("dominated", axis),
    )


def _teacher(teacher: TeacherReport, axis: int) -> go.Scatter:
    import plotly.graph_objects as go

    return go.Scatter(
        x=[teacher.size_bytes / KB] if axis == SIZE else list(milliseconds(teacher.latency)),
        y=[100 * teacher.accuracy],
        mode="markers",
        marker={"symbol": "star", "size": 19, "color": STAR, "line": {"color": "white", "width": 1}},
        cliponaxis=False,
        hovertext=[teacher_hover(teacher)],
        hoverinfo="text",
        **_legend("teacher, FP32", axis),
    )


def _reach(front: Sequence[TrialRecord], axis: int) -> go.Scatter:
    """A thin staircase: the best accuracy for at most so many KB or ms, whatever the third objective."""
    import plotly.graph_objects as go

    points = _xy(front, axis)
    xs: list[float] = []
    ys: list[float] = []
    for x, y in sorted(zip(points["x"], points["y"], strict=True)):
        if not ys or y > ys[-1]:
            xs.append(x)
            ys.append(y)
    line = {"color": ACCENT, "width": 1.5, "shape": "hv", "dash": "dot"}
    return go.Scatter(x=xs, y=ys, mode="lines", line=line, opacity=0.5, hoverinfo="skip", **_legend("best up to that cost", axis))


def _legend(name: str, axis: int) -> dict[str, Any]:
    """One legend entry for both panels' traces of that name."""
    return {"name": name, "legendgroup": name, "showlegend": axis == SIZE}


def _style(figure: go.Figure, sizes_kb: Sequence[float], title: str, *, timed: bool) -> None:
    figure.update_layout(height=520, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"})
    figure.update_yaxes(title_text="accuracy of the engine, %" if title == "accuracy" else TAUGHT, col=1)
    ticks = log_ticks(sizes_kb)
    figure.update_xaxes(type="log", title_text="size, KB (log)", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks], col=SIZE)
    if timed:
        figure.update_xaxes(title_text="latency, ms", rangemode="tozero", col=LATENCY)


def log_ticks(values: Sequence[float]) -> list[float]:
    """1, 2 and 5 times powers of ten from below the smallest to above the largest positive value."""
    positive = [value for value in values if value > 0.0]
    if not positive:
        return []
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    return [float(f"{digit}e{power}") for power in range(low, high + 1) for digit in (1, 2, 5)]


def inner_ticks(values: Sequence[float], enough: int = 4) -> list[float]:
    """Round numbers between the smallest and the largest positive value: the coarsest set of `enough` that leaves no long stretch bare.

    Where none is that, the set that leaves the shortest one bare, with an end that it does not come near.
    """
    positive = [value for value in values if value > 0.0]
    if not positive:
        return []
    low, high = min(positive), max(positive)
    powers, span = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1), math.log(high / low)
    sets = [[float(f"{digit}e{power - 1}") for power in powers for digit in digits] for digits in DIGITS]
    inside = [_apart([tick for tick in ticks if low <= tick <= high], span / MOST_TICKS) for ticks in sets]
    fitting = (ticks for ticks in inside if len(ticks) >= enough and max(_bare(low, ticks, high)) <= LONGEST * span)
    ticks = next(fitting, None) or min(inside, key=lambda ticks: max(_bare(low, ticks, high)))
    bare = _bare(low, ticks, high)
    return [*([low] if bare[0] > LONGEST * span else []), *ticks, *([high] if bare[-1] > LONGEST * span else [])] or [low]


def _bare(low: float, ticks: Sequence[float], high: float) -> list[float]:
    """Logarithmic lengths of the stretches that the ticks leave between `low` and `high`."""
    return [math.log(after / before) for before, after in pairwise((low, *ticks, high))]


def _apart(ticks: Sequence[float], least: float) -> list[float]:
    """From the smallest on, those whose logarithm lies `least` above that of the one before: 8, 9 and 10 stand close."""
    kept = list(ticks[:1])
    for tick in ticks[1:]:
        if math.log(tick / kept[-1]) >= least:
            kept.append(tick)
    return kept


def tick_text(value: float) -> str:
    """Three significant digits, no exponent below a million."""
    return f"{float(f'{value:.3g}'):g}"
