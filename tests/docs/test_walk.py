"""Every block of commands on the pages runs as it stands there, on small data; marked ones say what they need."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.walk import STEPS
from tests.docs.commands import run_block
from tests.docs.home import make_home, shown_files
from tests.docs.pages import PAGES, ROOT, Block, blocks

RUN = [block for page in PAGES if page != "README.zh-CN.md" for block in blocks(page) if block.is_shell and block.needs is None]
"""The Chinese README has the commands of the English one: test_readmes.py."""

PYTHON_ELSEWHERE = {"docs/distil.md": "tests/core/test_simple.py"}
"""Pages whose Python is run there."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all pages: as for a reader, a later block finds what an earlier one left."""
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.mark.parametrize("block", RUN, ids=str)
@pytest.mark.slow
def test_the_commands_of_a_block_succeed(block: Block, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setattr("search.foresee.DRAWS_S", 1.0)  # of a dry run: not all that it can measure in half a minute
    run_block(block)


def test_every_python_on_the_pages_is_a_file_that_commands_use_or_run_by_a_test() -> None:
    files = {text: name for name, text in shown_files().items()}
    used = {word.partition(":")[0] for block in RUN for line in block.commands() for word in line.split()}
    for block in (block for page in PAGES for block in blocks(page) if block.language == "python"):
        if block.text in files:
            assert files[block.text] in used, f"no command runs {block}"
        else:
            runner = ROOT / PYTHON_ELSEWHERE[block.page]
            assert Path(block.page).name in runner.read_text(), f"{runner} does not run {block}"


def test_the_timed_walk_has_the_commands_of_the_pages() -> None:
    shells = [block for page in ("README.md", "docs/guide.md") for block in blocks(page) if block.is_shell]
    shown = {line.strip() for block in shells for line in block.commands()}
    elsewhere = ("install", "verify")  # in the first lines of a README: of this repository, of a bundle
    assert [command for name, command, _ in STEPS if command and name not in elsewhere and command not in shown] == []
