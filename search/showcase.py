"""What optuna-dashboard shows of a study beside Optuna's own: a note per trial, our plots, the models and the report as artefacts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import optuna
from optuna.artifacts import FileSystemArtifactStore, get_all_artifact_meta, upload_artifact
from optuna.storages import BaseStorage

from core.files import TEMPORARY
from results.front import objectives
from results.note import MARK, study_note, trial_note
from results.record import TrialRecord
from search.progress import outcome

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from results.report_front import Axis
    from results.view import StudyView

STORE = "artifacts"
"""Folder of a run that optuna-dashboard takes as --artifact-dir."""
MODELS = ("model.onnx", "weights.pack")
REPORTS = ("report.html", "report.md", "report.csv")
NOTE_PIECE = 2045
"""Characters of a note in one attribute, as optuna-dashboard cuts them."""
GRID, CLEAR = "rgba(128, 136, 150, 0.25)", "rgba(0, 0, 0, 0)"
LINES = {"gridcolor": GRID, "linecolor": GRID, "zerolinecolor": GRID}
LOOK = {"paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR, "font": {"color": "#7d8896"}, "margin_t": 110}
"""Readable on the dashboard's light page and on its dark one."""


class LinkedArtifacts:
    """Optuna's artefact store in a folder, without a second copy: an artefact is a hard link to the file of the run."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._files = folder, FileSystemArtifactStore(folder)

    def open_reader(self, artifact_id: str) -> BinaryIO:
        """Raises ArtifactNotFound."""
        return self._files.open_reader(artifact_id)

    def write(self, artifact_id: str, content_body: BinaryIO) -> None:
        """`content_body` is an open file; an artefact of that id is replaced."""
        path = self.folder / artifact_id
        temporary = path.with_name(TEMPORARY.replace("*", artifact_id))
        temporary.unlink(missing_ok=True)
        try:
            os.link(content_body.name, temporary)
        except OSError:  # a file system without hard links, or another one
            shutil.copyfile(content_body.name, temporary)
        temporary.replace(path)

    def remove(self, artifact_id: str) -> None:
        """Raises ArtifactNotFound."""
        self._files.remove(artifact_id)


def show_trial(trial: optuna.Trial, record: TrialRecord, folder: Path) -> None:
    """The note and, of a complete trial, the models; before it is told, since a finished trial takes no artefacts. `folder`: the run's."""
    _write_note(trial.storage, trial.study._study_id, trial._trial_id, trial_note(record, outcome(record)))
    if record.state != "COMPLETE" or record.path is None:
        return
    for path in (folder / record.path / name for name in MODELS):
        if path.is_file():
            upload_artifact(artifact_store=LinkedArtifacts(folder / STORE), file_path=str(path), study_or_trial=trial)


def show_study(study: optuna.Study, view: StudyView) -> None:
    """Plots, the study's note, notes of trials that have none (of an older version), and the report where one was written."""
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object  # late: it takes seconds

    for name, (title, figure) in _plots(view).items():
        figure.update_layout(title={"text": title, "y": 0.97}, **LOOK)
        figure.update_xaxes(**LINES)
        figure.update_yaxes(**LINES)
        save_plotly_graph_object(study, figure, graph_object_id=name)
    note = get_note(study)
    if (not note or MARK in note) and note != (new := study_note(view)):
        save_note(study, new)
    _fill_notes(study, view)
    offer_reports(study, view.folder)


def offer_reports(study: optuna.Study, folder: Path) -> None:
    """The files of the report that there are in the run's `folder`, as artefacts of the study, under the ids that they had."""
    for path in (folder / name for name in REPORTS):
        if path.is_file():
            _offer(study, path)


def _plots(view: StudyView) -> dict[str, tuple[str, go.Figure]]:
    """Name -> (title, figure) of what Optuna has nothing like."""
    from results import report_front, report_models, report_search
    from results.analysis import hypervolume_of

    numbers, volumes = hypervolume_of(view)
    known = {f"plane-{x.name}-{y.name}": (f"Front: {y.name} over {x.name}", report_front.planes(view, ((x, y),))) for x, y in _planes(view)}
    known |= {"hypervolume": ("Hypervolume", report_search.growth(view, numbers, volumes))} if numbers else {}
    known |= {"bits": ("Bits in every layer of the front", report_models.bits(view))} if view.layers else {}
    timed = any(record.seconds for record in view.records)
    return known | ({"time": ("Where the time went", report_models.time(view))} if timed else {})


def _planes(view: StudyView) -> Sequence[tuple[Axis, Axis]]:
    """Those of objectives that were measured."""
    from results.report_front import PLANES

    known = len(objectives(view.front[0])) if view.front else 0
    return [plane for plane in PLANES if max(axis.place for axis in plane) < known]


def _fill_notes(study: optuna.Study, view: StudyView) -> None:
    known = study._storage.get_study_system_attrs(study._study_id)
    ids = {trial.number: trial._trial_id for trial in study.get_trials(deepcopy=False)}
    for record in view.records:
        if _version(ids[record.number]) not in known:
            _write_note(study._storage, study._study_id, ids[record.number], trial_note(record, outcome(record)))


def _offer(study: optuna.Study, path: Path) -> None:
    """`path` as an artefact of the study, under the id that it had."""
    store = LinkedArtifacts(path.parent / STORE)
    had = [meta.artifact_id for meta in get_all_artifact_meta(study) if meta.filename == path.name]
    if not had:
        upload_artifact(artifact_store=store, file_path=str(path), study_or_trial=study)
    for artifact_id in had:
        with path.open("rb") as file:
            store.write(artifact_id, file)


def _write_note(storage: BaseStorage, study_id: int, trial_id: int, text: str) -> None:
    """As `optuna_dashboard.save_note` writes a first one, which reads all notes and plots of the study before, and imports for seconds."""
    for index in range(0, len(text), NOTE_PIECE):
        storage.set_study_system_attr(study_id, f"dashboard:{trial_id}:note_str:{index // NOTE_PIECE}", text[index : index + NOTE_PIECE])
    storage.set_study_system_attr(study_id, _version(trial_id), 1)


def _version(trial_id: int) -> str:
    return f"dashboard:{trial_id}:note_ver"
