"""The Optuna study behind a run: opened, checked against the space, swept of dead trials, counted."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from core.errors import UserError
from search.owner import OWNER_KEY, is_dead

METRICS = ("accuracy", "size_bytes", "latency_ms")
DIRECTIONS = ("maximize", "minimize", "minimize")
DIGEST_KEY, CONTENT_KEY = "space_digest", "space"
REQUEUED_KEY = "requeued_from"


def check_name(name: str) -> str:
    """A study's name is also its folder's: letters, digits, '.', '_', '-'. Raises UserError otherwise."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        raise UserError(f"a study's name has letters, digits, '.', '_' and '-' only, but got {name!r}; choose another --study")
    return name


def storage_url(folder: Path, storage: str | None) -> str:
    """The URL given, or SQLite inside the run's folder."""
    return storage or f"sqlite:///{folder / 'study.db'}"


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn the database's own errors into one line; the password is never in it."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError, ImportError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).splitlines()[0]
        raise UserError(
            f"the study's database must be reachable and writable, but {safe_url(url)} is not ({reason}); "
            "nothing that is finished is lost: mend it and run the same command again"
        ) from error


def safe_url(url: str) -> str:
    """The URL without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return "the --storage URL"


def open_study(url: str, name: str, sampler: optuna.samplers.BaseSampler, digest: str, content: Mapping[str, Any]) -> optuna.Study:
    """Create the study or continue it. Raises UserError when it was made from another space or configuration."""
    study = _create(url, name, sampler)
    known = study.user_attrs.get(DIGEST_KEY)
    if known is None:
        if study.get_trials(deepcopy=False):
            raise UserError(f"the study {name!r} was not made by this program; choose another --study")
        study.set_user_attr(CONTENT_KEY, dict(content))
        study.set_user_attr(DIGEST_KEY, digest)
    elif known != digest:
        changed = ", ".join(sorted(_differences(study.user_attrs[CONTENT_KEY], content))) or "its content"
        raise UserError(
            f"a study keeps the space and configuration that it began with, but {name!r} differs in {changed}; "
            "use another --study NAME, or --fresh to delete this one and begin anew"
        )
    return study


def _create(url: str, name: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    if url.startswith("sqlite:///"):
        Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    try:
        storage = open_storage(url)
    except (ArgumentError, NoSuchModuleError) as error:
        raise UserError(f"--storage must be a database URL such as sqlite:///study.db or postgresql://..., but got {safe_url(url)!r}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study = optuna.create_study(
            storage=storage, study_name=name, sampler=sampler, directions=list(DIRECTIONS), load_if_exists=True
        )
        if study.metric_names is None:
            study.set_metric_names(list(METRICS))
    return study


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The storage, waiting up to 30 s for another process's lock on SQLite."""
    arguments = {"connect_args": {"timeout": 30}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=arguments)


def load_study(url: str, name: str) -> optuna.Study:
    """An existing study, to read. Raises UserError when there is none of that name."""
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise UserError(f"there is no study {name!r}: {url.removeprefix('sqlite:///')} does not exist; run search.run first, or name another --study")
    try:
        return optuna.load_study(study_name=name, storage=open_storage(url))
    except KeyError as error:
        raise UserError(f"there is no study {name!r} in {safe_url(url)}; run search.run first, or name another --study") from error


def delete_study(url: str, name: str, folder: Path) -> None:
    """`--fresh`: forget the study and its files. Only a folder that a run made is removed."""
    if not url.startswith("sqlite:///") or Path(url.removeprefix("sqlite:///")).exists():
        try:
            optuna.delete_study(study_name=name, storage=open_storage(url))
        except KeyError:
            pass
    if (folder / "study.db").exists() or (folder / "run.json").exists():
        shutil.rmtree(folder)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ."""
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            yield f"{prefix}{key}"


# --- trials ----------------------------------------------------------------------------------------------------------


def count_finished(study: optuna.Study) -> int:
    """COMPLETE and PRUNED trials: what `--trials` counts."""
    return len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))


def sweep(study: optuna.Study) -> list[int]:
    """Fail RUNNING trials whose owner is dead and queue their parameters again; their numbers."""
    swept = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        owner = trial.user_attrs.get(OWNER_KEY)
        if owner is not None and is_dead(owner):
            study.tell(trial.number, state=TrialState.FAIL)
            requeue(study, trial)
            swept.append(trial.number)
    return swept


def requeue(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue a trial's parameters for the next start."""
    study.enqueue_trial(trial.params, user_attrs={REQUEUED_KEY: trial.number})
