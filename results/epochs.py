"""Every epoch of every trial as a line of `epochs.csv`: written while a study runs, read by the report."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from core.files import appending


class Epoch(NamedTuple):
    """One line. `trial` is None for the teacher; `loss` is the mean over the epoch; `epochs` may be fractional.

    Accuracy is that on a part of the search split (`objectives/rungs.py`), of the trainings that end in a candidate alone: not of
    teacher, parent and dense network. The learning rate `lr` is that of the epoch's last step; an older version did not write all.
    """

    trial: int | None
    stage: str
    epoch: float
    epochs: float
    images_per_s: float
    loss: float
    lr: float | None = None
    accuracy: float | None = None


def append_epoch(path: Path, epoch: Epoch) -> None:
    """Add a line, and the heading where the file is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with appending(path, ",".join(Epoch._fields)) as file:
        numbers = ("" if value is None else f"{value:.6g}" for value in epoch[2:])
        csv.writer(file, lineterminator="\n").writerow(("" if epoch.trial is None else epoch.trial, epoch.stage, *numbers))


def read_epochs(path: Path) -> list[Epoch]:
    """The lines of a file; [] where there is none. A line that a killed run left half-written is skipped.

    Of equal epochs the last counts: a training of the teacher that was interrupted begins anew.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))[1:]
    epochs = [epoch for row in rows if (epoch := _parse(row)) is not None]
    return list({(epoch.trial, epoch.stage, epoch.epoch): epoch for epoch in epochs}.values())


def _parse(row: list[str]) -> Epoch | None:
    fields = len(Epoch._fields)
    if len(row) not in (fields - 2, fields):  # an older version wrote neither rate nor accuracy
        return None
    try:
        known = [float(value) if value else None for value in row[6:]]
        return Epoch(int(row[0]) if row[0] else None, row[1], *(float(value) for value in row[2:6]), *known)
    except ValueError:
        return None
