"""TensorBoard: python -m search.tensorboard --study digits

Shows every epoch of every training of a run, from the lines of its epochs.csv, and follows a search that is running. Needs
`python -m pip install -e '.[tensorboard]'`.
"""

from __future__ import annotations

import argparse
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli import Parser, run_main
from core.errors import UserError
from core.runtimes.types import installed_version

if TYPE_CHECKING:
    from results.epochs import Epoch

RUNS = Path("runs")
EVERY_S = 5.0
"""How often new lines are looked for."""


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.tensorboard."""
    parser = Parser(
        prog="python -m search.tensorboard",
        description="Show every epoch of a run in TensorBoard (loss, learning rate, accuracy), also while it runs. Ctrl-C ends it.",
    )
    parser.add_argument("--study", metavar="NAME", help="folder below runs/; default: the newest run's")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=6006, help="0 takes a free one (default %(default)s)")
    parser.add_argument("--write-only", action="store_true", help="write the event files and end; serve nothing")
    return parser


def main(argv: list[str]) -> int:
    """Write the events of a run, serve them, add what is new until Ctrl-C."""
    args = build_parser().parse_args(argv)
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port must be between 0 and {2**16 - 1}, but got {args.port}")
    if installed_version("tensorboard") is None:
        raise UserError(
            "search.tensorboard needs the package tensorboard, which is not installed; run: python -m pip install -e '.[tensorboard]'"
        )
    source = _source(args.study)
    events = source.parent / "tensorboard"
    shutil.rmtree(events, ignore_errors=True)
    new = _news(source)
    print(f"written: {events} ({write_events(events, next(new))} epochs)", flush=True)
    if not args.write_only:
        print(f"{_serve(events, args.host, args.port)} (Ctrl-C ends it)", flush=True)
        for epochs in new:
            write_events(events, epochs)
            time.sleep(EVERY_S)
    return 0


def write_events(folder: Path, epochs: Sequence[Epoch]) -> int:
    """Add `epochs` below `folder`, a folder per trial and one for the teacher; how many there were. The step is the epoch, rounded up."""
    from torch.utils.tensorboard import SummaryWriter

    ordered = sorted(epochs, key=lambda epoch: -1 if epoch.trial is None else epoch.trial)
    for trial, rows in groupby(ordered, key=lambda epoch: epoch.trial):
        # closed at once: a run may have thousands of trials, and TensorBoard reads a folder's files one after the other
        with SummaryWriter(str(folder / ("teacher" if trial is None else f"trial-{trial:04d}"))) as writer:
            for epoch in rows:
                for name in ("loss", "accuracy", "lr", "images_per_s"):
                    if (value := getattr(epoch, name)) is not None:
                        writer.add_scalar(f"{epoch.stage}/{name}", value, math.ceil(epoch.epoch))
    return len(epochs)


def _news(source: Path) -> Iterator[list[Epoch]]:
    """Again and again the epochs that were not there before."""
    from results.epochs import read_epochs

    seen: set[Epoch] = set()
    while True:
        new = [epoch for epoch in read_epochs(source) if epoch not in seen]
        seen.update(new)
        yield new


def _source(study: str | None) -> Path:
    from search.export_best import newest_run  # late: bad flags are answered without Optuna
    from search.study import check_name

    source = RUNS / check_name(newest_run(RUNS) if study is None else study) / "epochs.csv"
    if not source.is_file():
        raise UserError(f"a run must have trained something to be shown, but there is no {source}; run search.run first, or name a --study")
    return source


def _serve(events: Path, host: str, port: int) -> str:
    """Start the server in a thread; its address."""
    from tensorboard import program

    board = program.TensorBoard()
    # the fast loader is another process, which would outlive this one when it is killed
    board.configure(argv=["tensorboard", "--logdir", str(events), "--host", host, "--port", str(port), "--load_fast", "false"])
    try:
        return str(board.launch())
    except program.TensorBoardServerException as error:
        raise UserError(f"--host and --port must be free to listen on, but {host}:{port} is not; take another --port") from error


if __name__ == "__main__":
    raise SystemExit(run_main(main))
