"""Pictures of results for the docs: python -m benchmarks.pictures      (needs chromium or chrome)

Each is drawn from one file of results/ and shot by a browser that loads nothing: docs/cifar10_front.png, docs/search_efficiency.png,
docs/skip_stop.png.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from benchmarks.efficiency_result import grown, seeds_of
from benchmarks.replay_text import gates_of
from core.cli import run_main
from core.errors import UserError
from results.web import ACCENT, DIM, STAR, template

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).resolve().parents[1] / "docs"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
WIDTH = 1100
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=5000")
LABELS = {
    **{"top center": (0.0, 0.07), "bottom center": (0.0, -0.07), "middle right": (0.04, 0.0), "middle left": (-0.04, 0.0)},
    **{"top right": (0.03, 0.06), "bottom right": (0.03, -0.06), "top left": (-0.03, 0.06), "bottom left": (-0.03, -0.06)},
}
"""Where a number may stand, as shares of the picture right of its point and above it."""
NEAR = 0.07
"""As far from all else is far enough: the first place of LABELS then."""
ARMS = {"plain": ("hand-written loop", STAR), "ours": ("search.run", ACCENT)}


def front(content: Mapping[str, Any]) -> go.Figure:
    """The points of a search by accuracy and bytes, and by accuracy and latency; numbers are ranks. From cifar10_search.json."""
    teacher = content["run"]["teacher"]
    goal = {"search_accuracy": teacher["accuracy"], "size_bytes": teacher["size_bytes"], "p50_ms": teacher["latency"]["p50_ms"]}
    figure = make_subplots(cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    for column, (key, unit) in enumerate({"size_bytes": 1000, "p50_ms": 1}.items(), 1):
        for name, points, marker in (
            ("dominated", content.get("dominated", []), {"color": DIM, "size": 8, "opacity": 0.6}),
            ("front", content["front"], {"color": ACCENT, "size": 11}),
            ("teacher, FP32", [goal], {"color": STAR, "size": 16, "symbol": "star"}),
        ):
            figure.add_scatter(
                x=[point[key] / unit for point in points],
                y=[100 * point["search_accuracy"] for point in points],
                text=[str(point.get("rank", "")) if name == "front" else "" for point in points],
                textposition=beside([(math.log10(point[key]), point["search_accuracy"]) for point in points]),
                **{"mode": "markers+text", "marker": marker, "name": name},
                **{"showlegend": column == 1 and bool(points), "row": 1, "col": column},
            )
    figure.update_xaxes(type="log", title="size of the weight file, KB (log)", col=1)
    figure.update_xaxes(type="log", title="latency, ms (log)", col=2)
    figure.update_yaxes(title="accuracy on the search split, %", col=1)
    return figure.update_layout(height=480)


def beside(places: Sequence[tuple[float, float]]) -> list[str]:
    """Plotly's text position for the number of each point (x, y), where it lies farthest from points and numbers that are placed."""
    if not places:
        return []
    widths = [max(values) - min(values) or 1.0 for values in zip(*places, strict=True)]
    points = [(x / widths[0], y / widths[1]) for x, y in places]
    chosen, taken = list[str](), list(points)

    def room(place: tuple[float, float], own: tuple[float, float]) -> float:
        return min((math.dist(place, other) for other in taken if other != own), default=1.0)

    for x, y in points:
        where = {name: (x + right, y + up) for name, (right, up) in LABELS.items()}
        best = max(where, key=lambda name: min(room(where[name], (x, y)), NEAR))
        chosen.append(best)
        taken.append(where[best])
    return chosen


def efficiency(content: Mapping[str, Any]) -> go.Figure:
    """Hypervolume over seconds of both arms, a panel per seed; the dotted line is where the plain arm ends. From search_efficiency.json."""
    found = {seed: grown(content, seed, True) or grown(content, seed, False) for seed in seeds_of(content)}
    seeds = [seed for seed, arms in found.items() if arms]
    figure = make_subplots(cols=len(seeds), shared_yaxes=True, subplot_titles=[f"seed {seed}" for seed in seeds], horizontal_spacing=0.03)
    for column, seed in enumerate(seeds, 1):
        for (arm, (name, colour)), line in zip(ARMS.items(), found[seed] or (), strict=True):
            seconds, volumes = zip(*line, strict=True)
            style = {"line": {"color": colour, "width": 2.5, "shape": "hv"}, "marker": {"size": 6}, "mode": "lines+markers"}
            figure.add_scatter(x=seconds, y=volumes, name=name, legendgroup=arm, showlegend=column == 1, row=1, col=column, **style)
            if arm == "plain":
                figure.add_hline(y=volumes[-1], line={"color": DIM, "dash": "dot", "width": 1.5}, row=1, col=column)
    figure.update_xaxes(type="log", title="seconds since the start", dtick=1)
    figure.update_yaxes(title="hypervolume of the front", col=1)
    return figure.update_layout(height=420)


def skip_stop(content: Mapping[str, Any]) -> go.Figure:
    """What skipping and stopping save and lose by confidence. From replay.json."""
    rows = gates_of(content)
    asked = [str(row["confidence"]) for row in rows]
    titles = ("training time saved, %", "hypervolume lost, %", "of the stopped would have joined, %")
    figure = make_subplots(cols=3, subplot_titles=titles, horizontal_spacing=0.07)

    def percent(name: str) -> list[float]:
        return [100 * row[name] for row in rows]

    saved = (("possible_median", "possible, all trials", DIM), ("saved_median", "saved, all trials", ACCENT))
    for name, label, colour in (*saved, ("saved_later_median", "saved, second half", STAR)):
        figure.add_bar(x=asked, y=percent(name), name=label, marker_color=colour, row=1, col=1)
    lost, worst = percent("hypervolume_lost_median"), percent("hypervolume_lost_worst_tenth")
    spread = {"type": "data", "symmetric": False, "array": [b - a for a, b in zip(lost, worst, strict=True)]}
    figure.add_bar(x=asked, y=lost, error_y=spread, marker_color=ACCENT, showlegend=False, row=1, col=2)
    joined, most = percent("stopped_would_have_joined"), percent("stopped_would_have_joined_upper_95_rows")
    limit = {"type": "data", "symmetric": False, "array": [b - a for a, b in zip(joined, most, strict=True)]}
    figure.add_bar(x=asked, y=joined, error_y=limit, marker_color=ACCENT, showlegend=False, row=1, col=3)
    figure.update_xaxes(title="stopping.confidence", type="category")
    figure.update_yaxes(rangemode="tozero")
    return figure.update_layout(height=400)


PICTURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], go.Figure]]] = {
    "cifar10_front": ("cifar10_search.json", front),
    "search_efficiency": ("search_efficiency.json", efficiency),
    "skip_stop": ("replay.json", skip_stop),
}
"""Name of the picture -> the result that it is drawn from, and how."""


def main(argv: list[str] | None = None) -> int:
    """Draw every picture whose result is there."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UserError(f"pictures are shot by a browser, but none of {', '.join(BROWSERS)} is there")
    for name, (result, draw) in PICTURES.items():
        if (file := RESULTS / result).exists():
            shoot(browser, draw(json.loads(file.read_text(encoding="utf-8"))), DOCS / f"{name}.png")
            print(f"written: docs/{name}.png")
    return 0


def shoot(browser: str, figure: go.Figure, picture: Path) -> None:
    """The figure as a PNG of WIDTH pixels, in the light scheme."""
    legend = {"orientation": "h", "y": 1.22, "x": 0}
    figure.update_layout(template=template("light"), width=WIDTH, legend=legend, margin={"t": 90})
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        html = figure.to_html(include_plotlyjs=True, config={"staticPlot": True})
        page.write_text(html.replace("<body>", '<body style="margin:0">'), encoding="utf-8")
        size = f"--window-size={WIDTH},{figure.layout.height}"
        shot = (f"--screenshot={picture.resolve()}", f"--user-data-dir={folder}/profile", page.as_uri())
        subprocess.run([browser, *FLAGS, size, *shot], check=True, capture_output=True, timeout=120)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
