"""The report's figures of what is inside the models, and of where the time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from results.record import TrialRecord
from results.table import student_name
from results.view import StudyView

if TYPE_CHECKING:
    import plotly.graph_objects as go

BIT_COLOURS = [[0.0, "#fde9c9"], [0.25, "#f6b26b"], [0.5, "#c9668f"], [0.75, "#6a51a3"], [1.0, "#2b2a6b"]]


def bits(view: StudyView) -> go.Figure:
    """Storage bits of every layer (columns, in order of execution) of every point of the front whose files are there (rows)."""
    import plotly.graph_objects as go

    ranks = sorted(view.layers)
    width = max(len(layers) for layers in view.layers.values())
    rows = [f"rank {rank} · {student_name(view.front[rank])}" for rank in ranks]
    grids: dict[str, list[list[Any]]] = {"z": [], "text": [], "hovertext": []}
    for rank in ranks:
        layers, gap = view.layers[rank], [None] * (width - len(view.layers[rank]))
        grids["z"].append([min(layer.bits, 8) for layer in layers] + gap)
        grids["text"].append([f"{layer.bits}{'f' if layer.execution == 'float' else ''}" for layer in layers] + [""] * len(gap))
        told = [f"{layer.name}<br>{layer.bits} bits, {layer.execution or 'execution unknown'}" for layer in layers]
        sizes = [f"<br>{layer.weights:,} weights, {layer.size_bytes:,} bytes" for layer in layers]
        grids["hovertext"].append([a + b for a, b in zip(told, sizes, strict=True)] + [""] * len(gap))
    scale = {"colorscale": BIT_COLOURS, "zmin": 2, "zmax": 8, "xgap": 2, "ygap": 2}
    bar = {"title": {"text": "bits"}, "tickvals": [2, 3, 4, 5, 6, 8], "ticktext": ["2", "3", "4", "5", "6", "8, 16"]}
    heat = go.Heatmap(**grids, **scale, y=rows, x=list(range(1, width + 1)), texttemplate="%{text}", hoverinfo="text", colorbar=bar)
    figure = go.Figure(heat.update(hoverongaps=False))
    figure.update_xaxes(title_text="layer, in order of execution", dtick=max(1, width // 20), showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(height=140 + 30 * len(ranks), margin={"l": 170})
    return figure


def seconds_of_stages(records: tuple[TrialRecord, ...]) -> dict[str, float]:
    """Stage -> seconds over all trials, longest first."""
    total: Counter[str] = Counter()
    for record in records:
        total.update(record.seconds)
    return dict(total.most_common())


def rest_of_wall(view: StudyView, stages: Mapping[str, float]) -> dict[str, float]:
    """Seconds of the run outside its trials' stages: the teacher's, and all other; {} where run.json does not say.

    Seconds of several workers add up to more than a clock shows: then there is no other.
    """
    wall, teacher = view.run.get("wall_seconds"), view.run.get("teacher_seconds")
    if not isinstance(wall, int | float) or not isinstance(teacher, int | float):
        return {}
    once, left = {"teacher (once)": float(teacher)}, wall - teacher - sum(stages.values())
    several = any(start.get("workers", 1) != 1 for start in view.run.get("starts", ()))
    return once if several else once | {"all else": max(0.0, left)}


def time(view: StudyView) -> go.Figure:
    """Seconds per stage over the whole study, and per trial."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    stages = seconds_of_stages(view.records)
    total = dict(sorted({**stages, **rest_of_wall(view, stages)}.items(), key=lambda item: item[1]))
    figure = make_subplots(rows=1, cols=2, column_widths=[0.35, 0.65], horizontal_spacing=0.08)
    bars = go.Bar(x=list(total.values()), y=list(total), orientation="h", showlegend=False, marker={"color": "#8792a2"})
    figure.add_trace(bars.update(hovertemplate="%{y}: %{x:.1f} s<extra></extra>"), row=1, col=1)
    timed = [record for record in view.records if record.seconds]
    for stage in stages:
        each = go.Bar(x=[record.number for record in timed], y=[record.seconds.get(stage, 0.0) for record in timed], name=stage)
        figure.add_trace(each.update(hovertemplate=f"trial %{{x}}, {stage}: %{{y:.1f}} s<extra></extra>"), row=1, col=2)
    figure.update_xaxes(title_text="seconds in all", col=1)
    figure.update_xaxes(title_text="trial", col=2)
    figure.update_yaxes(title_text="seconds", col=2)
    figure.update_layout(height=400, barmode="stack", legend={"orientation": "h", "x": 0, "y": 1.04, "yanchor": "bottom"})
    return figure
