"""The database of a study: a trial's parameters go into it together, and nobody who looks misses any."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
import sqlalchemy

from search.storage import open_storage, write_parameters

NAMES = [f"p{index}" for index in range(20)]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def storage(url: str) -> Iterator[optuna.storages.RDBStorage]:
    storage = open_storage(url)
    yield storage
    storage.remove_session()


def begun(storage: optuna.storages.RDBStorage) -> tuple[optuna.Study, optuna.Trial]:
    study = optuna.create_study(study_name="s", storage=storage)
    return study, study.ask()


def seen_elsewhere(url: str, number: int = 0) -> dict[str, float]:
    """What another process would see."""
    return dict(optuna.load_study(study_name="s", storage=optuna.storages.RDBStorage(url)).trials[number].params)


def test_parameters_are_written_in_one_transaction(storage: optuna.storages.RDBStorage, url: str) -> None:
    study, trial = begun(storage)
    commits: list[object] = []
    sqlalchemy.event.listen(storage.engine, "commit", commits.append)
    asked = {name: trial.suggest_float(name, 0, 1) for name in NAMES}
    assert trial.params == asked
    write_parameters(study)
    assert len(commits) <= 4  # reading counts too
    assert seen_elsewhere(url) == asked


def test_whatever_is_read_or_written_next_finds_them(storage: optuna.storages.RDBStorage, url: str) -> None:
    study, first = begun(storage)
    first.suggest_int("n", 0, 9)
    first.set_user_attr("note", "x")
    assert seen_elsewhere(url) == first.params
    first.suggest_categorical("c", ["a", "b"])
    study.tell(first, 1.0)
    assert seen_elsewhere(url) == first.params == study.trials[0].params
    second = study.ask()
    second.suggest_int("n", 0, 9)
    assert study.get_trials()[1].params == second.params


def test_a_parameter_of_another_kind_is_refused_as_ever(storage: optuna.storages.RDBStorage) -> None:
    study, trial = begun(storage)
    trial.suggest_int("n", 0, 9)
    study.tell(trial, 1.0)
    other = study.ask()
    other.suggest_float("n", 0, 1)
    with pytest.raises(ValueError, match="distribution"):
        write_parameters(study)


def test_a_copy_in_another_process_works_on(storage: optuna.storages.RDBStorage, url: str) -> None:
    begun(storage)
    study = optuna.load_study(study_name="s", storage=pickle.loads(pickle.dumps(storage)))
    trial = study.ask()
    trial.suggest_int("n", 0, 9)
    write_parameters(study)
    assert seen_elsewhere(url, 1) == trial.params
