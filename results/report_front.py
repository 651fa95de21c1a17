"""The report's figures of the front: three planes, and all three objectives at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from core.candidate import KB, LatencyReport, milliseconds
from results.front import complete, objectives
from results.given_up import Kind, given_up, last_accuracy, why
from results.plots import TAUGHT, hover, inner_ticks, teacher_hover, tick_text
from results.record import TrialRecord
from results.view import StudyView
from results.web import ACCENT, DIM, STAR

if TYPE_CHECKING:
    import plotly.graph_objects as go

DIMMED = 0.45
MARGIN = 0.06
"""Of the accuracies drawn, below the lowest and above the highest."""


class Axis(NamedTuple):
    """One objective: its name, its place in `objectives`, its factor to the unit shown, its title."""

    name: str
    place: int
    factor: float
    title: str
    log: bool


ACCURACY = Axis("accuracy", 0, 100, "accuracy, %", False)
SIZE = Axis("size", 1, 1 / KB, "size, KB (log)", True)
LATENCY = Axis("latency", 2, 1, "latency, ms (log)", True)
PLANES = ((SIZE, ACCURACY), (LATENCY, ACCURACY), (SIZE, LATENCY))


def dominated(view: StudyView) -> list[TrialRecord]:
    """Distinct complete trials off the front."""
    ranked = {record.number for record in view.front}
    return [record for record in complete(view.records) if record.number not in ranked]


def planes(view: StudyView, shown: Sequence[tuple[Axis, Axis]] = PLANES) -> go.Figure:
    """Accuracy over size, accuracy over latency, latency over size, or those `shown`; a point's number is its rank."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(shown), horizontal_spacing=0.07)
    named: set[str] = set()
    for column, (x, y) in enumerate(shown, start=1):
        for trace in _traces(view, x, y):
            figure.add_trace(trace.update(showlegend=trace.name not in named), row=1, col=column)
            named.add(trace.name)
        figure.update_xaxes(**_axis(view, x), row=1, col=column)
        figure.update_yaxes(**_axis(view, y), row=1, col=column)
    figure.update_layout(height=460, legend={"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom"})
    return figure


def cube(view: StudyView) -> go.Figure:
    """All three objectives; it turns under the mouse. Given-up trials without an accuracy lie on its floor."""
    import plotly.graph_objects as go

    figure = go.Figure()
    axes = {"x": SIZE, "y": LATENCY, "z": ACCURACY}
    for kind, ended, points in _given_up(view, **axes):
        marker = {"size": 4, "color": DIM, "opacity": DIMMED, "symbol": kind.solid}
        text = [why(record, view.quality) for record in ended]
        figure.add_trace(go.Scatter3d(**points, name=kind.name, mode="markers", marker=marker, hovertext=text, hoverinfo="text"))
    groups = (
        ("dominated", dominated(view), {"size": 3, "color": DIM, "opacity": 0.5}, "markers"),
        ("front (number: rank)", view.front, {"size": 6, "color": ACCENT}, "markers+text"),
    )
    for name, records, marker, mode in groups:
        ranks = [view.rank(record) for record in records]
        figure.add_trace(
            go.Scatter3d(
                **_coordinates(records, **axes),
                name=name,
                mode=mode,
                marker=marker,
                text=["" if rank is None else str(rank) for rank in ranks],
                hovertext=[hover(record, view.teacher, rank) for record, rank in zip(records, ranks, strict=True)],
                hoverinfo="text",
            )
        )
    if view.teacher is not None:
        star = {key: [_teacher_value(view, axis)] for key, axis in axes.items()}
        marker = {"symbol": "diamond", "size": 7, "color": STAR}
        text = [teacher_hover(view.teacher)]
        figure.add_trace(go.Scatter3d(**star, name="teacher, FP32", mode="markers", marker=marker, hovertext=text, hoverinfo="text"))
    scene = {f"{key}axis": _axis(view, axis) for key, axis in axes.items()}
    view_point = {"camera": {"eye": {"x": -1.45, "y": -1.45, "z": 0.7}, "center": {"x": 0, "y": 0, "z": -0.1}}, "aspectmode": "cube"}
    legend = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "itemsizing": "constant"}
    figure.update_layout(height=600, scene=scene | view_point, legend=legend, margin={"l": 0, "r": 0, "t": 40, "b": 0})
    return figure


def _traces(view: StudyView, x: Axis, y: Axis) -> list[go.Scatter]:
    import plotly.graph_objects as go

    off, ranked = dominated(view), list(view.front)[::-1]  # drawn last, the best rank lies on top
    traces = [
        go.Scatter(
            **_coordinates(off, x=x, y=y),
            name="dominated",
            mode="markers",
            marker={"size": 7, "color": DIM, "opacity": DIMMED},
            hovertext=[hover(record, view.teacher) for record in off],
        ),
        *(_dimmed(view, *each) for each in _given_up(view, x=x, y=y)),
        go.Scatter(
            **_coordinates(ranked, x=x, y=y),
            name="front (number: rank)",
            mode="markers+text",
            marker={"size": 18, "color": ACCENT, "line": {"color": "white", "width": 1}},
            text=[str(view.rank(record)) for record in ranked],
            textfont={"color": "white", "size": 10},
            error_x=_interval(ranked, x),
            error_y=_interval(ranked, y),
            hovertext=[hover(record, view.teacher, view.rank(record)) for record in ranked],
        ),
    ]
    if view.teacher is not None:
        point = {"x": [_teacher_value(view, x)], "y": [_teacher_value(view, y)]}
        star = {"symbol": "star", "size": 16, "color": STAR}
        traces.append(go.Scatter(**point, name="teacher, FP32", mode="markers", marker=star, hovertext=[teacher_hover(view.teacher)]))
    for trace in traces:
        trace.update(hoverinfo="text", legendgroup=trace.name, cliponaxis=False)
    return [trace for trace in traces if len(trace.x)]


def _dimmed(view: StudyView, kind: Kind, records: Sequence[TrialRecord], points: dict[str, list[float]]) -> go.Scatter:
    import plotly.graph_objects as go

    marker = {"size": 7, "color": DIM, "opacity": DIMMED, "symbol": kind.flat, "line": {"width": 1.5, "color": DIM}}
    return go.Scatter(**points, name=kind.name, mode="markers", marker=marker, hovertext=[why(record, view.quality) for record in records])


def _given_up(view: StudyView, **axes: Axis) -> list[tuple[Kind, list[TrialRecord], dict[str, list[float]]]]:
    """Of each kind the trials whose size and latency are known as far as the axes ask, and where they stand.

    A trial without an accuracy stands on the base line of that axis.
    """
    base = _span(view)[0]
    found = []
    for kind, records in given_up(view.records):
        known = [(record, [_seen(record, axis, base) for axis in axes.values()]) for record in records]
        whole = [(record, [value for value in values if value is not None]) for record, values in known if None not in values]
        if whole:
            points = {key: [values[place] for _, values in whole] for place, key in enumerate(axes)}
            found.append((kind, [record for record, _ in whole], points))
    return found


def _seen(record: TrialRecord, axis: Axis, base: float | None = None) -> float | None:
    """What is known of a pruned trial, in the axis' unit; `base` stands for an accuracy that is not."""
    value = (last_accuracy(record), record.size_bytes, record.latency_ms)[axis.place]
    if value is None:
        return base if axis is ACCURACY else None
    return value * axis.factor


def _span(view: StudyView) -> tuple[float, float]:
    """Ends of the accuracy axis, in %: all that is known lies above its base line."""
    values = _drawn(view, ACCURACY) or [0.0]
    margin = MARGIN * max(max(values) - min(values), 1.0)
    return min(values) - margin, max(values) + margin


def _drawn(view: StudyView, axis: Axis) -> list[float]:
    """What stands along an axis, in its unit."""
    seen = [_seen(record, axis) for _, records in given_up(view.records) for record in records]
    measured = [objectives(record)[axis.place] * axis.factor for record in complete(view.records)]
    taught = [_teacher_value(view, axis)] if view.teacher is not None else []
    return [*measured, *taught, *(value for value in seen if value is not None)]


def _interval(records: Sequence[TrialRecord], axis: Axis) -> dict[str, Any] | None:
    """The interval of a latency (`LatencyReport.ci_ms`) as error bars; the other objectives have none."""
    if axis is not LATENCY:
        return None
    found = [record.measurement.latency for record in records if record.measurement is not None]
    latencies = [latency for latency in found if isinstance(latency, LatencyReport)]
    above = [latency.ci_ms[1] - latency.p50_ms for latency in latencies]
    below = [latency.p50_ms - latency.ci_ms[0] for latency in latencies]
    return {"type": "data", "array": above, "arrayminus": below, "symmetric": False, "thickness": 1, "width": 0, "color": ACCENT}


def _coordinates(records: Sequence[TrialRecord], **axes: Axis) -> dict[str, list[float]]:
    points = [objectives(record) for record in records]
    return {key: [point[axis.place] * axis.factor for point in points] for key, axis in axes.items()}


def _teacher_value(view: StudyView, axis: Axis) -> float:
    assert view.teacher is not None
    return (view.teacher.accuracy, view.teacher.size_bytes, *milliseconds(view.teacher.latency))[axis.place] * axis.factor


def _axis(view: StudyView, axis: Axis) -> dict[str, Any]:
    if not axis.log:
        return {"title": {"text": axis.title if view.quality == "accuracy" else TAUGHT}, "range": _span(view)}
    ticks = inner_ticks(_drawn(view, axis))
    shown = {"tickvals": ticks, "ticktext": [tick_text(tick) for tick in ticks]}
    return {"title": {"text": axis.title}, "type": "log", **shown}
