"""The commands of the pages: what module a line starts, which flags that one has, and how it is run on small data."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

from core.cli import run_main
from core.data import DATASETS
from core.losses import DISTIL_LOSSES
from core.quantise import QUANTISERS
from core.students import STUDENTS
from tests.docs.pages import ROOT, Block
from tests.search.studies import sets

EPOCHS = ["teacher.train.epochs=0.5", "parent.train.epochs=0.5", "finetune.epochs=0.5", "quantise.train.epochs=0.5"]
FEW = [*EPOCHS, "data.train_limit=150", "quantise.calibration_images=64", "runtime.max_s=0.02", "runtime.warmup_s=0"]
SMALL = {"search.run": [*sets(FEW), "--trials", "1"], "core.latency": ["--max-s", "0.05"]}
"""What is appended to a command in tests: the later flag counts, so a run ends after one trial of half epochs."""
SERVER = "tests/search/test_dashboard.py"
TESTED = {
    "benchmarks.interval_coverage": "tests/benchmarks/test_interval_coverage.py",
    "core.agent": "tests/core/test_agent.py",
    "core.engines": "tests/core/test_engines.py",
    "core.hardware": "tests/core/test_hardware.py",
    "core.pack": "tests/core/test_pack.py",
    "core.students.zoo": "tests/core/test_zoo.py",
    "search.doctor": "tests/search/test_doctor.py",
    "search.refine": "tests/search/test_refine.py",
    "search.schema": "tests/search/test_schema.py",
    "search.tensorboard": "tests/search/test_tensorboard.py",
}
"""Programs that stand in running text alone, and what runs them."""
ELSEWHERE = {"optuna-dashboard": SERVER, "search.dashboard": SERVER, "make": ".ci/run"}
"""Programs and modules that do not end by themselves, or take minutes: they are run there."""


@dataclass(frozen=True)
class Call:
    """`python -m module words`."""

    module: str
    words: tuple[str, ...]

    def flags(self) -> list[str]:
        """Its flags without their values; of arguments to other programs there are none."""
        return [word.partition("=")[0] for word in self.words if re.fullmatch(r"--[a-z][a-z-]*(=.*)?", word)]


def calls(line: str) -> list[Call]:
    """The modules that a command line starts; empty for other programs."""
    found = []
    for part in re.split(r"\s*[;|&]\s*(?=$|\s|python|\.venv)", line):
        match = re.match(r"(?:\.venv/bin/)?python\s+(?:-m\s+([\w.]+)|([\w/]+)\.py)(.*)", part.strip(), re.DOTALL)
        if match:
            module = match[1] or match[2].replace("/", ".")
            found.append(Call(module, tuple(shlex.split(match[3]))))
    return found


@cache
def known_flags(module: str) -> frozenset[str]:
    """The flags of a module and of its sub-commands: those of its help, of a benchmark those of its source."""
    if module.startswith("benchmarks."):  # importing one takes seconds
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
        found = frozenset(re.findall(r'"(--[a-z][a-z-]*)"', source))
        return found.union(*(known_flags(shared) for shared in re.findall(r"^from (benchmarks\.\w+) import", source, re.MULTILINE)))
    said = help_of(module)
    commands = re.search(r"{([\w,-]+)}", said)
    for command in commands[1].split(",") if commands else []:
        said += help_of(module, command)
    return frozenset(re.findall(r"--[a-z][a-z-]*", said))


def help_of(module: str, *words: str) -> str:
    """What `python -m module words --help` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(main_of(module)).main([*words, "--help"])
    return out.getvalue()


def main_of(module: str) -> str:
    """The module that holds `main`: a package's stands in the file that its __main__ imports it from."""
    package = ROOT / module.replace(".", "/") / "__main__.py"
    match = re.search(r"from ([\w.]+) import main", package.read_text()) if package.exists() else None
    return match[1] if match else module


def run_block(block: Block) -> None:
    """Run the commands of a block, one after the other, in the working directory; every one must succeed."""
    for line in block.commands():
        assert run_line(line) == 0, f"{block}: {line}"


def run_line(line: str) -> int:
    """One command line; its exit code."""
    program = line.split()[0]
    if program in ELSEWHERE:
        return int(program == "make" and f"{line.split()[1]}:" not in (ROOT / "Makefile").read_text())
    found = calls(line)
    assert found, f"no test runs {line!r}; mark its block with what it needs"
    if "|" in line:
        return subprocess.run(["bash", "-c", re.sub(r"\bpython\b", sys.executable, line)], check=False, cwd=Path.cwd()).returncode
    code = 0
    for call in found:
        if call.module in ELSEWHERE:
            continue
        main = importlib.import_module(main_of(call.module)).main
        with contextlib.ExitStack() as process:
            for table in (DATASETS, DISTIL_LOSSES, QUANTISERS, STUDENTS):  # what a plugin registers goes with its process
                process.enter_context(patch.dict(table))
            code = code or run_main(main, [*call.words, *SMALL.get(call.module, ())])
    return code
