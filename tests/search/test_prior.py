"""A study's first trials execute as this device is faster, which is measured and never typed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.candidate import LatencyReport
from objectives.bench import Workbench
from search.baselines import all_baselines
from search.prior import Twins, float_first, timed_twins
from search.space import Space
from tests.objectives.test_evaluate import bench

__all__ = ["bench"]
SPACE = Space.model_validate(
    {
        "student": {"name": ["light_cnn", "resnet8"], "width": [0.25, 0.5]},
        "quantise": {"weight_bits": [4, 8], "execution": ["int8", "float"], "positions": 2},
    }
)
SIZES = {"light_cnn": 1, "resnet8": 2}
milliseconds = st.floats(0.01, 10.0)


def report(low: float, high: float) -> LatencyReport:
    return LatencyReport(
        p50_ms=(low + high) / 2, p95_ms=high, ci_ms=(low, high), samples=1, batch=1, threads=1, runtime="r", precision="f32",
        fingerprint="f", stable=True,
    )  # fmt: skip


@given(milliseconds, milliseconds, milliseconds, milliseconds)
def test_float_is_preferred_only_where_it_is_faster_beyond_both_intervals(a: float, b: float, c: float, d: float) -> None:
    int8, plain = report(min(a, b), max(a, b)), report(min(c, d), max(c, d))
    assert Twins(int8, plain).prefers_float == (max(c, d) < min(a, b))
    assert not (Twins(int8, plain).prefers_float and Twins(plain, int8).prefers_float)
    assert not Twins(int8, int8).prefers_float
    assert not Twins(int8, plain.model_copy(update={"blocks": 5})).prefers_float  # too few for an interval


def test_students_that_are_slower_in_int8_begin_in_float_and_the_others_in_int8() -> None:
    for parameters in all_baselines(SPACE, SIZES, float_first={"resnet8"}):
        wanted = "float" if parameters["student"] == "resnet8" else "int8"
        assert {parameters["exec_0"], parameters["exec_1"]} == {wanted}


@pytest.mark.slow
def test_both_twins_are_timed_once_in_the_runtime_of_the_study(bench: Workbench) -> None:
    told: list[str] = []
    slow = float_first(SPACE, bench, told.append, list(SIZES))
    timed = json.loads((bench.folder / "latency.json").read_text())
    twins = {student: timed_twins(student, 0.5, bench) for student in SIZES}
    assert json.loads((bench.folder / "latency.json").read_text()).keys() == timed.keys()  # equal structure is measured once
    for student, pair in twins.items():
        assert pair is not None
        assert pair.int8.runtime == pair.float.runtime == bench.engines.runtime.name
        assert pair.int8 != pair.float
        assert (student in slow) == pair.prefers_float
    assert float_first(SPACE, bench, lambda line: None, ["resnet8"]) == slow & {"resnet8"}
    assert len(told) == len(slow)
    assert all("INT8 is slower than float (f32)" in line for line in told)


@pytest.mark.parametrize("execution", ["int8", "float"])
def test_nothing_is_timed_where_the_space_leaves_no_choice(execution: str, bench: Workbench) -> None:
    fixed = SPACE.model_copy(update={"quantise": SPACE.quantise.model_copy(update={"execution": execution})})
    before = bench.folder / "latency.json"
    content = before.read_bytes() if before.exists() else b""
    assert float_first(fixed, bench, pytest.fail, list(SIZES)) == frozenset()
    assert (before.read_bytes() if before.exists() else b"") == content
