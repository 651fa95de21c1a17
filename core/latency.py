"""How a call is timed: warm up until steady, time blocks of calls, stop when the interval of the median is narrow.

The unit of statistics is the block, not the call: neighbouring calls share their noise, so an interval over calls would
be too narrow. The 95 % interval is that of the median of the block medians, from order statistics: no assumption on the
distribution, which for latencies is skewed.

References: ISO 16269-7 (confidence interval of a median); Georges et al., Statistically Rigorous Java Performance
Evaluation, OOPSLA 2007 (steady state, then intervals).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypedDict

import numpy as np

Clock = Callable[[], int]

BLOCK_S = 0.02
"""Length of a block: long against the timer and a context switch, short against `max_s`."""
MAX_BLOCK_CALLS = 1000
MIN_BLOCKS = 10
"""The fewest blocks a stable result rests on; below 6 no 95 % interval exists at all."""
STEADY = 0.05
"""Warm-up ends when the medians of neighbouring windows differ by less than this share."""


class Timing(TypedDict):
    """Milliseconds per call. `ci_ms` is the 95 % interval of `p50_ms`; `samples` calls were timed in `blocks` blocks."""

    p50_ms: float
    p95_ms: float
    ci_ms: tuple[float, float]
    samples: int
    blocks: int
    stable: bool


def time_calls(
    call: Callable[[], None], *, warmup_s: float, max_s: float, rel_ci: float = 0.02, clock: Clock = time.perf_counter_ns
) -> Timing:
    """Time `call` until the interval of the median is at most `rel_ci` of it wide, or `max_s` are over.

    `stable` is false when time ran out first, or when the first and the second half of the blocks disagree (drift).
    At least one block is timed, so a call longer than `max_s` is timed once. `clock` returns nanoseconds.
    """
    with _no_garbage_collection():
        call_s = _warm_up(call, warmup_s, max_s, clock) / 1e9
        calls = min(max(math.ceil(BLOCK_S / max(call_s, 1e-9)), 1), MAX_BLOCK_CALLS)
        blocks: list[np.ndarray] = []
        medians: list[float] = []
        end = clock() + int(max_s * 1e9)
        while True:
            blocks.append(_block(call, calls, clock))
            medians.append(float(np.median(blocks[-1])))
            narrow = len(blocks) >= MIN_BLOCKS and _is_narrow(np.array(medians), rel_ci)
            if narrow or clock() >= end:
                break
    low, high = median_interval(np.array(medians))
    samples = np.concatenate(blocks)
    return {
        "p50_ms": float(np.median(medians)) / 1e6,
        "p95_ms": float(np.percentile(samples, 95)) / 1e6,
        "ci_ms": (low / 1e6, high / 1e6),
        "samples": len(samples),
        "blocks": len(blocks),
        "stable": narrow,
    }


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


def _warm_up(call: Callable[[], None], warmup_s: float, max_s: float, clock: Clock) -> float:
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


def _block(call: Callable[[], None], calls: int, clock: Clock) -> np.ndarray:
    """Nanoseconds of each of `calls` calls, shape (calls,)."""
    nanoseconds = []
    for _ in range(calls):
        start = clock()
        call()
        nanoseconds.append(clock() - start)
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
