"""How repeatable is a latency on a machine that is not quiet? python benchmarks/latency_repeatability.py [--fresh]

1. quiet   candidates drawn by seed 0 from spaces/cifar10.yaml are timed without a load until 20 have medians that lie 4 % or more apart.
2. first, second   two separate runs (two processes) over these 20, while another process keeps one core busy half of the time; every
           candidate is timed by core/latency.py and by a plain timer (10 warm-up and 20 timed calls, their mean) in the same engine.

Between the two runs: Kendall's tau of the order and the median absolute difference, for both ways of timing. Finished rows are kept, so an
interrupted run goes on. Run it on a machine that does nothing else. --space, --count, --batch, --runtime choose otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.config import RuntimeConfig  # noqa: E402
from core.engines import EngineHost  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.runtimes import EngineOptions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "latency_repeatability.json"
APART = 0.04
MOST_DRAWS = 400
BUSY_S = 0.25
"""Mean length of a busy and of an idle stretch; the lengths are random, so that nothing can fall into step with them."""
WARM_UPS, CALLS = 10, 20
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=ROOT / "spaces" / "cifar10.yaml")
    parser.add_argument("--count", type=int, default=20, metavar="N", help="candidates (default %(default)s)")
    parser.add_argument("--runtime", default="openvino", metavar="NAME")
    parser.add_argument("--batch", type=int, default=1, metavar="N")
    parser.add_argument("--max-s", type=float, default=6.0, metavar="S", help="longest measurement (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--fresh", action="store_true", help="forget earlier rows")
    parser.add_argument("--worker", choices=("first", "second"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    config = RuntimeConfig(name=args.runtime, batch=args.batch, max_s=args.max_s)
    models = args.out.with_suffix("")  # a folder beside the result: the two runs must time the same files
    if args.worker:
        run(args.worker, args.out, models, config)
        return 0
    if args.fresh or not args.out.exists():
        save(args.out, {"space": args.space.name, "runtime": config.model_dump(mode="json"), "quiet": [], "first": [], "second": []})
    choose(args.out, models, args.space, args.count, config)
    for name in ("first", "second"):
        with busy_half_of_the_time():
            subprocess.run([sys.executable, __file__, "--worker", name, *sys.argv[1:]], check=True)
    summary = summarise(load(args.out))
    save(args.out, load(args.out) | {"summary": summary})
    print(json.dumps(summary, indent=1))
    return 0


def choose(out: Path, models: Path, space: Path, count: int, config: RuntimeConfig) -> None:
    """Draw until `count` quiet medians are pairwise `APART`; write their models and rows."""
    state = load(out)
    with tempfile.TemporaryDirectory() as work, EngineHost(config, Path(work)) as engines:
        for draw, (candidate, onnx) in enumerate(draws(space, engines)):
            if len(state["quiet"]) >= count:
                return
            if draw < state.get("drawn", 0):
                continue
            path = write_atomically(models / f"{draw}.onnx", onnx)
            report, _ = engines.time_model(path)
            row = {"draw": draw, "student": candidate.student, "width": candidate.width, "p50_ms": report.p50_ms, "stable": report.stable}
            if all(abs(report.p50_ms - other["p50_ms"]) >= APART * min(report.p50_ms, other["p50_ms"]) for other in state["quiet"]):
                state["quiet"].append(row | {"fingerprint": report.fingerprint, "busy_cores": report.busy_cores})
                print(json.dumps(row), flush=True)
            else:
                path.unlink()
            state["drawn"] = draw + 1
            save(out, state)
    raise SystemExit(
        f"{MOST_DRAWS} draws gave {len(state['quiet'])} candidates {100 * APART:g} % apart, but {count} are wanted; take a wider --space"
    )


def draws(space: Path, engines: EngineHost) -> Iterator[tuple[Any, bytes]]:
    """Candidates of the space by seed 0, and their untrained models: latency does not depend on weights."""
    import optuna

    from core.compress import draft, resolve
    from core.students import STUDENTS
    from search.sample import sample
    from search.space import load_space

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    loaded, shape = load_space(space), (3, 32, 32)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(MOST_DRAWS):
        candidate = sample(loaded, study.ask())
        dense = STUDENTS[candidate.student](classes=10, channels=3, image_size=32, width=candidate.width).eval()
        pruned, plan = resolve(dense, candidate, shape, engines.runtime)
        yield candidate, draft(pruned, plan, shape, engines.runtime, candidate.quantiser).model.SerializeToString()


def run(name: str, out: Path, models: Path, config: RuntimeConfig) -> None:
    """One of the two runs: a row per candidate, in an order of its own."""
    rows = load(out)["quiet"]
    random.Random(name).shuffle(rows)
    done = {row["draw"] for row in load(out)[name]}
    with tempfile.TemporaryDirectory() as work, EngineHost(config, Path(work)) as engines:
        for row in rows:
            if row["draw"] in done:
                continue
            path = models / f"{row['draw']}.onnx"
            report, _ = engines.time_model(path)
            seen = {key: getattr(report, key) for key in ("p50_ms", "ci_ms", "stable", "blocks", "redone", "busy_cores")}
            state = load(out)
            state[name].append({"draw": row["draw"], **seen, "plain_ms": plain_ms(path, config, engines.runtime)})
            save(out, state)
            print(name, json.dumps(state[name][-1]), flush=True)


def plain_ms(path: Path, config: RuntimeConfig, runtime: Any) -> float:
    """The timer that most scripts have: ten calls, then the mean of twenty."""
    engine = runtime.load(str(path), EngineOptions(config.batch, config.threads, config.precision))
    images = np.random.default_rng(0).standard_normal(engine.input_shape, dtype=np.float32)
    for _ in range(WARM_UPS):
        engine.run(images)
    start = time.perf_counter()
    for _ in range(CALLS):
        engine.run(images)
    return 1000 * (time.perf_counter() - start) / CALLS


@contextmanager
def busy_half_of_the_time() -> Iterator[None]:
    """Another process computes and sleeps in turn."""
    code = (
        "import os, random, time\n"
        f"dice, parent = random.Random(0), {os.getpid()}\n"
        "while os.getppid() == parent:\n"
        f"    end = time.perf_counter() + dice.uniform(0, {2 * BUSY_S})\n"
        "    while time.perf_counter() < end: sum(range(1000))\n"
        f"    time.sleep(dice.uniform(0, {2 * BUSY_S}))\n"
    )
    with subprocess.Popen([sys.executable, "-c", code]) as load_process:
        try:
            yield
        finally:
            load_process.kill()


def summarise(state: dict[str, Any]) -> dict[str, Any]:
    """What the two runs say of each other, by both ways of timing."""
    first, second = ({row["draw"]: row for row in state[name]} for name in ("first", "second"))
    order = [row["draw"] for row in state["quiet"]]
    found: dict[str, Any] = {
        "candidates": len(order),
        "unstable": sum(not row["stable"] for run in (first, second) for row in run.values()),
    }
    for name, key in (("protocol", "p50_ms"), ("plain", "plain_ms")):
        pair = np.array([[run[draw][key] for draw in order] for run in (first, second)])
        quiet = [row["p50_ms"] for row in state["quiet"]]
        found[name] = {
            "kendall_tau": kendall_tau(pair[0], pair[1]),
            "median_difference": float(np.median(np.abs(pair[0] - pair[1]) / pair.mean(axis=0))),
            "tau_with_quiet": [kendall_tau(quiet, run) for run in pair],
        }
    return found


def kendall_tau(a: ArrayLike, b: ArrayLike) -> float:
    """Tau-b of two rankings."""
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def save(path: Path, state: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(state, indent=1) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
