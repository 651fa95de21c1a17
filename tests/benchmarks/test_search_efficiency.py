"""What the comparison with a hand-written loop says of two arms' points."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.search_efficiency import compare, report

TEACHER = {
    "accuracy": 0.9,
    "size_bytes": 1000,
    "latency": {
        "p50_ms": 4.0,
        "p95_ms": 4.2,
        "ci_ms": [3.9, 4.1],
        "samples": 10,
        "stable": True,
        "runtime": "onnxruntime",
        "batch": 1,
        "threads": 1,
        "precision": "f32",
        "fingerprint": "0",
    },
}
WEAK, GOOD = (0.5, 500.0, 2.0), (0.7, 250.0, 1.0)


def content(plain: list[tuple[float, ...]], ours: list[tuple[float, ...]]) -> dict[str, Any]:
    return {"shared": {}, "rows": {"plain:0": {"points": plain}, "ours:0": {"points": ours, "teacher": TEACHER}}}


def test_the_clock_stops_at_the_first_point_as_good_as_the_plain_arms_last() -> None:
    result = compare(content([(50, *WEAK), (100, *GOOD)], [(5, *WEAK), (10, *GOOD), (15, *GOOD)]), 0)
    assert result is not None
    assert (result["plain_seconds"], result["our_seconds"], result["speedup"]) == (100, 10, 10)
    # error 0.3 and not 0.9, a quarter of the bytes, a quarter of the milliseconds
    assert result["plain_hypervolume"] == pytest.approx(0.6 * 2 * 2)


def test_a_search_that_never_gets_there_has_no_speed_up() -> None:
    result = compare(content([(100, *GOOD)], [(5, *WEAK)]), 0)
    assert result is not None
    assert math.isnan(result["our_seconds"])
    assert result["our_hypervolume"] < result["plain_hypervolume"]


def test_a_seed_with_one_arm_is_not_compared() -> None:
    assert compare({"shared": {}, "rows": {"plain:0": {"points": [(1, *WEAK)]}}}, 0) is None
    assert "Median" not in report({"shared": {}, "rows": {}})
