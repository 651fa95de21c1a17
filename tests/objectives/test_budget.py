"""Hard limits speak in the user's unit and only against what is surely beyond them; what is surely dominated is on no front."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.candidate import LatencyReport, Measurement
from core.errors import InfeasibleCandidate
from objectives.budget import Known, Limits, surely_dominates
from objectives.outlook import Traits
from results.front import Point, non_dominated


def report(low: float, median: float) -> LatencyReport:
    return LatencyReport(
        p50_ms=median,
        p95_ms=2 * median,
        ci_ms=(low, 2 * median - low),
        samples=100,
        batch=1,
        threads=1,
        runtime="openvino",
        precision="f32",
        fingerprint="x",
        stable=True,
    )


def test_without_limits_everything_passes() -> None:
    limits = Limits()
    limits.check_size(10**12, "not trained")
    limits.check_latency(report(1e6, 1e6), "not trained")
    limits.check_accuracy(0.0)


def test_a_size_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    Limits(size_kb=2.5).check_size(2500, "not trained")
    with pytest.raises(InfeasibleCandidate, match=r"size_kb must be at most 2\.5, but is 2\.50; trained and coded$"):
        Limits(size_kb=2.5).check_size(2501, "trained and coded")
    assert 2.002 * 1000 < 2002  # as floats are multiplied
    Limits(size_kb=2.002).check_size(2002, "not trained")


def test_a_latency_at_the_limit_passes() -> None:
    Limits(latency_ms=1.0).check_latency(report(0.99, 1.0), "not trained")
    with pytest.raises(InfeasibleCandidate, match=r"latency_ms must be at most 1, but is 1\.0200; not trained$"):
        Limits(latency_ms=1.0).check_latency(report(1.01, 1.02), "not trained")


def test_an_accuracy_at_the_limit_passes() -> None:
    Limits(accuracy=0.9).check_accuracy(0.9)
    with pytest.raises(InfeasibleCandidate, match=r"accuracy must be at least 0\.9, but is 0\.8999"):
        Limits(accuracy=0.9).check_accuracy(0.8999)


def test_an_accuracy_that_may_come_up_to_the_limit_is_within_reach() -> None:
    Limits().check_reach(0.1, 0.9, "not trained")
    Limits(accuracy=0.9).check_reach(0.9, 0.9, "not trained")
    law = r"accuracy must be at least 0\.9, but this one reaches at most 0\.8999 \(confidence 0\.95\); not trained"
    with pytest.raises(InfeasibleCandidate, match=law):
        Limits(accuracy=0.9).check_reach(0.8999, 0.95, "not trained")


# --- domination ------------------------------------------------------------------------------------------------------

COUNTS, SIZES, TIMES = st.integers(0, 40), st.integers(1, 3), st.integers(1, 3)


def point_of(right: int, images: int, size: int, latency: LatencyReport) -> Measurement:
    """`right` of 40 parts of the images answered rightly."""
    return Measurement(
        accuracy=right / 40, images=images, size_bytes=size, latency=latency, agreement=1.0, parameters=1, macs=1, mean_bits=8.0
    )  # fmt: skip


@st.composite
def latencies(draw: st.DrawFn) -> LatencyReport:
    """A median in its interval, of few different values, so that equal ones are often met."""
    median = float(draw(TIMES))
    return report(median - draw(st.sampled_from([0.0, 0.1, 1.0])), median)


@settings(max_examples=400)
@given(
    COUNTS, st.sampled_from([40, 1000, 100_000]), SIZES, latencies(), SIZES, latencies(), COUNTS, COUNTS,
    st.floats(0.5, 0.99, exclude_min=True), st.booleans(),
)  # fmt: skip
@example(40, 100_000, 1, report(1.0, 1.0), 1, report(1.0, 1.0), 39, 39, 0.9, False)
def test_a_candidate_that_is_surely_dominated_and_keeps_its_limit_is_on_no_front(
    right: int, images: int, size: int, latency: LatencyReport, other_size: int, other: LatencyReport, upper: int, reached: int,
    confidence: float, same_structure: bool,
) -> None:  # fmt: skip
    point = point_of(right, images, size, latency)
    known = Known(Traits("a", ()), other_size, latency if same_structure else other)
    if not surely_dominates(point, known, upper / 40, confidence):
        return
    mine: Point = (point.accuracy, point.size_bytes, latency.p50_ms)
    reachable: Point = (min(reached, upper) / 40, other_size, known.latency.p50_ms)  # type: ignore[union-attr]
    # equal points stay on a front together; only at a confidence of 0.5, or where no answer is right, is the lower limit the point itself
    assert non_dominated([mine, reachable]) == [0] or mine == reachable


def test_a_latency_of_few_blocks_surely_dominates_nothing() -> None:
    fast, slow = report(1.0, 1.0), report(2.0, 2.0)
    few = {"blocks": 5, "stable": False}
    for mine, other, sure in ((fast, slow, True), (fast.model_copy(update=few), slow, False), (fast, slow.model_copy(update=few), False)):
        assert surely_dominates(point_of(36, 100_000, 1, mine), Known(Traits("a", ()), 2, other), 0.8, 0.9) is sure


def test_a_limit_below_what_is_reached_may_cost_an_optimal_candidate() -> None:
    point = point_of(36, 100_000, 1, report(1.0, 1.0))
    known = Known(Traits("a", ()), 2, report(2.0, 2.0))
    assert surely_dominates(point, known, 0.8, 0.9)
    assert non_dominated([(0.9, 1.0, 1.0), (0.95, 2.0, 2.0)]) == [0, 1]
