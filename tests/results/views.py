"""Views of made-up studies, without a database."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna

from results.front import complete, front, objectives
from results.record import TeacherReport, TrialRecord
from results.view import StudyView


def view_of(
    records: Sequence[TrialRecord],
    teacher: TeacherReport | None,
    folder: Path,
    trials: Sequence[optuna.trial.FrozenTrial] | None = None,
    **more: Any,
) -> StudyView:
    """A view with `more` fields set."""
    known = [optuna.trial.create_trial(values=list(objectives(record))) for record in complete(records)]
    fields: dict[str, Any] = {"run": {}, "config": {}, "tests": {}, "layers": {}, "epochs": (), "classes": 10, "name": "made"}
    fields |= {"space": {}, "damaged": {}}
    return StudyView(
        folder=folder,
        records=tuple(records),
        front=tuple(front(records)),
        trials=tuple(known if trials is None else trials),
        teacher=teacher,
        **(fields | more),
    )
