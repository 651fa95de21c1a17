"""The pages of this repository as tests read them: code blocks with what they need, links, headings, names of files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "README.zh-CN.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md"]
PAGES += sorted(f"docs/{page.name}" for page in ROOT.glob("docs/*.md"))
SHELL = ("", "bash", "sh")
COMMAND = re.compile(r"(\.venv/bin/)?(python|optuna-dashboard|make|pip|ssh|export|npm|paretopress|ls|git|cd|for|sudo|python3)\b")
LOOP = re.compile(r"^for (\w+) in ([^\n]+); do\n(.+?)\n *done$", re.DOTALL | re.MULTILINE)
NEEDS = re.compile(r"\*(?:Needs: |需要：)(.+)[.。]\*")


@dataclass(frozen=True)
class Block:
    """A code block. `needs` is what the line before it says that it takes (hardware, data, time); None: tests run it."""

    page: str
    line: int
    language: str
    text: str
    needs: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def is_shell(self) -> bool:
        """Commands, in contrast to layouts, output and other languages."""
        return self.language in SHELL and COMMAND.match(self.text.strip()) is not None

    def commands(self) -> list[str]:
        """Its command lines: continued ones joined, loops written out, without comments."""
        joined = LOOP.sub(_written_out, self.text.replace("\\\n", " "))
        return [found for line in joined.splitlines() if (found := re.sub(r"(^|\s)#(\s.*)?$", "", line).strip())]


def _written_out(loop: re.Match[str]) -> str:
    """The body once for every value."""
    name, values, body = loop.groups()
    return "\n".join(re.sub(rf"\${name}\b|\${{{name}}}", value, body) for value in values.split())


@cache
def tokens(page: str) -> tuple[Token, ...]:
    """The page as markdown-it reads it."""
    return tuple(MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text(encoding="utf-8")))


def blocks(page: str) -> Iterator[Block]:
    """Every code block, fenced or indented, in order."""
    told = ""
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            marked = NEEDS.fullmatch(told)
            assert token.map is not None
            yield Block(page, token.map[0] + 1, token.info.strip(), token.content, marked and marked[1])
        if token.type != "paragraph_close":
            told = token.content if token.type == "inline" else ""


def inline(page: str) -> Iterator[Token]:
    """Every piece of running text: links, code in backticks."""
    for token in tokens(page):
        yield from token.children or ()


def links(page: str) -> list[str]:
    """Targets of links and pictures."""
    found = [token.attrGet("href") or token.attrGet("src") for token in inline(page) if token.type in ("link_open", "image")]
    return [str(target) for target in found]


def codes(page: str) -> list[str]:
    """What stands in backticks."""
    return [token.content for token in inline(page) if token.type == "code_inline"]


@cache
def anchors(page: str) -> frozenset[str]:
    """The anchors that GitHub gives to the page's headings: lower case, no punctuation, hyphens for spaces, repeated ones numbered."""
    found: list[str] = []
    stream = list(tokens(page))
    for heading, text in pairwise(stream):
        if heading.type == "heading_open":
            plain = "".join(child.content for child in text.children or ())
            slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            found.append(slug if slug not in found else f"{slug}-{found.count(slug)}")
    return frozenset(found)
