"""What every stage made of a candidate, as a line of `stages.csv`: the summary over all trials of a study that keeps a journal."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from core.candidate import StageRecord
from core.files import appending

COLUMNS = ("trial", *StageRecord.model_fields)


def append_stages(path: Path, trial: int, records: Sequence[StageRecord]) -> None:
    """Add a line for each record of `trial`, and the heading where the file is new; nothing where there are none."""
    if not records:
        return
    with appending(path, ",".join(COLUMNS)) as file:
        csv.writer(file, lineterminator="\n").writerows((trial, *record.model_dump().values()) for record in records)
