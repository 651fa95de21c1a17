"""A PostgreSQL server of the tests' own, where Debian's is installed; otherwise its tests skip."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest

PASSWORD = "hunter2"
SUPERUSER = "paretopress"


class Server:
    """A cluster in `folder`, listening on this machine only."""

    def __init__(self, programs: Path, folder: Path, run_as: dict[str, Any]) -> None:
        self.programs, self.folder, self.run_as = programs, folder, run_as
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    @property
    def url(self) -> str:
        """With the password."""
        return f"postgresql://{SUPERUSER}:{PASSWORD}@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Returns when it answers."""
        options = f"-p {self.port} -k {self.folder} -h 127.0.0.1 -c fsync=off"
        self._call("pg_ctl", "-w", "-o", options, "-l", f"{self.folder}/log", "start")

    def stop(self) -> None:
        """At once, without waiting for those who are connected."""
        self._call("pg_ctl", "-w", "-m", "immediate", "stop")

    def create(self) -> None:
        """Make the cluster."""
        (self.folder / "password").write_text(PASSWORD)
        os.chmod(self.folder / "password", 0o644)
        self._call("initdb", "-A", "scram-sha-256", "-U", SUPERUSER, "--pwfile", f"{self.folder}/password", "-N")

    def _call(self, program: str, *arguments: str) -> None:
        command = [str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        # to nowhere: the server would keep a pipe open
        subprocess.run(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True, **self.run_as)


def find_programs() -> Path | None:
    """The folder of initdb and pg_ctl."""
    found = shutil.which("initdb")
    places = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists() and (place / "pg_ctl").exists()), None)


@contextmanager
def server() -> Iterator[Server]:
    """A running one, that is gone afterwards."""
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL's programs are not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="the extra [postgres] is not installed")
    run_as: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if os.getuid() == 0:  # which PostgreSQL refuses
            account = pwd.getpwnam("nobody")
            os.chown(folder, account.pw_uid, account.pw_gid)
            run_as = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        cluster = Server(programs, folder, run_as)
        cluster.create()
        cluster.start()
        try:
            yield cluster
        finally:
            cluster.stop()


@contextmanager
def opened(postgres: Server, name: str = "tiny") -> Iterator[optuna.Study]:
    """A study in it, without a connection left behind."""
    storage = optuna.storages.RDBStorage(postgres.url)
    try:
        yield optuna.load_study(study_name=name, storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()
