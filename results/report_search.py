"""The report's figures of the search: how the front grew, which choices lead where, what mattered, how training went."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from core.candidate import KB, Candidate
from results.choices import float_share, mean_ratio
from results.epochs import Epoch
from results.front import complete, objectives
from results.given_up import FAILED, given_up, why
from results.plots import inner_ticks, tick_text
from results.record import TrialRecord
from results.table import mean_bits, student_name
from results.view import StudyView
from results.web import ACCENT, BAD, DIM

if TYPE_CHECKING:
    import plotly.graph_objects as go

SHOWN = 10
"""Parameters of an importance that are drawn; the rest matters less."""
LONGEST_NAME = 32
"""Characters of a student's name beside its axis."""


def growth(view: StudyView, numbers: Sequence[int], volumes: Sequence[float]) -> go.Figure:
    """Hypervolume over trials and over the minutes spent in trials; pruned and failed trials stand on the base line."""
    from plotly.subplots import make_subplots

    minutes = minutes_spent(view.records)
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.03)
    for column, place in ((1, {record.number: float(record.number) for record in view.records}), (2, minutes)):
        for trace in _growth(view, place, numbers, volumes):
            figure.add_trace(trace.update(showlegend=column == 1, legendgroup=trace.name), row=1, col=column)
    figure.update_xaxes(title_text="trial", col=1)
    figure.update_xaxes(title_text="minutes of all trials so far, added up", rangemode="tozero", col=2)
    figure.update_yaxes(title_text="hypervolume", rangemode="tozero", col=1)
    figure.update_layout(height=380, legend={"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom"})
    return figure


def minutes_spent(records: Sequence[TrialRecord]) -> dict[int, float]:
    """Trial number -> minutes of this and all earlier finished trials, added up: minutes of work, whichever worker did it."""
    total, minutes = 0.0, {}
    for record in records:
        total += sum(record.seconds.values())
        minutes[record.number] = total / 60
    return minutes


def _growth(view: StudyView, place: Mapping[int, float], numbers: Sequence[int], volumes: Sequence[float]) -> list[go.Scatter]:
    import plotly.graph_objects as go

    text = [f"trial {number}<br>hypervolume {volume:.4f}" for number, volume in zip(numbers, volumes, strict=True)]
    line = {"shape": "hv", "color": ACCENT, "width": 2}
    xs = [place[number] for number in numbers]
    traces = [go.Scatter(x=xs, y=list(volumes), mode="lines+markers", line=line, name="hypervolume", hovertext=text, hoverinfo="text")]
    failed = [record for record in view.records if record.state == "FAIL"]
    for kind, ended in [*given_up(view.records), *([(FAILED, failed)] if failed else [])]:
        colour = BAD if kind is FAILED else DIM
        marker = {"symbol": kind.flat, "size": 8, "opacity": 0.6, "line": {"color": colour, "width": 2}, "color": colour}
        points = {"x": [place[record.number] for record in ended], "y": [0.0] * len(ended)}
        told = [why(record, view.quality) for record in ended]
        traces.append(
            go.Scatter(**points, mode="markers", marker=marker, name=kind.name, cliponaxis=False, hovertext=told, hoverinfo="text")
        )
    return traces


def parallel(view: StudyView) -> go.Figure:
    """A line per distinct complete trial through its choices and its objectives; the front is drawn last and in colour."""
    import plotly.graph_objects as go

    known = [record for record in complete(view.records) if record.candidate is not None]
    lines = sorted(known, key=lambda record: view.rank(record) is not None)
    flags = [float(view.rank(record) is not None) for record in lines]
    students = _named("student (width)", [student_name(record) for record in lines])
    loss = _named("loss", [_candidate(record).distil.loss for record in lines])
    temperature = [_candidate(record).distil.temperature for record in lines]
    quantiser = _named("quantiser", [_candidate(record).quantiser for record in lines])
    pruned = [100 * mean_ratio(_candidate(record)) for record in lines]
    floats = [100 * float_share(_candidate(record)) for record in lines]
    points = [objectives(record) for record in lines]
    dimensions = [
        students,
        *(each for each in (loss, quantiser) if len(each["ticktext"]) > 1),
        *([_dimension("temperature", temperature)] if len(set(temperature)) > 1 else []),
        _dimension("mean bits", [mean_bits(record) for record in lines]),
        _dimension("pruned, %", pruned),
        _dimension("in float, %", floats),
        _logarithmic("size, KB", [point[1] / KB for point in points]),
        *([_logarithmic("latency, ms", [point[2] for point in points])] if view.timed else []),
        _dimension(f"{view.quality}, %", [100 * point[0] for point in points]),
    ]
    line: dict[str, Any] = {"color": flags, "colorscale": [[0, DIM], [1, ACCENT]], "cmin": 0, "cmax": 1}
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions, line=line, unselected={"line": {"opacity": 0.05}}, rangefont={"size": 1, "color": "rgba(0,0,0,0)"}
        )
    )
    figure.update_layout(height=440, margin={"l": 30 + 7 * max(map(len, students["ticktext"])), "r": 50, "t": 80, "b": 30})
    return figure


def importance(shares: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Per objective the parameters that explain most of it."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(shares), subplot_titles=list(shares), horizontal_spacing=0.1)
    for column, each in enumerate(shares.values(), start=1):
        top = list(each.items())[:SHOWN][::-1]
        percent = [100 * share for _, share in top]
        bars = go.Bar(x=percent, y=[name for name, _ in top], orientation="h", marker={"color": ACCENT}, showlegend=False)
        figure.add_trace(bars.update(hovertemplate="%{y}: %{x:.1f} %<extra></extra>"), row=1, col=column)
        figure.update_xaxes(title_text="share of the variance, %", rangemode="tozero", row=1, col=column)
    figure.update_layout(height=400)
    return figure


def curves(view: StudyView) -> go.Figure:
    """Mean training loss per epoch, and below it the accuracy where it was watched; a column per stage, trials on the front in colour."""
    from plotly.subplots import make_subplots

    stages = list(dict.fromkeys(epoch.stage for epoch in view.epochs))
    watched = {epoch.stage for epoch in view.epochs if epoch.accuracy is not None}
    rows = [("loss", 1.0, "mean loss"), *([("accuracy", 100.0, f"{view.quality}, %")] if watched else [])]
    grid = [[{}] * len(stages), *([[{} if stage in watched else None for stage in stages]] if watched else [])]
    figure = make_subplots(
        rows=len(rows), cols=len(stages), specs=grid, subplot_titles=stages, horizontal_spacing=0.06, vertical_spacing=0.2
    )
    ranks = {record.number: rank for rank, record in enumerate(view.front)}
    for (trial, stage), lines in groupby(sorted(view.epochs, key=_order(ranks)), key=lambda epoch: (epoch.trial, epoch.stage)):
        epochs = list(lines)
        for row, (field, factor, _) in enumerate(rows, start=1):
            if row == 1 or stage in watched:
                figure.add_trace(_curve(trial, ranks, epochs, field, factor), row=row, col=stages.index(stage) + 1)
    figure.update_xaxes(title_text="epoch")
    for row, (_, _, title) in enumerate(rows, start=1):
        figure.update_yaxes(title_text=title, row=row, col=1 if row == 1 else 1 + min(map(stages.index, watched)))
    figure.update_layout(height=340 * len(rows))
    return figure


def _curve(trial: int | None, ranks: Mapping[int, int], epochs: Sequence[Epoch], field: str, factor: float) -> go.Scatter:
    import plotly.graph_objects as go

    known = [(epoch.epoch, factor * value) for epoch in epochs if (value := getattr(epoch, field)) is not None]
    on_front = trial is None or trial in ranks
    who = "teacher" if trial is None else f"trial {trial}" + (f", rank {ranks[trial]}" if trial in ranks else "")
    return go.Scatter(
        x=[epoch for epoch, _ in known],
        y=[value for _, value in known],
        mode="lines+markers",
        marker={"size": 4},
        line={"color": ACCENT if on_front else DIM, "width": 1.5},
        opacity=0.9 if on_front else 0.35,
        name=who,
        showlegend=False,
        hovertemplate=f"{who}<br>epoch %{{x:g}}: {field} %{{y:.4g}}<extra></extra>",
    )


def _order(ranks: Mapping[int, int]) -> Any:
    """The front last, so that it lies on top; each curve by epoch."""
    return lambda epoch: (epoch.trial in ranks, -1 if epoch.trial is None else epoch.trial, epoch.stage, epoch.epoch)


def _candidate(record: TrialRecord) -> Candidate:
    assert record.candidate is not None
    return record.candidate


def _dimension(label: str, values: Sequence[float]) -> dict[str, Any]:
    low, high = min(values), max(values)
    margin = 0.0 if high > low else 0.5  # an axis of one value has no length
    return {"label": label, "values": list(values), "range": [low - margin, high + margin], "tickformat": ".4~g"}


def _named(label: str, names: Sequence[str]) -> dict[str, Any]:
    """An axis of names in alphabetical order."""
    known = sorted(set(names))
    shown = {"tickvals": list(range(len(known))), "ticktext": _labels(known)}
    return {**_dimension(label, [float(known.index(name)) for name in names]), **shown}


def _labels(names: Sequence[str]) -> list[str]:
    """At most LONGEST_NAME characters each: both ends of a longer one, which get a number where they say the same."""
    half = (LONGEST_NAME - 5) // 2
    short = [name if len(name) <= LONGEST_NAME else f"{name[:half]}…{name[-half:]}" for name in names]
    return [text if short.count(text) == 1 else f"{place}: {text}" for place, text in enumerate(short, start=1)]


def _logarithmic(label: str, values: Sequence[float]) -> dict[str, Any]:
    ticks = inner_ticks(values)
    shown = {"tickvals": [math.log10(tick) for tick in ticks], "ticktext": [tick_text(tick) for tick in ticks]}
    return {**_dimension(f"{label} (log)", [math.log10(value) for value in values]), **shown}
