"""The recipes that are run with a small budget are those of the page, and their small budgets are valid."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from benchmarks.recipes import RECIPES, Recipe, cell, with_measured
from search.setup import build_parser, resolve_arguments
from tests.docs.pages import ROOT, codes
from tests.search.studies import sets

ROW = {
    "row": RECIPES[0].name,
    "arguments": RECIPES[0].arguments,
    "less": ["data.train_limit=5000"],
    "data": {"name": "cifar10"},
    "teacher": {"search_accuracy": 0.75, "size_bytes": 7_900_000, "p50_ms": 1.0},
    "seconds": 90.0,
    "trials": {"COMPLETE": 2, "PRUNED": 1},
    "found": [
        {"on_front": True, "search_accuracy": 0.5, "size_bytes": 1000, "p50_ms": 0.1},
        {"on_front": True, "search_accuracy": 0.625, "size_bytes": 2000, "p50_ms": 0.2, "stable": False},
        {"on_front": False, "search_accuracy": 0.7, "size_bytes": 3000, "p50_ms": 0.3},
    ],
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_is_a_command_of_the_page_with_other_values_of_known_settings(recipe: Recipe) -> None:
    assert f"python -m search.run {recipe.arguments}" in codes("docs/recipes.md")
    args = build_parser().parse_args([*shlex.split(recipe.arguments), *sets(list(recipe.less))])
    resolve_arguments(args)


def test_the_page_says_the_most_accurate_point_of_the_front_and_what_was_less() -> None:
    said = "62.5 %, 2.0 KB, 0.200* ms (teacher 75.0 %, 7,900.0 KB, 1.000 ms); 3 trials, 1.5 min, `data.train_limit=5000`"
    assert cell(ROW) == said
    assert cell(ROW | {"data": {"name": "digits"}}) == f"on digits: {said}"


def test_only_the_last_cell_of_a_recipes_line_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    result = tmp_path / "recipes.json"
    monkeypatch.setattr("benchmarks.recipes.RESULT", result)
    result.write_text('{"together": {}, "rows": []}')
    nothing = with_measured(page)
    written = [
        new for old, new in zip(page.split("\n"), nothing.split("\n"), strict=True) if old != new or new.endswith("| not measured yet |")
    ]
    assert len(written) == len(RECIPES)  # what has no row has no figures
    assert all(line.endswith("| not measured yet |") for line in written)
    device = {"cpu": "Some CPU", "isa": ["avx2", "avx512_vnni"], "machine": "x86_64", "cores": 2}
    result.write_text(json.dumps({"together": {RECIPES[0].name: {"device": device}}, "rows": [ROW]}))
    changed = [pair for pair in zip(nothing.split("\n"), with_measured(page).split("\n"), strict=True) if pair[0] != pair[1]]
    assert [new.split(" | ")[:2] for _, new in changed] == [changed[0][0].split(" | ")[:2]]
    assert changed[0][1].endswith(f"| {cell(ROW)}; Some CPU, AVX-512 VNNI |")
