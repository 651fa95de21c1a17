"""The report as one web page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from results import report_text
from results.view import StudyView
from results.web import document, figure_html, table_html

if TYPE_CHECKING:
    from results.report import Section


def page(view: StudyView, sections: Sequence[Section]) -> str:
    """The whole document, UTF-8."""
    tiles = "".join(
        f"<div><b>{escape(value)}</b><i>{escape(what)}</i>{escape(note)}</div>" for what, value, note in report_text.highlights(view)
    )
    contents = " · ".join(f'<a href="#{_anchor(section.title)}">{escape(section.title)}</a>' for section in sections)
    parts = (
        f"<p>{escape(report_text.opening(view))}</p>",
        f'<div class="tiles">{tiles}</div>' if tiles else "",
        f"<nav>{contents}</nav>",
        "<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>",
        "".join(_section(section) for section in sections),
    )
    return document(f"Study {view.name}", "\n".join(part for part in parts if part))


def _section(section: Section) -> str:
    text = "".join(f"<p>{escape(line)}</p>" for line in section.text.split("\n") if line)
    figures = "".join(figure_html(f"{_anchor(section.title)}-{index}", figure) for index, figure in enumerate(section.figures))
    table = table_html(section.table.headings, section.table.rows) if section.table is not None else ""
    if table and section.folded:
        table = f"<details><summary>Show them</summary>{table}</details>"
    return f'<section id="{_anchor(section.title)}"><h2>{escape(section.title)}</h2>{text}{figures}{table}</section>\n'


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
