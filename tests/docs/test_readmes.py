"""The two READMEs say the same, and their figures are those of the committed results."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.docs.pages import ROOT, blocks, links, tokens

ENGLISH, CHINESE = "README.md", "README.zh-CN.md"


def test_the_figures_of_both_are_written_from_the_results() -> None:
    done = subprocess.run([sys.executable, "benchmarks/readme.py", "--check"], check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_both_have_the_same_sections_commands_tables_and_links() -> None:
    def shape(page: str) -> list[tuple[str, str]]:
        return [(token.type, token.tag) for token in tokens(page) if token.type in ("heading_open", "table_open", "tr_open", "fence")]

    def commands(page: str) -> list[list[str]]:
        return [block.commands() for block in blocks(page)]

    assert shape(ENGLISH) == shape(CHINESE)
    assert commands(ENGLISH) == commands(CHINESE)
    assert set(links(ENGLISH)) - {CHINESE} == set(links(CHINESE)) - {ENGLISH}


def test_both_have_the_same_measured_numbers() -> None:
    def numbers(page: str) -> list[str]:
        measured = (ROOT / page).read_text(encoding="utf-8").split("<!-- measured: begin -->")[1].split("<!-- measured: end -->")[0]
        return sorted(re.findall(r"\d[\d.,]*\d|\d", measured))

    assert numbers(ENGLISH) == numbers(CHINESE)
