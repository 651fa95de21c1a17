"""The messages on the page are those of the program."""

from __future__ import annotations

import ast
import re

from tests.docs.pages import ROOT, tokens

RUN_OF_WORDS = 4
"""So many words in a row are taken from a message's fixed text, not found by chance."""
STANDS_FOR = re.compile(r"\.\.\.|\d|/|^'|'$|openvino|onnxruntime|tensorrt")
"""A word of a message that another run has otherwise."""
LEAST = 0.25
"""Of a message's runs without such words: the others are where two texts of the sources meet."""
SHORT = re.compile(r"unrecognized \w+: |unknown \w+( \w+)? |[\w.]+, line \d+, column \d+: |[\w.]+:\d+ raised |[\w.]+ has no function ")
"""Messages with little text of their own."""


def spoken() -> list[list[str]]:
    """The fixed parts of every text in the sources but docstrings, f-strings in pieces."""
    found = []
    for package in ("core", "objectives", "results", "search"):
        for path in (ROOT / package).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
            for node in ast.walk(tree):
                if isinstance(node, ast.JoinedStr):
                    found.append([part.value for part in node.values if isinstance(part, ast.Constant)])
                elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
                    found.append([node.value])
    return found


def messages() -> list[str]:
    """The first cells of the page's tables."""
    found = []
    stream = tokens("docs/troubleshooting.md")
    for row, text in zip(stream, stream[2:], strict=False):
        if row.type == "tr_open" and text.type == "inline":
            found += [child.content.strip() for child in text.children or () if child.type == "code_inline"]
    return found


def runs(text: str) -> set[tuple[str, ...]]:
    """Every run of RUN_OF_WORDS words in `text`."""
    words = re.findall(r"[^\s;:,()]+", text)
    return {tuple(words[start : start + RUN_OF_WORDS]) for start in range(len(words) - RUN_OF_WORDS + 1)}


def test_every_message_of_the_page_is_one_that_the_program_says() -> None:
    known = {run for parts in spoken() for part in parts for run in runs(part)}
    listed = messages()
    assert len(listed) > 100
    for message in listed:
        own = {run for run in runs(message) if not any(STANDS_FOR.search(word) for word in run)}
        said = len(own & known)
        assert SHORT.match(message) or said >= max(1, LEAST * len(own)), f"no source says {message!r} ({said} of {len(own)} runs of words)"


def test_every_message_has_a_cause_and_a_remedy() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| Message")]
    assert len(rows) > 90
    for row in rows:
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]
        assert len(cells) == 3, row
        assert all(cells), row
