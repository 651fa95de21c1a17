"""What a page points at is there."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath
from urllib.parse import unquote

import pytest

from tests.docs.pages import PAGES, ROOT, anchors, codes, links

FILE = re.compile(r"(core|search|results|objectives|tests|spaces|configs|benchmarks|docs)/[\w./-]+")
WRITTEN_BY_RUNS = ("benchmarks/tables/", "benchmarks/results/")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading_that_are_there(page: str) -> None:
    for target in links(page):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = unquote(target).partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page} links to {target}, which is not there"
        assert not anchor or anchor in anchors(str(file.resolve().relative_to(ROOT))), f"{page} links to {target}: no such heading"


def test_every_link_of_the_notebook_leads_to_a_file_that_is_there() -> None:
    cells = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    targets = re.findall(r"\]\(([^)#]+)", text)
    assert targets
    assert not [target for target in targets if not (ROOT / "docs" / target).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_repository_that_a_page_names_is_there(page: str) -> None:
    for name in codes(page):
        if FILE.fullmatch(name) and not name.startswith(WRITTEN_BY_RUNS):
            assert (ROOT / name).exists(), f"{page} names {name}, which is not there"


def test_every_page_is_reached_by_links_from_the_readme() -> None:
    seen, ahead = set(), ["README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen:
            continue
        seen.add(page)
        for target in links(page):
            path = target.partition("#")[0]
            if path.endswith(".md") and ":" not in path:
                ahead.append(str(((ROOT / page).parent / path).resolve().relative_to(ROOT)))
    assert {page for page in PAGES if PurePosixPath(page).parent.name in ("", "docs")} <= seen
