"""Made-up records: three numbers are enough to place one on a front."""

from collections.abc import Callable

import pytest

from core.candidate import Candidate, LatencyReport, Measurement
from results.record import TeacherReport, TrialRecord


def latency(p50_ms: float, *, stable: bool = True, threads: int = 1) -> LatencyReport:
    return LatencyReport(
        p50_ms=p50_ms,
        p95_ms=1.1 * p50_ms,
        ci_ms=(0.99 * p50_ms, 1.01 * p50_ms),
        samples=900,
        batch=1,
        threads=threads,
        runtime="openvino",
        precision="int8",
        fingerprint="0123456789ab",
        stable=stable,
    )


def make(
    number: int, accuracy: float, size_bytes: int, p50_ms: float, *, fingerprint: str = "", student: str = "resnet8", **report
) -> TrialRecord:
    measurement = Measurement(
        accuracy=accuracy,
        images=144,
        size_bytes=size_bytes,
        latency=latency(p50_ms, **report),
        agreement=1.0,
        parameters=1000,
        macs=2_000_000,
        mean_bits=4.5,
    )
    return TrialRecord(
        number=number,
        state="COMPLETE",
        candidate=Candidate(student=student, width=0.5),
        fingerprint=fingerprint or f"{number:016x}",
        student=student,
        width=0.5,
        mean_bits=4.5,
        measurement=measurement,
        seconds={"distil": 3.0, "export": 0.5},
        path=f"runs/made/{number}",
    )


@pytest.fixture(scope="session")
def make_record() -> Callable[..., TrialRecord]:
    return make


@pytest.fixture
def teacher() -> TeacherReport:
    return TeacherReport(accuracy=0.99, size_bytes=400_000, latency=latency(0.4))


@pytest.fixture
def records() -> list[TrialRecord]:
    """Trials 0 to 6: the front is 4, 1, 0; trial 2 is dominated, 3 pruned, 5 failed, 6 repeats 4."""
    return [
        make(0, 0.90, 5_000, 0.10),
        make(1, 0.95, 10_000, 0.20),
        make(2, 0.89, 6_000, 0.30),
        TrialRecord(number=3, state="PRUNED", reason="its size is dominated"),
        make(4, 0.98, 20_000, 0.40, fingerprint="same"),
        TrialRecord(number=5, state="FAIL", reason="the loss is NaN"),
        make(6, 0.98, 20_000, 0.39, fingerprint="same"),
    ]
