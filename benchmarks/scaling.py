"""What several workers bring, and what their coordination costs.

    python benchmarks/scaling.py trials --workers 1 --workers 2 --trials 12       whole searches on digits: trials per hour
    python benchmarks/scaling.py coordination --storage postgresql://... --workers 16 --trials 10000

`coordination` runs the real loop, lock, storage and sampler without any training. Rows go to --out one by one; those that are there are not
made again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from threading import get_ident
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import joblib
import optuna
from optuna.samplers import BaseSampler
from sqlalchemy.engine import make_url

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.candidate import LatencyReport, Measurement  # noqa: E402 (a script: the checkout comes first)
from core.files import write_atomically  # noqa: E402
from core.hardware import device_facts  # noqa: E402
from results.front import Point, objectives  # noqa: E402
from results.record import RECORD_KEY, TrialRecord  # noqa: E402
from search import samplers  # noqa: E402 (the module: a worker gets a copy of any other global)
from search.goal import Goal  # noqa: E402
from search.lock import StudyLock  # noqa: E402
from search.loop import run_trials  # noqa: E402
from search.owner import OWNER_KEY, current_owner  # noqa: E402
from search.progress import Progress  # noqa: E402
from search.sample import sample  # noqa: E402
from search.samplers import Clocked  # noqa: E402
from search.space import Space, load_space  # noqa: E402
from search.study import open_study  # noqa: E402
from search.summary import versions  # noqa: E402

if TYPE_CHECKING:
    from search.trial import TrialRunner

SPACE = ROOT / "spaces" / "digits.yaml"
OUT = ROOT / "benchmarks" / "results" / "scaling.json"
THOUSANDTHS = 1000.0


@dataclass
class Untrained:
    """A runner of trials that trains nothing: samples, signs, and tells numbers that follow from what was sampled."""

    space: Space
    begun: Callable[[], None]
    progress: Progress
    seconds: float = 0.0
    """To idle within every trial."""
    owner: dict[str, Any] = field(default_factory=current_owner)
    first: Callable[[optuna.Study], float] = lambda study: 0.0
    records: list[TrialRecord] = field(default_factory=list)
    newest: int | None = None
    count: int = 0
    loop_seconds: float = 0.0
    sampler_seconds: float = 0.0
    ends: list[tuple[int, float]] = field(default_factory=list)
    """Trial, and when it had been told, by this machine's monotonic clock."""

    def __call__(self, trial: optuna.Trial) -> Point:
        self.newest = trial.number
        self.count += 1
        trial.set_user_attr(OWNER_KEY, self.owner)
        self.begun()
        candidate = sample(self.space, trial)
        time.sleep(self.seconds)
        size = round(1000 * candidate.width * sum(group.weight_bits for group in candidate.groups))
        latency = LatencyReport(
            p50_ms=candidate.width, p95_ms=candidate.width, ci_ms=(candidate.width, candidate.width), samples=1, stable=True, batch=1,
            threads=1, runtime="none", precision="f32", fingerprint="none",
        )  # fmt: skip
        measurement = Measurement(
            accuracy=min(1.0, size / 1e5), images=1, size_bytes=size, latency=latency, agreement=1.0, parameters=1, macs=1, mean_bits=4.0
        )
        record = TrialRecord(
            number=trial.number, state="COMPLETE", candidate=candidate, fingerprint=f"{trial.number:016x}", measurement=measurement
        )
        trial.set_user_attr(RECORD_KEY, record.model_dump_json())
        self.records = [record]
        return objectives(record)

    def release(self) -> None:
        """Nothing is held; called when the trial was told."""
        if self.newest is not None:
            self.ends.append((self.newest, time.monotonic()))


class Watch:
    """Adds up seconds of the thread that made it, and of its processor; a call within a watched call counts once."""

    def __init__(self) -> None:
        self.seconds, self.cpu_seconds, self._inside, self._thread = 0.0, 0.0, False, get_ident()

    def __call__(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self._inside or get_ident() != self._thread:  # another thread's: the heart of a trial, which beats beside us
            return call(*arguments, **named)
        self._inside, start, cpu_start = True, time.perf_counter(), time.thread_time()
        try:
            return call(*arguments, **named)
        finally:
            self._inside = False
            self.seconds += time.perf_counter() - start
            self.cpu_seconds += time.thread_time() - cpu_start


class TimedLock(StudyLock):
    """A study's lock whose waiting is watched."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self.watch = Watch()

    def acquire(self) -> None:
        """As the lock."""
        self.watch(super().acquire)


class WatchedSampler(Clocked):
    """The sampler in it, watched."""

    def __init__(self, sampler: BaseSampler, watch: Watch) -> None:
        super().__init__(sampler)
        self.watch = watch

    def _timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        return self.watch(call, *arguments)


class TimedStorage:
    """Watches a study's storage."""

    def __init__(self, study: optuna.Study) -> None:
        self.watch = Watch()
        storage = study._storage
        for name in dir(type(storage)):
            if not name.startswith("__") and callable(getattr(storage, name)):
                setattr(storage, name, self._timed(getattr(storage, name)))

    def _timed(self, call: Callable[..., Any]) -> Callable[..., Any]:
        return partial(self.watch, call)


def coordinate(url: str, folder: Path, trials: int, sampler: str = "random", seconds: float = 0.0) -> dict[str, Any]:
    """One worker's share of a study without training: how many trials, the seconds of sampler, storage and lock, and what our code took.

    That is the processor's time of this thread without those three: with more workers than cores a clock on the wall sees the turns of
    others too. A sampler that reads the storage counts that twice, so it is right with `random` alone.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, lock, drawn = load_space(SPACE, []), TimedLock(url, folder), Watch()
    original = samplers.SAMPLERS[sampler]
    with lock:
        study = open_study(url, folder.name, "coordination", {}, folder)
    storage = TimedStorage(study)
    runner = Untrained(space, lock.release, Progress(trials, quiet=True), seconds)
    watches = {"sampler": drawn, "storage": storage.watch, "lock": Watch()}
    lock.watch = watches["lock"]  # opening the study, which all do at once, is no trial's
    start = time.thread_time()
    with patch.dict(samplers.SAMPLERS, {sampler: lambda seed: WatchedSampler(original(seed), drawn)}):
        run_trials(study, cast("TrialRunner", runner), Goal(trials, sampler=sampler), lock)
    whole = time.thread_time() - start
    return {
        "trials": runner.count,
        **{f"{name}_s": watch.seconds for name, watch in watches.items()},
        "ends": runner.ends,
        "own_s": whole - sum(watch.cpu_seconds for watch in watches.values()),
    }


def measure_coordination(url: str, folder: Path, workers: int, trials: int, sampler: str) -> dict[str, Any]:
    """A row: milliseconds per trial of every part, as the mean over all trials of all workers."""
    start = time.perf_counter()
    run = joblib.Parallel(n_jobs=workers, backend="loky", batch_size=1, pre_dispatch="all")
    shares = run(joblib.delayed(coordinate)(url, folder, trials, sampler) for _ in range(workers))
    wall = time.perf_counter() - start
    total = sum(share["trials"] for share in shares)
    parts = [name for name in shares[0] if name.endswith("_s")]
    means = {name.replace("_s", "_ms"): round(THOUSANDTHS * sum(share[name] for share in shares) / total, 3) for name in parts}
    return {
        "workers": workers,
        "trials": total,
        "sampler": sampler,
        "wall_s": round(wall, 2),
        **means,
        **growth([s["ends"] for s in shares]),
    }


def growth(ends: list[list[tuple[int, float]]]) -> dict[str, float]:
    """Milliseconds of a worker per trial, in the first and in the last tenth of a study; a worker's first trial has no beginning."""
    total = sum(map(len, ends))
    spans = [(number, after - before) for worker in ends for (_, before), (number, after) in pairwise(worker)]
    early = [span for number, span in spans if number < total / 10]
    late = [span for number, span in spans if number >= total - total / 10]
    return {f"{name}_tenth_ms": round(THOUSANDTHS * fmean(part), 3) for name, part in (("first", early), ("last", late)) if part}


def measure_trials(workers: int, trials: int) -> dict[str, Any]:
    """A row: trials per hour of a whole search on digits, teacher and start included in wall_s and not in the rate."""
    study = f"scaling-{workers}"
    command = ["-m", "search.run", "--space", str(SPACE), "--study", study, "--fresh", "--trials", str(trials), "--workers", str(workers)]
    subprocess.run([sys.executable, *command, "--quiet"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found = optuna.load_study(study_name=study, storage=f"sqlite:///{ROOT}/runs/{study}/study.db").get_trials(deepcopy=False)
    begun = min(trial.datetime_start for trial in found if trial.datetime_start)
    ended = max(trial.datetime_complete for trial in found if trial.datetime_complete)
    seconds = (ended - begun).total_seconds()
    return {"workers": workers, "trials": trials, "seconds": round(seconds, 1), "trials_per_hour": round(3600 * trials / seconds, 1)}


def main(argv: list[str] | None = None) -> None:
    """Append a row per number of workers to --out, where it is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("trials", "coordination"))
    parser.add_argument("--workers", type=int, action="append", required=True)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--storage", help="of coordination: a database URL; a study of its own is made in it for every row")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    for workers in args.workers:
        rows = json.loads(args.out.read_text()) if args.out.exists() else {}
        database = "sqlite" if args.storage is None else make_url(args.storage).get_backend_name()
        row = {"workers": workers, "trials": args.trials, "database": database}
        row |= {} if args.what == "trials" else {"sampler": args.sampler}
        if any(row.items() <= known.items() for known in rows.get(args.what, [])):
            print("is there:", row)
            continue
        if args.what == "trials":
            row |= measure_trials(workers, args.trials)
        else:
            folder = ROOT / "runs" / f"coordination-{workers}-{args.trials}-{int(time.time())}"
            url = args.storage or f"sqlite:///{folder / 'study.db'}"
            row |= measure_coordination(url, folder, workers, args.trials, args.sampler)
        rows.setdefault(args.what, []).append(row | {"device": device_facts(), "versions": versions()})
        write_atomically(args.out, json.dumps(rows, indent=1) + "\n")
        print(row)


if __name__ == "__main__":
    main()
