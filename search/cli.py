"""The console script: paretopress run | export | refine | report | predict | latency ..., flags as the modules' own."""

from __future__ import annotations

import importlib
import sys

from core.cli import run_main
from core.errors import UserError
from core.tables import nearest

COMMANDS = {
    "run": ("search.run", "search for the front"),
    "export": ("search.export_best", "write one point of the front as a folder"),
    "refine": ("search.refine", "train the best points further, and compare them"),
    "report": ("search.report", "what a study found, as a web page"),
    "explain": ("search.explain", "one model: bytes and milliseconds per layer"),
    "dashboard": ("search.dashboard", "optuna-dashboard of a study"),
    "tensorboard": ("search.tensorboard", "its epochs in TensorBoard"),
    "doctor": ("search.doctor", "check a study and its folder, and repair them"),
    "predict": ("core.predict", "classify images with an exported model"),
    "pack": ("core.pack", "pack, unpack and inspect weight files"),
    "latency": ("core.latency", "time any ONNX classifier"),
    "agent": ("core.agent", "measure on this device for a search elsewhere"),
    "hardware": ("core.hardware", "this device, and its runtimes"),
}
"""Name -> module, and what it does."""


def dispatch(argv: list[str]) -> int:
    """Run one command by name; UserError for an unknown one."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<12}{what} (python -m {module})" for name, (module, what) in COMMANDS.items()]
        print("\n".join(["usage: paretopress COMMAND ...", *lines, "paretopress COMMAND --help says more."]))
        return 0
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}; known: {', '.join(COMMANDS)}")
    code: int = importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
    return code


def main() -> None:
    """The entry point of `paretopress`."""
    sys.exit(run_main(dispatch))
