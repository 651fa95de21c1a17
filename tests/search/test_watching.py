"""Watching a real run: its epochs as numbers, and what a terminal shows of it."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from core.yaml_io import load_config
from results.front import front
from results.record import read_records
from tests.search.studies import ROOT, SMALL, command, load


def test_the_epochs_of_every_training_of_a_run_have_the_learning_rate_of_its_recipe(again: Path) -> None:
    lines, facts = pd.read_csv("runs/tiny/epochs.csv"), json.loads(Path("runs/tiny/run.json").read_text())
    config = load_config("digits", SMALL, ROOT)
    recipes = {"teacher": config.teacher.train, "parent": config.parent.train, "distil": config.finetune, "quantise": config.quantise.train}
    assert set(lines["stage"]) == set(recipes)
    for stage, recipe in recipes.items():
        assert (recipe.schedule, recipe.optimiser) == ("one_cycle", "sgd")
        steps = math.ceil(facts["data"]["train"] / recipe.batch_size)
        total = round(recipe.epochs * steps)
        rising = round(0.2 * total)
        last = np.array([round(epoch * steps) - 1 for epoch in lines[lines["stage"] == stage]["epoch"]])
        # up from a fifth of lr over the first fifth of the steps, then down to 2 %
        law = np.where(last < rising, 0.2 + 0.8 * last / rising, 0.02 + 0.98 * (total - last) / (total - rising))
        assert list(lines[lines["stage"] == stage]["lr"]) == pytest.approx(list(recipe.lr * law), rel=1e-4)
    looked = lines.groupby("stage")["accuracy"].apply(lambda column: column.notna().all())
    assert dict(looked) == {"teacher": False, "parent": False, "distil": True, "quantise": True}


@pytest.mark.slow
def test_on_a_terminal_a_continued_study_shows_its_front_from_the_start(again: Path) -> None:
    known = front(read_records(load()))
    assert len(known) > 0
    shown = on_a_terminal(*command("--trials", "2"))
    before = shown[: shown.index("ready in")]
    assert "2 of 2 trials" in before
    for record in known:
        assert record.measurement is not None
        assert f"{100 * record.measurement.accuracy:.2f}" in before


def on_a_terminal(*argv: str) -> str:
    """What `python -m search.run ARGV` draws on a terminal, without its control sequences."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    process = subprocess.Popen([sys.executable, "-m", "search.run", *argv], stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=env)
    os.close(theirs)
    drawn = b""
    try:
        while part := os.read(ours, 65536):
            drawn += part
    except OSError:  # Linux: how a terminal ends whose last process has closed it
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0, drawn
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
