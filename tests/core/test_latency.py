"""Laws of the timing, on a clock that the test drives."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable

import numpy as np
import pytest

from core.latency import MIN_BLOCKS, median_interval, time_calls

MS = 1_000_000


class Clock:
    """Nanoseconds that pass only inside `call`, whose n-th call takes `duration_ms(n)`."""

    def __init__(self, duration_ms: Callable[[int], float]) -> None:
        self.now, self.calls, self.duration_ms = 0, 0, duration_ms

    def __call__(self) -> int:
        return self.now

    def call(self) -> None:
        self.now += int(self.duration_ms(self.calls) * MS)
        self.calls += 1


def test_a_constant_call_is_timed_exactly_and_soon() -> None:
    clock = Clock(lambda n: 2.0)
    timing = time_calls(clock.call, warmup_s=0.1, max_s=60.0, clock=clock)
    assert timing == {"p50_ms": 2.0, "p95_ms": 2.0, "ci_ms": (2.0, 2.0), "samples": 100, "blocks": MIN_BLOCKS, "stable": True}
    assert clock.now < 1000 * MS


def test_noise_keeps_measuring_until_the_interval_is_narrow() -> None:
    rng = np.random.default_rng(0)
    clock = Clock(lambda n: 2.0 * rng.lognormal(0.0, 0.1))
    timing = time_calls(clock.call, warmup_s=0.1, max_s=60.0, clock=clock)
    assert timing["stable"]
    assert timing["blocks"] > MIN_BLOCKS
    assert timing["ci_ms"][0] <= timing["p50_ms"] <= timing["ci_ms"][1]
    assert timing["ci_ms"][1] - timing["ci_ms"][0] <= 0.02 * timing["p50_ms"]
    assert timing["p50_ms"] == pytest.approx(2.0, rel=0.02)
    assert timing["p95_ms"] > timing["p50_ms"]


def test_a_call_that_keeps_slowing_down_ends_at_the_limit_and_is_unstable() -> None:
    clock = Clock(lambda n: 2.0 + 0.01 * n)
    timing = time_calls(clock.call, warmup_s=0.0, max_s=3.0, clock=clock)
    assert not timing["stable"]
    assert clock.now < 7000 * MS


def test_a_call_longer_than_the_limit_is_timed_once() -> None:
    clock = Clock(lambda n: 5000.0)
    timing = time_calls(clock.call, warmup_s=0.0, max_s=3.0, clock=clock)
    assert (timing["p50_ms"], timing["samples"], timing["stable"]) == (5000.0, 1, False)


def test_the_calls_of_the_warm_up_are_not_in_the_numbers() -> None:
    clock = Clock(lambda n: 50.0 if n < 20 else 1.0)
    assert time_calls(clock.call, warmup_s=1.0, max_s=10.0, clock=clock)["p95_ms"] == 1.0


def test_a_call_faster_than_the_clock_ends() -> None:
    clock = Clock(lambda n: 0.0 if n % 1000 else 0.001)
    assert time_calls(clock.call, warmup_s=0.0, max_s=0.0001, clock=clock)["samples"] > 0


def test_garbage_collection_is_off_only_while_timing() -> None:
    seen = []
    clock = Clock(lambda n: seen.append(gc.isenabled()) or 2.0)
    time_calls(clock.call, warmup_s=0.0, max_s=1.0, clock=clock)
    assert not any(seen)
    assert gc.isenabled()


@pytest.mark.parametrize(("n", "rank"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (10, 1), (20, 5), (100, 39)])
def test_the_interval_has_the_textbook_ranks(n: int, rank: int) -> None:
    assert median_interval(np.arange(n)) == (rank, n - 1 - rank)


@pytest.mark.parametrize("n", [6, 7, 12, 31, 200, 2000])
def test_the_interval_covers_at_least_95_percent(n: int) -> None:
    low, high = median_interval(np.arange(n))
    outside = sum(math.comb(n, k) for k in range(int(low) + 1))
    assert low + high == n - 1
    assert 2 * outside / 2**n <= 0.05


def test_the_interval_of_the_median_covers_the_true_one() -> None:
    rng = np.random.default_rng(0)
    intervals = [median_interval(rng.lognormal(size=25)) for _ in range(1000)]
    assert np.mean([low <= 1.0 <= high for low, high in intervals]) > 0.94
