"""From a command line to a checked space and configuration, without waiting for torch."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from core.errors import UserError
from search.setup import _names, build_parser, load_plugins, resolve_arguments
from tests.search.studies import ROOT, SPACE

TABLES = [("core/losses.py", "DISTIL_LOSSES"), ("core/quantise/__init__.py", "QUANTISERS")]


def resolve(*argv: str):
    return resolve_arguments(build_parser().parse_args(argv))


def message(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        resolve(*argv)
    return str(caught.value)


@pytest.mark.parametrize(("file", "table"), TABLES)
def test_names_read_from_a_tables_source_are_those_of_the_table(file: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import core.losses
    import core.quantise

    real = {"DISTIL_LOSSES": core.losses.DISTIL_LOSSES, "QUANTISERS": core.quantise.QUANTISERS}[table]
    assert _names(file, table) == list(real)
    monkeypatch.delitem(sys.modules, file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    assert _names(file, table) == list(real)


BAD = [
    ["--help"],
    ["--trials", "0", "--space", SPACE],
    ["--space", SPACE, "--set", "distil.loss=kdd"],
    ["--space", SPACE, "--set", "quantise.quantiser=lsqq"],
    ["--space", SPACE, "--set", "student.nmae=resnet8"],
    ["--space", SPACE, "--storage", "nonsense"],
    ["--space", "missing.yaml"],
    ["--model", "missing.py:build"],
]


def test_help_and_bad_input_are_answered_within_a_second_and_without_torch() -> None:
    code = f"""
import sys, time
start = time.perf_counter()
from core.cli import run_main
from search.run import main
for argv in {BAD!r}:
    try:
        assert run_main(main, argv) == 2
    except SystemExit as end:
        assert end.code == 0
assert not {{"torch", "onnx", "sklearn", "pandas", "plotly"}} & set(sys.modules), sorted(sys.modules)
"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == len(BAD) - 1
    assert time.perf_counter() - start < 10  # one takes 0.4 s on an idle machine; this one is shared


def test_flags_are_short_names_of_keys() -> None:
    space, config = resolve("--space", SPACE, "--seed", "7", "--skip-bad", "--max-latency-ms", "1e-3", "--max-size-kb", "20")
    assert (config.seed, config.data.skip_bad) == (7, True)
    assert (space.constraints.latency_ms, space.constraints.size_kb) == (0.001, 20.0)


@pytest.mark.parametrize("name", ["2024", "yes", "null", "a: b", "a #b", "[x]", "0x10", "ä é"])
def test_any_folder_name_is_a_folder_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    Path("net.py").write_text("def build(): ...")
    config = resolve("--model", "net.py:build", "--data-dir", name)[1]
    assert (config.data.dir, config.data.name) == (Path(name), "folder")
    config = resolve("--model", "net.py:build", "--data-dir", name, "--set", "data.name=cifar10")[1]
    assert (config.data.dir, config.data.name) == (Path(name), "cifar10")


def test_a_plugin_adds_names_and_may_import_its_neighbours(tmp_path: Path) -> None:
    from core.losses import DISTIL_LOSSES
    from core.students import STUDENTS

    (tmp_path / "neighbour_of_the_plugin.py").write_text("def build(**keywords): ...\n")
    (tmp_path / "mine.py").write_text(
        "from core.losses import DISTIL_LOSSES\nfrom core.students import STUDENTS\nfrom core.tables import register\n"
        "from neighbour_of_the_plugin import build\n"
        "register(STUDENTS, 'mine', build)\nregister(DISTIL_LOSSES, 'my_loss', lambda *a: a)\n"
    )
    try:
        load_plugins([tmp_path / "mine.py"])
        space, _ = resolve("--space", SPACE, "--set", "student.name=mine", "--set", "distil.loss=my_loss")
        assert (space.student.name, space.distil.loss) == ("mine", "my_loss")
        with pytest.raises(UserError, match="the name 'mine' is taken; register yours under another name"):
            load_plugins([tmp_path / "mine.py"])
    finally:
        STUDENTS.pop("mine", None)
        DISTIL_LOSSES.pop("my_loss", None)


def test_a_plugin_that_raises_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("\nraise ValueError('no\\nidea')\n")
    with pytest.raises(UserError, match=r"broken.py:2 raised ValueError while being loaded as a plugin: no idea$"):
        load_plugins([tmp_path / "broken.py"])
    with pytest.raises(UserError, match="--plugin must be a Python file, but there is no "):
        load_plugins([tmp_path / "missing.py"])


def test_what_must_go_together_is_said() -> None:
    assert message() == "say what to search: --space spaces/digits.yaml, or your own network with --model my_net.py:build --data-dir FOLDER"
    assert message("--space", SPACE, "--set", "student.name=self", "--set", "student.width=1").startswith("student.name self is your own")
    assert message("--model", f"{__file__}:build") == "the data set 'folder' needs a folder, but none is named; give --data-dir FOLDER"


def test_flags_are_not_abbreviated_and_misspelt_ones_get_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unrecognized arguments: --trails 3, did you mean '--trials'\? see python -m search.run --help"):
        build_parser().parse_args(["--trails", "3"])
    with pytest.raises(UserError, match="unrecognized arguments: --stor"):
        build_parser().parse_args(["--stor", "sqlite:///x.db"])
