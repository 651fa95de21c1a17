"""How a call is timed: warm up until steady, time blocks of calls, stop when the interval of the median is narrow.

    python -m core.latency MODEL.onnx --runtime onnxruntime --batch 1 --threads 1     one file on this machine, as text or --json

The unit of statistics is the block, not the call: neighbouring calls share their noise, so an interval over calls would
be too narrow. The 95 % interval is that of the median of the block medians, from order statistics: no assumption on the
distribution, which for latencies is skewed. It is looked at after every block until it is narrow, which costs coverage: with blocks that
spread by 1 to 4 % it holds the true median in 97 to 92 % of simulated measurements (docs/protocol.md).

Between two blocks a pinned reference network (core/reference.py) runs. Where it is slower than on the quiet machine, something else
was at work or the clock fell: the block beside it is timed again. It tells disturbance apart; no number is ever rescaled by it.

References: ISO 16269-7 (confidence interval of a median); Georges et al., Statistically Rigorous Java Performance
Evaluation, OOPSLA 2007 (steady state, then intervals).
"""

from __future__ import annotations

import gc
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np

from core.errors import UserError

if TYPE_CHECKING:
    from core.candidate import EngineArtifact, LatencyReport
    from core.config import RuntimeConfig

Clock = Callable[[], int]
Timed = Callable[[], int | None]
"""A call to be timed: the nanoseconds it took by a clock of its own (a GPU's), or None: by the host's."""

BLOCK_S = 0.02
"""Length of a block: long against the timer and a context switch, short against `max_s`."""
WATCH_S = 0.01
"""The same of the reference network between two blocks."""
MAX_BLOCK_CALLS = 1000
MIN_BLOCKS = 10
"""The fewest blocks a stable result rests on."""
LEAST_BLOCKS = 6
"""With fewer, order statistics have no 95 % interval of a median."""
STEADY = 0.05
"""Warm-up ends when the medians of neighbouring windows differ by less than this share."""
MOVED = 0.05
"""The reference has moved when it differs from its quiet time by more than this share: a busy neighbour on the core takes 20 % and more."""
QUIET = 0.25
"""The quiet time of the reference is this quantile of its blocks: right while the machine is quiet a quarter of the time."""
LISTEN = 0.5
"""Share of `max_s` for which the reference runs alone where its quiet time is not known yet: else the first blocks could set it."""


class Timing(TypedDict):
    """Milliseconds per call. `ci_ms` is the 95 % interval of `p50_ms`, which is of `samples` calls in `blocks` undisturbed blocks.

    Below LEAST_BLOCKS there is no such interval: `ci_ms` is then the range of all blocks, the disturbed ones too. Where `blocks` is 0,
    the other numbers are of all as well. During `redone` blocks the reference moved; `reference_ms` is its quiet time.
    """

    p50_ms: float
    p95_ms: float
    ci_ms: tuple[float, float]
    samples: int
    blocks: int
    redone: int
    reference_ms: float
    stable: bool


class Watched(NamedTuple):
    """What `time_calls` found, and the quiet time of the reference in this measurement alone, in ms."""

    timing: Timing
    own_quiet_ms: float


def time_calls(
    call: Timed,
    reference: Timed,
    *,
    warmup_s: float,
    max_s: float,
    rel_ci: float = 0.02,
    quiet_ms: float | None = None,
    clock: Clock = time.perf_counter_ns,
) -> Watched:
    """Time `call` until the interval of the median is at most `rel_ci` of it wide, or `max_s` are over.

    `stable` is false when time ran out first: the interval stayed wide, the first and the second half of the blocks disagree (drift), or
    `reference` was too seldom at its quiet time, which is that of this measurement or, if faster, `quiet_ms` of earlier ones.
    At least one block is timed, so a call longer than `max_s` is timed once. `clock` returns nanoseconds.
    """
    with _no_garbage_collection():
        calls = _calls_in(BLOCK_S, _warm_up(call, warmup_s, max_s, clock))
        looks = _calls_in(WATCH_S, _warm_up(reference, 0.0, max_s, clock))
        blocks: list[np.ndarray] = []
        watch = _listen(reference, looks, 0.0 if quiet_ms is not None else LISTEN * max_s, clock)
        end = clock() + int(max_s * 1e9)
        while True:
            blocks.append(_block(call, calls, clock))
            watch.append(float(np.median(_block(reference, looks, clock))))
            quiet, own, level = _undisturbed(np.array(watch), len(blocks), quiet_ms)
            medians = np.array([np.median(block) for block, kept in zip(blocks, quiet, strict=True) if kept])
            narrow = len(medians) >= MIN_BLOCKS and _is_narrow(medians, rel_ci)
            if narrow or clock() >= end:
                break
    return Watched(_timing(blocks, quiet, level, narrow), own / 1e6)


def longest_s(warmup_s: float, max_s: float) -> float:
    """Seconds that `time_calls` takes at most, but for the call at which each of its parts ends."""
    return warmup_s + (3 + LISTEN) * max_s  # two warm-ups that never become steady, the quiet time, the blocks


def _timing(blocks: Sequence[np.ndarray], quiet: np.ndarray, level: float, stable: bool) -> Timing:
    """The numbers of the `quiet` (n,) blocks; of all where there is none, since some number must be shown.

    Where too few are quiet for an interval, the range of all blocks stands for it.
    """
    undisturbed = int(quiet.sum())
    chosen = [block for block, kept in zip(blocks, quiet if undisturbed else ~quiet, strict=True) if kept]
    medians, samples = np.array([np.median(block) for block in chosen]), np.concatenate(chosen)
    every = [float(np.median(block)) for block in blocks]
    low, high = median_interval(medians) if undisturbed >= LEAST_BLOCKS else (min(every), max(every))
    return {
        "p50_ms": float(np.median(medians)) / 1e6,
        "p95_ms": float(np.percentile(samples, 95)) / 1e6,
        "ci_ms": (low / 1e6, high / 1e6),
        "samples": len(samples),
        "blocks": undisturbed,
        "redone": len(blocks) - undisturbed,
        "reference_ms": level / 1e6,
        "stable": stable,
    }


def _listen(reference: Timed, looks: int, seconds: float, clock: Clock) -> list[float]:
    """Medians (ns) of the reference's blocks for so long, at least one."""
    end = clock() + int(seconds * 1e9)
    watch = [float(np.median(_block(reference, looks, clock)))]
    while clock() < end:
        watch.append(float(np.median(_block(reference, looks, clock))))
    return watch


def _undisturbed(watch: np.ndarray, n: int, quiet_ms: float | None) -> tuple[np.ndarray, float, float]:
    """Which of n blocks lie between two of the last n + 1 reference medians of `watch` (ns) at the quiet time.

    Then the quiet time as `watch` alone has it, and the one that counts (ns): the smaller of that and `quiet_ms`.
    """
    own = float(np.quantile(watch, QUIET, method="lower"))
    level = own if quiet_ms is None else min(own, quiet_ms * 1e6)
    still = np.abs(watch[-n - 1 :] - level) <= MOVED * level
    return still[:-1] & still[1:], own, level


def median_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Distribution-free interval of the median of `values` (n,); (min, max) when n < 6 allows none of 95 %."""
    ordered = np.sort(values)
    n = len(ordered)
    rank, outside, ways = 0, 1, 1  # ways(k) = C(n, k); P(X <= rank) = outside / 2**n for X ~ Bin(n, 1/2), in exact integers
    while rank < (n - 1) // 2:
        ways = ways * (n - rank) // (rank + 1)
        if (outside + ways) / 2**n > (1 - confidence) / 2:
            break
        rank, outside = rank + 1, outside + ways
    return float(ordered[rank]), float(ordered[n - 1 - rank])


def _warm_up(call: Timed, warmup_s: float, max_s: float, clock: Clock) -> float:
    """Call until `warmup_s` are over and two neighbouring windows agree, at most `warmup_s + max_s`; median ns per call."""
    start = clock()
    before = math.inf
    while True:
        window = _block(call, 1, clock)
        while window.sum() < BLOCK_S * 1e9 and len(window) < MAX_BLOCK_CALLS:
            window = np.concatenate([window, _block(call, len(window), clock)])
        median = float(np.median(window))
        elapsed_s = (clock() - start) / 1e9
        if elapsed_s >= warmup_s and (abs(median - before) <= STEADY * median or elapsed_s >= warmup_s + max_s):
            return median
        before = median


def _calls_in(seconds: float, call_ns: float) -> int:
    """How many calls of `call_ns` fill a block of `seconds`."""
    return min(max(math.ceil(seconds * 1e9 / max(call_ns, 1.0)), 1), MAX_BLOCK_CALLS)


def _block(call: Timed, calls: int, clock: Clock) -> np.ndarray:
    """Nanoseconds of each of `calls` calls, shape (calls,)."""
    nanoseconds = []
    for _ in range(calls):
        start = clock()
        own = call()
        nanoseconds.append(clock() - start if own is None else own)
    return np.array(nanoseconds, dtype=np.float64)


def _is_narrow(medians: np.ndarray, rel_ci: float) -> bool:
    """Narrow interval, and no drift between the halves beyond it."""
    low, high = median_interval(medians)
    half = len(medians) // 2
    drift = abs(float(np.median(medians[:half]) - np.median(medians[half:])))
    limit = rel_ci * float(np.median(medians))
    return high - low <= limit and drift <= limit


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collections land in few calls and cost more than many of them take."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def main(argv: list[str]) -> int:
    """Time one ONNX file in one runtime, alone on this machine, and say how it was measured."""
    from core.cli import Parser, required  # late, as what follows: the measuring child imports this module and is no command
    from core.config import RuntimeConfig

    plain = RuntimeConfig()
    parser = Parser(prog="python -m core.latency", description=main.__doc__)
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="images (batch, C, H, W) in, logits (batch, classes) out")
    parser.add_argument("--runtime", default=plain.name, metavar="NAME", help="see core.hardware (default %(default)s)")
    parser.add_argument("--batch", type=int, default=plain.batch, metavar="N", help="images per call (default %(default)s)")
    parser.add_argument("--threads", type=int, default=plain.threads, metavar="N", help="of the engine (default %(default)s)")
    parser.add_argument("--precision", default=plain.precision, metavar="P", help="of float layers: f32, bf16, f16 (default %(default)s)")
    parser.add_argument("--max-s", type=float, default=plain.max_s, metavar="S", help="longest measurement (default %(default)s)")
    parser.add_argument("--timeout-s", type=float, default=plain.timeout_s, metavar="S", help="to build beyond that (default %(default)s)")
    parser.add_argument("--agent", metavar="URL", help="measure on the machine of this core.agent")
    parser.add_argument("--json", action="store_true", help="one JSON object in place of text")
    args = parser.parse_args(argv)
    if not args.model.is_file():
        raise UserError(f"MODEL must be an ONNX file, but there is no {args.model}; name one")
    from core.yaml_io import parse

    options = {"name": args.runtime, "batch": args.batch, "threads": args.threads, "precision": args.precision}
    limits = {"max_s": args.max_s, "timeout_s": args.timeout_s}
    config = parse(RuntimeConfig, options | limits | ({"agent": args.agent} if args.agent else {}), "the flags")
    with required("a model must build and run to be timed"):
        _print_latency(args.model, config, as_json=args.json)
    return 0


def _print_latency(model: Path, config: RuntimeConfig, *, as_json: bool) -> None:
    from core.engines import EngineHost  # late: it knows the child, and the child imports this module

    with tempfile.TemporaryDirectory() as folder, EngineHost(config, Path(folder)) as engines:
        report, artifact = engines.time_model(model)
        device = engines.device
    if as_json:
        document = {"latency": report.model_dump(mode="json"), "engine": artifact.model_dump(mode="json"), "device": device}
        print(json.dumps(document, indent=2))
    else:
        print("\n".join(f"{name:10} {text}" for name, text in _described(report, artifact).items()))
        print(f"{'device':10} {', '.join(f'{key} {value}' for key, value in device.items() if key != 'isa')}")


def _described(report: LatencyReport, artifact: EngineArtifact) -> dict[str, str]:
    """A line per fact."""
    seen = {
        "load": "" if report.busy_cores is None else f"{report.busy_cores:.2f} cores busy with other work",
        "clock": "" if report.clock_mhz is None else f"{report.clock_mhz:.0f} MHz{', throttled' if report.throttled else ''}",
    }
    return {
        "latency": f"{report.p50_ms:.4f} ms median, {report.spread()} ({report.width_percent:.1f} % wide), p95 {report.p95_ms:.4f} ms",
        "stable": "yes" if report.stable else f"no: {report.unrest().removeprefix('unstable: ')}, or its halves disagree",
        "method": f"{report.samples} calls; {report.blocks} undisturbed blocks, {report.redone} during which the reference network moved",
        "reference": "not known" if report.reference_ms is None else f"{report.reference_ms:.4f} ms on the quiet machine",
        "engine": f"{report.runtime}, batch {report.batch}, {report.threads} thread(s), {artifact.int8_layers} of {artifact.layers} layers "
        f"in INT8, others in {report.precision}",
        **{name: text for name, text in seen.items() if text},
        "fingerprint": report.fingerprint,
    }


if __name__ == "__main__":
    from core.cli import run_main

    raise SystemExit(run_main(main))
