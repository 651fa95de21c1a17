"""How the commands that only read a study find it: its name, its folder, its database."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna

    from results.view import StudyView


def add_study_flags(parser: argparse.ArgumentParser) -> None:
    """--study and --storage."""
    parser.add_argument("--study", metavar="NAME", help="folder below runs/; default: the newest run's")
    parser.add_argument("--storage", metavar="URL", help="database of the study, where it is not in the run's folder")


@contextmanager
def opened(study: str | None, storage: str | None) -> Iterator[tuple[optuna.Study, StudyView]]:
    """The study, and as its report sees it. Raises UserError when there is none, also for the database's own errors within."""
    from search.export_best import RUNS, newest_run
    from search.storage import storage_errors, storage_url  # late: bad flags are answered without Optuna
    from search.study import CONTENT_KEY, check_name, load_study

    name = check_name(newest_run(RUNS) if study is None else study)
    folder: Path = RUNS / name
    url = storage_url(folder, storage)
    with storage_errors(url):
        from results.view import read_view

        found = load_study(url, name, folder)
        yield found, read_view(found, folder, found.user_attrs.get(CONTENT_KEY, {}))
