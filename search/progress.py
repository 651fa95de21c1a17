"""Progress of a run: a live panel on a terminal, one flushed line per event elsewhere, results alone when quiet."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from core.candidate import KB, milliseconds
from results.epochs import Epoch, append_epoch
from results.record import TeacherReport, TrialRecord
from results.table import duration, front_table, front_text, student_name

if TYPE_CHECKING:
    from rich.console import Console, Group, RenderableType
    from rich.live import Live

TOP_ROWS = 6
"""Ranks of the front in the live panel: it must fit a small terminal."""


@dataclass(frozen=True)
class Step:
    """Where one trial is; trial None is work for the whole study (teacher, data)."""

    trial: int | None
    stage: str
    epoch: float | None = None
    epochs: float | None = None
    images_per_s: float | None = None
    loss: float | None = None
    lr: float | None = None
    accuracy: float | None = None


class Progress:
    """Tells the user what a study does. A context manager; leaving it, also by an exception or Ctrl-C, gives the terminal back.

    Args: `trials` the number the study shall end with, `done` those finished before this start, `front` theirs, `quiet` prints nothing but
    `result`, `epoch_line_s` the shortest time between two epoch lines of one stage where there is no terminal, `epochs_csv` the
    file that gets a line per epoch, also when quiet, `prefix` stands before every line (of a worker), `live` allows the panel.
    """

    def __init__(
        self,
        trials: int,
        *,
        done: int = 0,
        front: Sequence[TrialRecord] = (),
        teacher: TeacherReport | None = None,
        quiet: bool = False,
        console: Console | None = None,
        epoch_line_s: float = 10.0,
        epochs_csv: Path | None = None,
        prefix: str = "",
        live: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.trials, self.done, self.teacher, self.quiet = trials, done, teacher, quiet
        self._console, self._epoch_line_s, self._clock, self._epochs_csv = console, epoch_line_s, clock, epochs_csv
        self._prefix, self._live_allowed = prefix, live and not prefix
        self._steps: dict[int | None, Step] = {}
        self._lines: dict[int | None, tuple[str, float]] = {}
        self._front = list(front)
        self._finished = 0
        self._first_trial_s: float | None = None
        self._lock = threading.RLock()
        self._live: Live | None = None

    def __enter__(self) -> Progress:
        if not self.quiet and self._live_allowed:
            self._live = _live(self._console, self._render)
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def stage(self, trial: int | None, name: str) -> None:
        """A stage begins: 'teacher' (trial None), 'parent', 'distil', 'quantise', 'export' ..."""
        self._set(Step(trial, name))
        self._line(self._where(trial, name))

    def epoch(
        self,
        trial: int | None,
        stage: str,
        epoch: float,
        epochs: float,
        images_per_s: float,
        loss: float,
        lr: float | None = None,
        accuracy: float | None = None,
    ) -> None:
        """`epoch` of `epochs` (may be fractional) are done, at a rate and with a mean loss; accuracy on a part of the search split."""
        if self._epochs_csv is not None:
            append_epoch(self._epochs_csv, Epoch(trial, stage, epoch, epochs, images_per_s, loss, lr, accuracy))
        step = Step(trial, stage, epoch, epochs, images_per_s, loss, lr, accuracy)
        self._set(step)
        if self._epoch_line_is_due(step):
            self._line(f"{self._where(trial, stage)}: {_numbers(step)}")

    def trial_done(self, record: TrialRecord, front: Sequence[TrialRecord]) -> None:
        """A trial ended; `front` is the study's front with it. A FAIL does not count towards `trials`."""
        with self._lock:
            self._steps.pop(record.number, None)
            self._lines.pop(record.number, None)
            self._front = list(front)
            self._finished += 1
            self.done += record.state != "FAIL"
        line = f"trial {record.number} {outcome(record)}{_place(record, front)}"
        if self._live is not None:
            self._live.console.print(line, markup=False, highlight=False)
        self._line(f"{line} ({self.done} of {self.trials} done{self._left(', {} left')})")

    def message(self, text: str) -> None:
        """Anything worth a line."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        self._line(text)

    def result(self, front: Sequence[TrialRecord], teacher: TeacherReport | None = None) -> None:
        """The front as a table; printed also when quiet."""
        teacher = teacher or self.teacher
        console = self._live.console if self._live is not None else self._console or _console()
        if console.is_terminal:
            console.print(front_table(front, teacher))
        else:
            self._print(front_text(front, teacher))

    @property
    def time_left_s(self) -> float | None:
        """Mean wall-clock seconds per trial finished in this run times those to come; None before the first."""
        with self._lock:
            if not self._finished or self._first_trial_s is None:
                return None
            return (self._clock() - self._first_trial_s) / self._finished * max(0, self.trials - self.done)

    def _set(self, step: Step) -> None:
        with self._lock:
            if step.trial is not None:
                # The teacher is trained once: its minutes say nothing about the trials to come.
                self._first_trial_s = self._clock() if self._first_trial_s is None else self._first_trial_s
                self._steps.pop(None, None)
            self._steps[step.trial] = step

    def _epoch_line_is_due(self, step: Step) -> bool:
        stage, last = self._lines.get(step.trial, ("", 0.0))
        now = self._clock()
        ended = step.epoch is not None and step.epochs is not None and step.epoch >= step.epochs
        due = ended or stage != step.stage or now - last >= self._epoch_line_s
        if due:
            self._lines[step.trial] = (step.stage, now)
        return due

    def _where(self, trial: int | None, stage: str) -> str:
        return stage if trial is None else f"trial {trial} ({min(self.done + 1, self.trials)} of {self.trials}) {stage}"

    def _left(self, form: str) -> str:
        left = self.time_left_s
        return "" if left is None else form.format(duration(left))

    def _line(self, text: str) -> None:
        if self._live is None and not self.quiet:
            self._print(self._prefix + text)

    def _print(self, text: str) -> None:
        # Not through rich: it would wrap a log's lines at 80 columns.
        print(text, file=self._console.file if self._console else sys.stdout, flush=True)

    def _render(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        with self._lock:
            steps, front = list(self._steps.values()), self._front
        head = Text(f"{self.done} of {self.trials} trials{self._left(' · about {} left')}", style="bold")
        lines: list[RenderableType] = [head]
        for step in steps:
            numbers = _numbers(step)
            lines.append(Text(f"  {self._where(step.trial, step.stage)}" + (f" · {numbers}" if numbers else "")))
        if front:
            lines.append(front_table(front, self.teacher, rows=TOP_ROWS))
        return Group(*lines)


def outcome(record: TrialRecord) -> str:
    """How a trial ended, in a line that stays true: its numbers, or its reason."""
    if record.measurement is None or record.state != "COMPLETE":
        return {"PRUNED": "pruned", "FAIL": "failed"}.get(record.state, "complete") + f": {record.reason or 'no reason given'}"
    measured = record.measurement
    speed = [f"{median:.3f} ms" for median in milliseconds(measured.latency)]
    numbers = ", ".join([f"{100 * measured.accuracy:.2f} %", f"{measured.size_bytes / KB:.1f} KB", *speed])
    return f"complete: {numbers}, {student_name(record)}"


def _place(record: TrialRecord, front: Sequence[TrialRecord]) -> str:
    """Where a complete trial stands now: a later one may push it down or off."""
    if record.state != "COMPLETE":
        return ""
    ranks = [rank for rank, other in enumerate(front) if other.number == record.number]
    return f", rank {ranks[0]} of {len(front)}" if ranks else ", off the front"


def _numbers(step: Step) -> str:
    if step.epoch is None or step.epochs is None:
        return ""
    parts = [f"epoch {step.epoch:.3g}/{step.epochs:.3g}"]
    parts += [f"{step.images_per_s:,.0f} images/s"] if step.images_per_s is not None else []
    parts += [f"loss {step.loss:.3f}"] if step.loss is not None else []
    parts += [f"lr {step.lr:.2g}"] if step.lr is not None else []
    return ", ".join(parts + ([f"accuracy {100 * step.accuracy:.1f} %"] if step.accuracy is not None else []))


def _console() -> Console:
    from rich.console import Console

    return Console()


def _live(console: Console | None, render: Callable[[], RenderableType]) -> Live | None:
    """A live display, or None where the output is no terminal that can redraw."""
    if console is None and not sys.stdout.isatty():
        return None
    from rich.live import Live

    console = console or _console()
    if not console.is_terminal or console.is_dumb_terminal:
        return None
    return Live(console=console, get_renderable=render, refresh_per_second=4, transient=True)
