"""Dashboard: python -m search.dashboard --study digits

Shows a study in a browser with optuna-dashboard: objectives by name, a note per trial, our plots, models and report as artefacts.
It follows a search that is running.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.cli import Parser, run_main
from core.errors import UserError
from search.reading import add_study_flags

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    import optuna

RUNS = Path("runs")
EVERY_S = 30.0
"""How often it looks whether trials have finished, whose plots it then draws again."""
POLL_S = 0.5


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.dashboard."""
    parser = Parser(
        prog="python -m search.dashboard",
        description="Show a study in a browser with optuna-dashboard, also while its search runs. Ctrl-C ends it.",
    )
    add_study_flags(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one (default %(default)s)")
    return parser


def main(argv: list[str]) -> int:
    """Prepare the study, serve it until Ctrl-C."""
    args = build_parser().parse_args(argv)
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port must be between 0 and {2**16 - 1}, but got {args.port}")
    from search.export_best import newest_run
    from search.storage import storage_errors, storage_url  # late: bad flags are answered without Optuna
    from search.study import check_name, load_study

    name = check_name(newest_run(RUNS) if args.study is None else args.study)
    url = storage_url(RUNS / name, args.storage)
    with storage_errors(url):
        study = load_study(url, name, RUNS / name)
        follower = Follower(study, RUNS / name)
        server = _server(study, RUNS / name, args.host, args.port)
        with server:
            print(f"{name}: http://{args.host}:{server.server_port}/dashboard/studies/{study._study_id} (Ctrl-C ends it)", flush=True)
            _serve(server, follower)
    return 0


class Follower:
    """Callable: brings plots and notes up to date when trials have finished since the last call."""

    def __init__(self, study: optuna.Study, folder: Path) -> None:
        self.study, self.folder, self._seen = study, folder, -1

    def __call__(self) -> None:
        """Raises UserError when the study was deleted."""
        from results.view import read_view
        from search.showcase import show_study
        from search.study import CONTENT_KEY

        try:
            finished = sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))
        except KeyError as error:
            name = self.study.study_name
            raise UserError(f"a study must exist to be shown, but {name!r} was deleted; run search.run to begin it anew") from error
        if finished != self._seen:
            view = read_view(self.study, self.folder, self.study.user_attrs.get(CONTENT_KEY, {}))
            show_study(self.study, view)
            self._seen = finished


def _serve(server: WSGIServer, follow: Callable[[], None]) -> None:
    """Answers requests, each in a thread of its own, until Ctrl-C."""
    due = 0.0
    while True:
        if time.monotonic() >= due:
            follow()
            due = time.monotonic() + EVERY_S
        server.handle_request()


def _server(study: optuna.Study, folder: Path, host: str, port: int) -> WSGIServer:
    """Raises UserError where nobody may listen there."""
    from socketserver import ThreadingMixIn
    from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

    from optuna_dashboard import wsgi

    from search.showcase import STORE, LinkedArtifacts

    class Threaded(ThreadingMixIn, WSGIServer):
        daemon_threads, timeout = True, POLL_S

    class Silent(WSGIRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            """A page asks every few seconds."""

    app = wsgi(study._storage, artifact_store=LinkedArtifacts(folder / STORE))
    try:
        return make_server(host, port, app, Threaded, Silent)
    except OSError as error:
        raise UserError(
            f"--host and --port must be free to listen on, but {host}:{port} is not ({error.strerror}); take another --port"
        ) from error


if __name__ == "__main__":
    raise SystemExit(run_main(main))
