"""The database of a study: its URL, its errors in words, and never its password."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.trial import FrozenTrial
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from core.errors import UserError

LOCK_WAIT_S = 30
"""How long SQLite waits for another process's lock; `?timeout=5` in the URL says otherwise."""
SQLITE_WORKERS = 4
"""More of them wait for its one lock, and time out under load."""
HEARTBEAT_S, GRACE_S = 60, 600
"""A worker on another machine that has not been heard of for GRACE_S, by the database's own clock, is taken for dead."""
POSTGRES = "give --storage postgresql://user:password@host/database (python -m pip install -e '.[postgres]')"


def storage_url(folder: Path, storage: str | None) -> str:
    """The URL given, or SQLite inside the run's folder. Raises UserError for a text that is no URL."""
    if storage is not None:
        _parse(storage)
    return storage or f"sqlite:///{folder / 'study.db'}"


def safe_url(url: str) -> str:
    """The URL without its password; options behind `?` may hold one too."""
    return _parse(url).set(query={}).render_as_string(hide_password=True)


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite URL; None for other databases, and where the URL does not say it plainly."""
    parsed = _parse(url)
    plain = parsed.get_backend_name() == "sqlite" and parsed.database and not parsed.database.startswith((":memory:", "file:"))
    return Path(str(parsed.database)) if plain else None


def is_sqlite(url: str) -> bool:
    """Whether the database cannot leave its machine."""
    return _parse(url).get_backend_name() == "sqlite"


def check_workers(url: str, workers: int, elsewhere: bool = False) -> None:
    """Raises UserError where the database is not made for so many writers, or cannot be reached by those on other machines."""
    if is_sqlite(url) and elsewhere:
        raise UserError(f"a cluster elsewhere must reach the study's database, but SQLite is a file of this machine; {POSTGRES}")
    if is_sqlite(url) and workers > SQLITE_WORKERS:
        raise UserError(f"SQLite takes at most {SQLITE_WORKERS} workers, but --workers is {workers}; {POSTGRES}")


def open_storage(url: str, on_stale: Callable[[optuna.Study, FrozenTrial], None] | None = None) -> optuna.storages.RDBStorage:
    """The storage, made where it is missing. Raises UserError for a driver or a version that does not fit.

    `on_stale` gets the trials of workers on other machines that have died.
    """
    if (path := sqlite_file(url)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    with _driver_errors(url), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return _Storage(
            url,
            engine_kwargs=_engine_options(url),
            heartbeat_interval=None if is_sqlite(url) else HEARTBEAT_S,  # on one machine the owner's process says more
            grace_period=GRACE_S,
            heartbeat_stale_trial_callback=on_stale,
        )


class _Storage(optuna.storages.RDBStorage):
    """Optuna's, which writes a trial's parameters together, and whose heart goes on beating after the database was away.

    A trial asks for dozens of parameters, and a transaction for each would be half of the time that its storage takes. They wait for
    the next access of the thread that asked, whatever it is, and go first. So a process that dies while it asks leaves none of them.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._asked = threading.local()
        super().__init__(*arguments, **options)

    @property
    def scoped_session(self) -> Any:
        """What every access of the database begins with."""
        asked = self._asked.__dict__.pop("parameters", ())
        if asked:
            with _create_scoped_session(self._sessions, True) as session:
                for parameter in asked:
                    self._set_trial_param_without_commit(session, *parameter)
        return self._sessions

    @scoped_session.setter
    def scoped_session(self, sessions: Any) -> None:
        self._sessions = sessions

    def _set_trial_param(self, *parameter: Any) -> None:
        self._asked.__dict__.setdefault("parameters", []).append(parameter)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_asked", "_sessions", "engine", "_version_manager")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._asked = threading.local()
        super().__setstate__(state)

    def record_heartbeat(self, trial_id: int) -> None:
        """Missed while the database is away; its thread must not end for that, since the trial may outlast it."""
        with suppress(StorageInternalError, SQLAlchemyError):
            super().record_heartbeat(trial_id)


def write_parameters(study: optuna.Study) -> None:
    """Show others the parameters that the running trial has asked for: any access writes them."""
    _ = study.user_attrs


def open_engine(url: str) -> sqlalchemy.Engine:
    """One connection for locks, apart from the storage's own. Raises UserError for a driver that does not fit."""
    with _driver_errors(url):
        return sqlalchemy.create_engine(url, pool_size=1, isolation_level="AUTOCOMMIT", **_engine_options(url))


def _engine_options(url: str) -> dict[str, Any]:
    parsed = _parse(url)
    if not is_sqlite(url):
        return {"pool_pre_ping": True}  # a database that went away and came back
    return {"connect_args": {} if "timeout" in parsed.query else {"timeout": LOCK_WAIT_S}}


@contextmanager
def _driver_errors(url: str) -> Iterator[None]:
    try:
        yield
    except NoSuchModuleError as error:
        raise UserError(
            f"--storage must name a database that SQLAlchemy knows (sqlite, postgresql, mysql), but got {safe_url(url)}"
        ) from error
    except ImportError as error:
        raise UserError(f"{safe_url(url)} needs its driver; for PostgreSQL: python -m pip install -e '.[postgres]'") from error
    except RuntimeError as error:  # how Optuna says that another version of it made the tables
        raise UserError(f"{safe_url(url)} was made by another version of Optuna; use another --study or --storage ({error})") from error


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn the database's own errors into one line."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = error.__cause__ or error
        reason, password = str(getattr(cause, "orig", None) or cause).splitlines()[0], _parse(url).password
        raise UserError(
            f"the study's database must be reachable and writable, but {safe_url(url)} is not "
            f"({reason.replace(str(password), '***') if password else reason}); "
            "nothing that is finished is lost: mend it and run the same command again"
        ) from error


def _parse(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # their messages, and so their tracebacks, quote the URL
        raise UserError(
            "--storage must be a database URL such as sqlite:///study.db or postgresql://user:password@host/database, but this is none; "
            "write '@', ':' and '/' in a password as %40, %3A and %2F"
        ) from None
