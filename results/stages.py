"""What every stage made of a candidate, as a line of `stages.csv`: the summary over all trials of a study that keeps a journal."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from core.candidate import StageRecord
from core.files import lock_of

COLUMNS = ("trial", *StageRecord.model_fields)


def append_stages(path: Path, trial: int, records: Sequence[StageRecord]) -> None:
    """Add a line for each record of `trial`, and the heading where the file is new; nothing where there are none."""
    if not records:
        return
    # one heading, also where two workers begin
    with FileLock(lock_of(path)), path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        writer.writerows((trial, *record.model_dump().values()) for record in records)
