"""The database of a study: its URL, its errors in words, and never its password."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from core.errors import UserError

LOCK_WAIT_S = 30
"""How long SQLite waits for another process's lock; `?timeout=5` in the URL says otherwise."""


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


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """The storage, made where it is missing. Raises UserError for a driver or a version that does not fit."""
    parsed = _parse(url)
    wait = {"timeout": LOCK_WAIT_S} if parsed.get_backend_name() == "sqlite" and "timeout" not in parsed.query else {}
    if (path := sqlite_file(url)) is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": wait})
    except NoSuchModuleError as error:
        raise UserError(
            f"--storage must name a database that SQLAlchemy knows (sqlite, postgresql, mysql), but got {safe_url(url)}"
        ) from error
    except ImportError as error:
        raise UserError(f"{safe_url(url)} needs a driver that is not installed; for PostgreSQL: pip install psycopg2-binary") from error
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
