"""Every command of a page is one that the program understands, also where no test can run it."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections import defaultdict
from pathlib import Path

import pytest
import yaml

from core.config import Config
from core.errors import UserError
from core.yaml_io import parse
from search.digest import space_digest
from search.setup import build_parser, resolve_arguments
from search.space import Space
from tests.docs.commands import ELSEWHERE, TESTED, Call, calls, known_flags
from tests.docs.home import make_home
from tests.docs.pages import PAGES, ROOT, SHELL, Block, blocks, codes

BLOCKS = [block for page in PAGES for block in blocks(page)]
SHELLS = [block for block in BLOCKS if block.is_shell]
ADDED_TO = {"docs/recipes.md": "spaces/recipes/resnet32x4_resnet8x4.yaml"}
"""Page -> the space of the commands to which its settings are added."""
FENCED = ("", "bash", "python", "yaml", "text", "mermaid", "csv")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of."""
    return make_home(tmp_path_factory.mktemp("home"))


def searches() -> list[tuple[str, Call]]:
    """Every search that a block or running text of a page starts, and where."""
    lines = [(str(block), line) for block in SHELLS for line in block.commands()]
    lines += [(page, text) for page in PAGES for text in codes(page) if text.startswith("python -m search.run --") and "..." not in text]
    return [(where, call) for where, line in lines for call in calls(line) if call.module == "search.run"]


def check_call(call: Call, where: str) -> None:
    if call.module == "pip":  # to look for it is to import setuptools' hooks, which warn
        return
    if call.module.endswith(".verify"):  # a bundle's own program: tests/core/test_bundle_verify.py
        return
    assert importlib.util.find_spec(call.module) is not None, f"{where}: there is no module {call.module}"
    unknown = set(call.flags()) - (known_flags(call.module) if call.flags() else set())
    assert not unknown, f"{where}: {call.module} has no {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("block", SHELLS, ids=str)
def test_every_command_in_a_block_has_the_flags_of_its_program(block: Block) -> None:
    for line in block.commands():
        for call in calls(line):
            check_call(call, str(block))


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_running_text_has_the_flags_of_its_program(page: str) -> None:
    for text in codes(page):
        for call in calls(text) if re.match(r"python (-m )?\w", text) else []:
            check_call(call, page)


def test_every_program_in_running_text_is_run_by_a_block_or_by_tests_of_its_own() -> None:
    in_blocks = {call.module for block in SHELLS if block.needs is None for line in block.commands() for call in calls(line)}
    named = {call.module for page in PAGES for text in codes(page) if re.match(r"python -m \w", text) for call in calls(text)}
    named -= {"pip", *ELSEWHERE}
    assert named - in_blocks == set(TESTED)
    for module, test in TESTED.items():
        package, _, name = map(re.escape, module.rpartition("."))
        started = rf"from {package} import .*\b{name}\b|from {package}\.{name} import .*\bmain\b|\"{package}\.{name}\""
        assert re.search(started, (ROOT / test).read_text()), module


def test_settings_that_stand_alone_are_valid(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a block, or in a table: to be added to a command."""
    monkeypatch.chdir(home)
    alone = [(str(block), block.text) for block in BLOCKS if block.text.startswith("--set ")]
    alone += [(page, text) for page in PAGES for text in codes(page) if re.match(r"--set \S+=\S|--set '", text)]
    assert len(alone) > 10
    for where, text in alone:
        words = shlex.split(text)
        if any(re.fullmatch(r"[\w.]+=([A-Z]+|\.\.\.|value)", word) for word in words):
            continue  # a placeholder
        words += ["--model", "my_net.py:build"] if "student.name=self" in words else []
        try:
            resolve_arguments(
                build_parser().parse_args(["--space", ADDED_TO.get(where, "spaces/digits.yaml"), "--data-dir", "my_images", *words])
            )
        except UserError as error:
            pytest.fail(f"{where}: {text}: {error}")


def test_every_search_on_the_pages_has_a_space_and_settings_that_are_valid(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    assert len(searches()) > 50
    for where, call in searches():
        if {"--plugin", "--help"} & set(call.words):
            continue  # what a plugin registers is known after it has run: test_walk.py runs it
        try:
            resolve_arguments(build_parser().parse_args(list(call.words)))
        except UserError as error:
            pytest.fail(f"{where}: {' '.join(call.words)}: {error}")


def test_every_study_on_the_pages_has_one_space_configuration_and_storage(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the second of two commands would be refused: a study cannot mean two things."""
    monkeypatch.chdir(home)
    meant: dict[str, dict[tuple[str, str | None], str]] = defaultdict(dict)
    for where, call in searches():
        if not {"--plugin", "--help", "--fresh", "--dry-run"} & set(call.words):
            args = build_parser().parse_args(list(call.words))
            name = args.study or (args.space.stem if args.space else "own")
            meant[name].setdefault((space_digest(*resolve_arguments(args))[0], args.storage), f"{where}: {' '.join(call.words)}")
    assert len(meant) > 20
    assert [list(found.values()) for found in meant.values() if len(found) > 1] == []


def test_every_yaml_on_the_pages_is_a_space_or_a_configuration_or_a_part_of_one() -> None:
    shown = [block for block in BLOCKS if block.language == "yaml"]
    assert shown
    for block in shown:
        data = yaml.safe_load(block.text)
        space = set(data) <= set(Space.model_fields) - {"config"} or "student" in data
        try:
            parse(Space, {"student": {"name": "resnet8"}} | data, str(block)) if space else parse(Config, data, str(block))
        except UserError as error:
            pytest.fail(str(error))


def test_code_blocks_are_of_languages_that_some_test_looks_at() -> None:
    assert {block.language for block in BLOCKS} <= set(FENCED)


NO_COMMANDS = ("--set ", "FOLDER/train/", "YAML -> Space", "search/      drives Optuna", "*Needs: ")
"""How blocks without a language begin that are no commands: settings, of which a test stands above, layouts, an example of such a line."""


def test_every_block_is_one_of_commands_that_tests_run_or_says_by_its_language_that_it_is_none() -> None:
    unlabelled = [block for block in BLOCKS if block.language in SHELL and not block.is_shell]
    assert [str(block) for block in unlabelled if not block.text.strip("'").startswith(NO_COMMANDS)] == []


def test_a_test_that_a_block_without_one_names_is_there() -> None:
    told = [block.needs for block in BLOCKS if block.needs]
    named = {path for needs in told for path in re.findall(r"`(tests/[\w/]+\.py)`", needs)}
    assert len(named) > 10
    assert [path for path in named if not (ROOT / path).is_file()] == []
