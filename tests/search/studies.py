"""Tiny real studies: the commands as a user calls them, on few images and single epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pytest
import torch
from PIL import Image
from torch import nn

from core.cli import run_main
from search import export_best, run

ROOT = Path(__file__).resolve().parents[2]
SPACE = str(ROOT / "spaces" / "digits.yaml")
EPOCHS = ["teacher.train.epochs=4", "parent.train.epochs=4", "finetune.epochs=2", "quantise.train.epochs=1"]
SMALL = [*EPOCHS, "teacher.name=resnet8", "runtime.max_s=0.02", "runtime.warmup_s=0"]
NARROW = ["student.name=resnet8", "student.width=[0.25, 0.5]"]


class Answer(NamedTuple):
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str


DOT = ["student.name=dot", "student.width=1", "teacher.name=dot", "data.train_limit=100", "finetune.epochs=1", "quantise.execution=int8"]
"""Settings for studies that are about something else than networks: a student that exports in no time (fixture `dot`)."""
ONE_NETWORK = [*DOT, "prune.ratio=0.3", "quantise.weight_bits=4", "quantise.execution=int8", "distil.temperature=4"]
"""The same, with no more to choose than a loss weight."""


class Dot(nn.Module):
    """One convolution and a classifier."""

    def __init__(self, *, classes: int, channels: int = 3, image_size: int = 32, width: float = 1.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 8, 3, padding=1)
        self.classifier = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.classifier(torch.relu(self.conv(images)).mean((2, 3)))


def command(*more: str, study: str = "tiny", settings: Sequence[str] = ()) -> list[str]:
    """Arguments of a tiny search on digits."""
    return ["--space", SPACE, "--study", study, *sets(SMALL), *sets(NARROW), *sets(settings), *more]


def sets(settings: Sequence[str]) -> list[str]:
    """`--set` for each."""
    return [word for setting in settings for word in ("--set", setting)]


def search(capfd: pytest.CaptureFixture[str], *argv: str) -> Answer:
    """`python -m search.run ARGV`, in this process."""
    return _answer(capfd, run.main, argv)


def export(capfd: pytest.CaptureFixture[str], *argv: str) -> Answer:
    """`python -m search.export_best ARGV`, in this process."""
    return _answer(capfd, export_best.main, argv)


def predict(capfd: pytest.CaptureFixture[str], *argv: str) -> Answer:
    """`python -m core.predict ARGV`, in this process."""
    from core import predict as command

    return _answer(capfd, command.main, argv)


def refused(answer: Answer) -> str:
    """The one line of an answer that refuses bad input."""
    assert answer.code == 2, answer
    lines = answer.err.splitlines()
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("error: "), answer.err
    return lines[0].removeprefix("error: ")


def _answer(capfd: pytest.CaptureFixture[str], main: Callable[[list[str]], int], argv: Sequence[str]) -> Answer:
    capfd.readouterr()
    code = run_main(main, list(argv))
    return Answer(code, *capfd.readouterr())


def load(name: str = "tiny", folder: Path | None = None) -> optuna.Study:
    """The study of a run below the working directory."""
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder or Path('runs') / name}/study.db")


def states(study: optuna.Study) -> list[str]:
    """State of every trial, by number."""
    return [trial.state.name for trial in study.get_trials(deepcopy=False)]


def begun(study: optuna.Study) -> list[str]:
    """The same without those that only wait."""
    return [state for state in states(study) if state != "WAITING"]


COLOURS = {"blue": (40, 60, 200), "green": (50, 190, 60), "red": (210, 50, 40)}


def blobs(folder: Path, per_class: int, size: int = 16, seed: int = 0) -> Path:
    """`folder/<colour>/*.png`: a disc of the class's colour at a random place on noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for index in range(per_class):
            image = random.integers(90, 160, (size, size, 3))
            y, x = random.integers(4, size - 4, 2)
            image[(rows - y) ** 2 + (columns - x) ** 2 <= 16] = colour
            Image.fromarray(image.astype(np.uint8)).save(folder / name / f"{index:03d}.png")
    return folder
