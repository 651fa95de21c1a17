"""The console script: paretopress run | export | refine | report | predict | latency ..., flags as the modules' own."""

from __future__ import annotations

import importlib
import sys

from core.cli import run_main
from core.errors import UserError
from core.tables import nearest

COMMANDS = {
    "run": "search.run",
    "export": "search.export_best",
    "refine": "search.refine",
    "report": "search.report",
    "explain": "search.explain",
    "dashboard": "search.dashboard",
    "tensorboard": "search.tensorboard",
    "doctor": "search.doctor",
    "predict": "core.predict",
    "pack": "core.pack",
    "latency": "core.latency",
    "agent": "core.agent",
    "hardware": "core.hardware",
}


def dispatch(argv: list[str]) -> int:
    """Run one command by name; UserError for an unknown one."""
    listed = ", ".join(COMMANDS)
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: paretopress COMMAND ...; commands: {listed}; paretopress COMMAND --help says more")
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}; known: {listed}")
    code: int = importlib.import_module(COMMANDS[argv[0]]).main(argv[1:])
    return code


def main() -> None:
    """The entry point of `paretopress`."""
    sys.exit(run_main(dispatch))
