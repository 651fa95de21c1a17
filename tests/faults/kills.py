"""kill -9 at random moments of a real study with two workers: python -m tests.faults.kills --kills 50 --out kills.json

Each row says what was killed, when, and what the study lost: nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from core.files import write_atomically
from results.record import RECORD_KEY
from search.study import REQUEUED_KEY, count_finished, count_running
from tests.faults.runs import alive, argv, facts, family, log_of, start, wait_until, workers_of
from tests.search.studies import load

NEVER = "100000"
"""Trials: no run ends by itself."""
LATEST_S = 8.0
"""Of a kill, after the first trial of the run has begun; a trial takes about a second, the first of a worker some more."""
VICTIMS = ("run", "worker", "all", "stop")
"""The parent alone; one worker, and the parent a little later; everything at once; SIGTERM to the parent."""


def kill_rounds(folder: Path, kills: int, seed: int, latest_s: float = LATEST_S) -> list[dict[str, Any]]:
    """Start a run, kill it at a random moment, look at what is left, `kills` times over: a row each."""
    chance = random.Random(seed)
    rows: list[dict[str, Any]] = []
    for number in range(kills):
        row: dict[str, Any] = {"kill": number, "victim": chance.choice(VICTIMS), "after_s": round(chance.uniform(0.0, latest_s), 2)}
        row["stopped_in_s"], before = _kill(folder, row["victim"], row["after_s"], chance, number)
        after = finished(folder)
        row |= {
            "before": len(before),
            "after": len(after),
            "lost": sum(after.get(trial) != what for trial, what in before.items()),
            "doubled": doubled(folder),
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def _kill(folder: Path, victim: str, after_s: float, chance: random.Random, least: int) -> tuple[float, dict[int, Any]]:
    """One run and its end: seconds until the last of its processes was gone, what was `finished` when it was struck: `least` at least."""
    seen = log_of(folder).count("[worker")
    process = start(folder, *argv("--trials", NEVER, "--workers", "2"))
    wait_until(lambda: (log_of(folder).count(" sample") > 0 and log_of(folder).count("[worker") > seen + 4) or process.poll() is not None)
    wait_until(lambda: len(finished(folder)) >= least or process.poll() is not None)
    assert process.poll() is None, log_of(folder)[-2000:]
    time.sleep(after_s)
    everybody, before = family(process), finished(folder)
    if victim == "worker":
        _kill_all([chance.choice(workers_of(everybody))])
        time.sleep(after_s)
        everybody = [*everybody, *family(process)]
    start_s = time.monotonic()
    if victim == "stop":
        os.kill(process.pid, signal.SIGTERM)
    elif victim == "all":
        _kill_all(everybody)
    else:
        process.kill()
    process.wait(timeout=30)
    wait_until(lambda: not alive(everybody), limit_s=60)
    return round(time.monotonic() - start_s, 2), before


def _kill_all(processes: list[psutil.Process]) -> None:
    for each in processes:
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue


def finished(folder: Path) -> dict[int, Any]:
    """Trial -> state, values and record, of all that are complete or pruned."""
    if not (folder / "runs" / "tiny" / "study.db").exists():
        return {}
    trials = load(folder=folder / "runs" / "tiny").get_trials(deepcopy=False)
    return {
        trial.number: (trial.state.name, trial.values, trial.user_attrs.get(RECORD_KEY))
        for trial in trials
        if trial.state.name in ("COMPLETE", "PRUNED")
    }


def doubled(folder: Path) -> int:
    """Trials that were queued again more than once, or although they had finished."""
    trials = load(folder=folder / "runs" / "tiny").get_trials(deepcopy=False)
    repeats = Counter(trial.user_attrs[REQUEUED_KEY] for trial in trials if REQUEUED_KEY in trial.user_attrs)
    ended = finished(folder)
    return sum(count - 1 + (number in ended) for number, count in repeats.items())


def end_of(folder: Path, before: dict[int, Any]) -> dict[str, int]:
    """Let the study end by itself with a few more trials, and count what is left of everything that was `finished` before."""
    wanted = len(before) + 3
    assert start(folder, *argv("--trials", str(wanted), "--workers", "2")).wait(300) == 0, log_of(folder)[-2000:]
    after, study = finished(folder), load(folder=folder / "runs" / "tiny")
    lost = sum(after.get(trial) != what for trial, what in before.items())
    counts = {"wanted": wanted, "finished": count_finished(study), "running": count_running(study)}
    return {**counts, "lost": lost, "doubled": doubled(folder)}


def main() -> None:
    """Kill, then let the study end by itself; the last line counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = kill_rounds(Path(folder), args.kills, args.seed)
        end = end_of(Path(folder), finished(Path(folder)))
    write_atomically(args.out, json.dumps({"kills": rows, "end": end, **facts()}, indent=1) + "\n")
    print({key: sum(row[key] for row in rows) for key in ("lost", "doubled")}, "and at the end", end)


if __name__ == "__main__":
    main()
