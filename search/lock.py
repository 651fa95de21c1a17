"""The lock of a study: one process at a time takes a trial, sweeps dead ones, or fills the queue."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType

import sqlalchemy
from filelock import FileLock

from core.errors import DiskRefused
from search.storage import is_sqlite, open_engine, sqlite_file


class StudyLock:
    """Held by at most one process, and free at once when that one dies: a file's lock, or PostgreSQL's advisory lock.

    Other databases have the file's lock too, which their workers on other machines do not see; two of them may then go one trial
    beyond `--trials`. Not to be taken twice by one process.
    """

    def __init__(self, url: str, folder: Path) -> None:
        """`folder` is runs/<study>; its name is the study's."""
        self.one_machine = is_sqlite(url)
        self._engine = open_engine(url) if url.startswith("postgresql") else None
        self._key = int.from_bytes(hashlib.sha256(folder.name.encode()).digest()[:8], "big", signed=True)
        self._connection: sqlalchemy.Connection | None = None
        path = (sqlite_file(url) or folder / "study").resolve()
        self._file = FileLock(path.with_name(f".{path.name}.lock"))

    def acquire(self) -> None:
        """Wait for it. DiskRefused when its folder refuses."""
        if self._engine is not None:
            self._connection = self._engine.connect()
            self._connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": self._key})
            return
        try:
            Path(self._file.lock_file).parent.mkdir(parents=True, exist_ok=True)
            self._file.acquire()
        except OSError as error:
            raise DiskRefused(f"a study's folder must be writable, but {error}; mend its permissions or free space") from error

    def release(self) -> None:
        """Let go of it, if held."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": self._key})
            except sqlalchemy.exc.DBAPIError:  # the connection is lost, and with it the server has let go of the lock
                connection.invalidate()
            finally:
                connection.close()
        elif self._file.is_locked:
            self._file.release()

    def close(self) -> None:
        """Let go of it and of the database."""
        self.release()
        if self._engine is not None:
            self._engine.dispose()

    def __enter__(self) -> StudyLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()
