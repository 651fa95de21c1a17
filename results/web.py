"""The frame of every web page: plotly's script inside, light and dark as the reader's system asks, nothing loaded from a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
COLOURS = {
    "light": {"ink": "#1f2733", "soft": "#556072", "grid": "#e3e7ee", "line": "#8b95a5", "card": "#ffffff", "page": "#f3f5f9"},
    "dark": {"ink": "#e4e8ef", "soft": "#a3aebd", "grid": "#2b3442", "line": "#6d7989", "card": "#171d27", "page": "#0e131a"},
}
SERIES = ("#5b73f2", "#dd8410", "#2f9e77", "#b563c4", "#8792a2", "#d8504d", "#2a97b8", "#a3862a", "#7a6ff0")
# On a white page and on a dark one each of them has a contrast of 3:1 or more.
ACCENT, DIM, STAR, BAD = "#5b73f2", "#8792a2", "#dd8410", "#d8504d"
# Buttons are named so that none that uploads the data to a service is there.
CONFIG = {"displaylogo": False, "responsive": True, "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]]}
PANEL, ROOM, AXIS, COLUMN = 270, 480, 100, 24
"""Pixels that a panel, one of three dimensions, one of parallel axes and a column of a grid need at least."""
DRAWN = '<script type="application/json" data-plot='
"""How a figure's data begin in a page."""


def document(title: str, body: str) -> str:
    """The whole page, UTF-8. `title` is plain text, `body` HTML with the figures and tables of this file."""
    from plotly.offline import get_plotlyjs

    parts = {
        "TITLE": escape(title),
        "BODY": body,
        "TEMPLATES": _json({name: template(name) for name in COLOURS}),
        "CONFIG": _json(CONFIG),
        "POLICY": POLICY,
        "STYLE": STYLE,
        "PLOTLY": get_plotlyjs() if DRAWN in body else "",
        "SCRIPT": SCRIPT,
    }
    # one pass: what is put in is not searched again, so no name of the user's can stand for a part
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: parts[match[1]], PAGE)


def template(name: str) -> dict[str, Any]:
    """Plotly's template of the light or the dark page."""
    colours = COLOURS[name]
    axis = {
        "gridcolor": colours["grid"],
        "linecolor": colours["line"],
        "showline": True,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": colours["line"],
        "title": {"standoff": 12},
    }
    room = {**axis, "title": {}, "backgroundcolor": colours["card"], "showbackground": True}
    room |= {"color": colours["ink"], "zerolinecolor": colours["grid"]}
    layout = {
        "paper_bgcolor": colours["card"],
        "plot_bgcolor": colours["card"],
        "font": {"family": FONT, "size": 13, "color": colours["ink"]},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 55},
        "xaxis": axis | {"automargin": True},
        "yaxis": axis | {"automargin": True},
        "scene": {"xaxis": room, "yaxis": room, "zaxis": room},
        "hoverlabel": {"align": "left", "bgcolor": colours["card"], "bordercolor": colours["line"], "font": {"color": colours["ink"]}},
        "colorway": list(SERIES),
    }
    return {"layout": layout, "data": {"scatter3d": [{"textfont": {"color": colours["ink"], "size": 11}}]}}


def figure_html(name: str, figure: go.Figure) -> str:
    """A figure under the id `name`; the page draws it in its own template. On a narrow screen it is pushed sideways, as a table is."""
    drawn = json.loads(figure.to_json())
    drawn["layout"].pop("template", None)  # the page's own comes with the light or dark scheme
    look = f"height:{drawn['layout'].get('height', 400)}px;min-width:{least_width(drawn)}px"
    place = f'<div class="scroll"><div class="plot" id="{name}" style="{look}"></div></div>'
    return f'{place}{DRAWN}"{name}">{_json(drawn)}</script>'


def least_width(drawn: Mapping[str, Any]) -> int:
    """Pixels below which a figure cannot be read: so many for each panel beside another, axis of parallel ones, or column of a grid."""
    layout, first = drawn["layout"], drawn["data"][0]
    panels = {tuple(axis.get("domain", ())) for key, axis in layout.items() if key.startswith("xaxis")}
    parts = {"scatter3d": ROOM, "parcoords": len(first.get("dimensions", ())) * AXIS, "heatmap": len(first.get("x", ())) * COLUMN}
    return int(layout.get("margin", {}).get("l", 0) + max(PANEL * len(panels), PANEL, parts.get(first["type"], 0)))


def table_html(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain cells; numbers keep to one line."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td{_kind(cell)}>{_code(escape(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _code(text: str) -> str:
    """Escaped text with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text)


def _kind(cell: str) -> str:
    return ' class="number"' if re.match(r"^(-|-?[\d.,]+\*?( \(.*\))?)$", cell) else ""


def _json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


# The browser itself then refuses whatever a script might want to load. Plotly compiles its shaders' glue (eval) and saves pictures (blob).
POLICY = "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:"

SCRIPT = """
const read = (selector) => JSON.parse(document.querySelector(selector).textContent);
const templates = read("#templates"), config = read("#config");
const dark = matchMedia("(prefers-color-scheme: dark)");
const finger = matchMedia("(pointer: coarse)").matches;  // it pushes a wide figure sideways where a mouse would zoom
function draw() {
  const template = templates[dark.matches ? "dark" : "light"];
  for (const node of document.querySelectorAll("script[data-plot]")) {
    const figure = JSON.parse(node.textContent);
    const still = finger && !figure.layout.scene ? {dragmode: false} : {};
    Plotly.react(node.dataset.plot, figure.data, {...figure.layout, ...still, template}, config);
  }
}
if (window.Plotly) { draw(); dark.addEventListener("change", draw); }
"""

STYLE = (
    ":root{"
    + "".join(f"--{key}:{value};" for key, value in COLOURS["light"].items())
    + "--accent:#3346c8;color-scheme:light dark}\n@media (prefers-color-scheme:dark){:root{"
    + "".join(f"--{key}:{value};" for key, value in COLOURS["dark"].items())
    + """--accent:#93a4ff}}
body { font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink); background: var(--page); margin: 0; }
main { max-width: 1240px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; margin: 0 0 8px; }
h2 { font-size: 19px; margin: 0 0 6px; }
p, nav { color: var(--soft); max-width: 100ch; margin: 4px 0 14px; }
nav { font-size: 13px; }
a { color: var(--accent); }
section { padding: 22px 26px; margin: 18px 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 14px; margin: 16px 0; }
.tiles div, section { background: var(--card); border: 1px solid var(--grid); border-radius: 12px; }
.tiles div { flex: 1 1 220px; padding: 14px 18px; color: var(--soft); font-size: 13px; }
.tiles b { display: block; font-size: 26px; color: var(--ink); font-variant-numeric: tabular-nums; }
.tiles i { display: block; font-style: normal; font-weight: 600; color: var(--ink); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; min-width: 60%; }
th { font-weight: 600; border-bottom: 2px solid var(--line); text-align: left; }
th, td { padding: 5px 12px 5px 0; vertical-align: top; }
td { border-bottom: 1px solid var(--grid); }
td.number { white-space: nowrap; }
.parcoords .axis path, .parcoords .axis line { stroke: var(--line) !important; }
.parcoords text { text-shadow: none !important; }
summary { cursor: pointer; color: var(--accent); }
"""
)

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{POLICY}}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{TITLE}}</title>
<link rel="icon" href="data:,">
<style>{{STYLE}}</style>
</head>
<body><main>
<h1>{{TITLE}}</h1>
{{BODY}}
</main>
<script type="application/json" id="templates">{{TEMPLATES}}</script>
<script type="application/json" id="config">{{CONFIG}}</script>
<script>{{PLOTLY}}</script>
<script>{{SCRIPT}}</script>
</body>
</html>
"""
