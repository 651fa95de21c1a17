"""A study as its report sees it: read once, from the database and the run's folder, and frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from core.errors import UserError
from core.files import read_json
from results.epochs import Epoch, read_epochs
from results.front import Point, complete, front, objectives
from results.layers import LayerFacts, classes_of, read_layers
from results.record import REFERENCE_KEY, TEST_KEY, TeacherReport, TrialRecord, read_records
from results.table import quality

if TYPE_CHECKING:
    import optuna

T = TypeVar("T")


@dataclass(frozen=True)
class StudyView:
    """What is known of a study. What is missing is empty or None, and its section of the report is left out."""

    name: str
    folder: Path
    records: tuple[TrialRecord, ...]
    """All finished trials by number."""
    front: tuple[TrialRecord, ...]
    """By rank."""
    trials: tuple[optuna.trial.FrozenTrial, ...]
    """Optuna's side of `complete(records)`, in the same order."""
    teacher: TeacherReport | None
    run: Mapping[str, Any]
    """run.json."""
    space: Mapping[str, Any]
    config: Mapping[str, Any]
    """The space and the configuration that the study was made with."""
    tests: Mapping[str, Mapping[str, Any]]
    """Fingerprint -> {accuracy, images, interval} on the test split."""
    layers: Mapping[int, tuple[LayerFacts, ...]]
    """Rank -> layers, of those points of the front whose files are there and whole."""
    damaged: Mapping[int | None, str]
    """Rank, None for the teacher -> what is wrong with its files."""
    epochs: tuple[Epoch, ...]
    classes: int | None
    reference: Point | None = None
    """Of the hypervolume, as the study fixed it before its first trial; a study of an older version has none."""

    @property
    def timed(self) -> bool:
        """Whether latency is an objective; not so in a study that only builds engines."""
        return not self.front or len(objectives(self.front[0])) == 3

    @property
    def coded(self) -> bool:
        """Whether sizes are those of entropy-coded files."""
        return self.space.get("objectives", {}).get("size") == "coded"

    @property
    def quality(self) -> str:
        """What the first objective is called: accuracy, or agreement with the teacher where images have no labels."""
        return quality(self.front[0]) if self.front else "accuracy"

    def rank(self, record: TrialRecord) -> int | None:
        """Rank of a record; None off the front."""
        return next((rank for rank, other in enumerate(self.front) if other.number == record.number), None)


def read_view(study: optuna.Study, folder: Path, content: Mapping[str, Any]) -> StudyView:
    """Read a study and its run's folder, which may be missing; `content`: the space and the configuration as the study keeps them.

    Raises UserError for records of another version.
    """
    records = read_records(study)
    best = front(records)
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    run = read_json(folder / "run.json")
    damaged: dict[int | None, str] = {}
    layers = {rank: _whole(damaged, rank, layers_of, folder, record) or () for rank, record in enumerate(best)}
    classes = _whole(damaged, None, classes_of, folder / "teacher" / "model.onnx")
    return StudyView(
        name=study.study_name,
        folder=folder,
        records=tuple(records),
        front=tuple(best),
        trials=tuple(trials[record.number] for record in complete(records)),
        teacher=_teacher(run),
        run=run,
        space=content.get("space", {}),
        config=content.get("config", {}),
        tests=study.user_attrs.get(TEST_KEY, {}),
        layers={rank: found for rank, found in layers.items() if found},
        damaged=damaged,
        epochs=tuple(read_epochs(folder / "epochs.csv")),
        classes=classes,
        reference=tuple(study.user_attrs[REFERENCE_KEY]) if REFERENCE_KEY in study.user_attrs else None,
    )


def layers_of(folder: Path, record: TrialRecord) -> tuple[LayerFacts, ...]:
    """Layers of a record's files; () where they are not there."""
    return read_layers(folder / record.path) if record.path is not None else ()


def _whole(damaged: dict[int | None, str], rank: int | None, read: Callable[..., T], *what: Any) -> T | None:
    """What `read` finds; a damaged file is noted under `rank`, for the other models and the report do without it."""
    try:
        return read(*what)
    except UserError as error:
        damaged[rank] = str(error)
        return None


def _teacher(run: Mapping[str, Any]) -> TeacherReport | None:
    try:
        return TeacherReport.model_validate(run.get("teacher"))
    except ValidationError:
        return None
