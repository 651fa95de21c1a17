"""Hard limits speak in the user's unit and only against what is surely beyond them."""

from __future__ import annotations

import pytest

from core.candidate import LatencyReport
from core.errors import InfeasibleCandidate
from objectives.budget import Limits


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
    limits.check_size(10**12)
    limits.check_latency(report(1e6, 1e6))
    limits.check_accuracy(0.0)


def test_a_size_at_the_limit_passes_and_one_byte_more_does_not() -> None:
    Limits(size_kb=2.5).check_size(2500)
    with pytest.raises(InfeasibleCandidate, match=r"size_kb must be at most 2\.5, but is"):
        Limits(size_kb=2.5).check_size(2501)


def test_a_latency_at_the_limit_passes() -> None:
    Limits(latency_ms=1.0).check_latency(report(0.99, 1.0))
    with pytest.raises(InfeasibleCandidate, match=r"latency_ms must be at most 1, but is 1\.0200"):
        Limits(latency_ms=1.0).check_latency(report(1.01, 1.02))


def test_an_accuracy_at_the_limit_passes() -> None:
    Limits(accuracy=0.9).check_accuracy(0.9)
    with pytest.raises(InfeasibleCandidate, match=r"accuracy must be at least 0\.9, but is 0\.8999"):
        Limits(accuracy=0.9).check_accuracy(0.8999)
