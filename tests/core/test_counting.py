"""Laws of how kernels' times are cleared of what counting them costs (core/runtimes/counting.py)."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core.runtimes.counting import COUNTED_CALLS, repeated, uncounted

TIMES = st.lists(st.floats(0, 10), min_size=1, max_size=30)
CALLS = st.floats(0.001, 100)


@given(TIMES, CALLS)
@example([5.0, 1.0, 1.0], 3.0)
def test_kernels_add_up_to_the_call_and_one_cost_is_taken_off_each(kernels: list[float], call: float) -> None:
    cleared = uncounted(kernels, call)
    assert all(milliseconds >= 0 for milliseconds in cleared)
    assert sum(cleared) == pytest.approx(min(call, sum(kernels)))
    costs = [before - after for before, after in zip(kernels, cleared, strict=True)]
    assert all(cost == pytest.approx(min(before, max(costs))) for before, cost in zip(kernels, costs, strict=True))


@given(TIMES, st.floats(0, 0.1))
def test_what_a_cost_added_is_taken_off_again(kernels: list[float], cost: float) -> None:
    found = uncounted([milliseconds + cost for milliseconds in kernels], max(sum(kernels), 1e-6))
    assert found == pytest.approx(kernels, abs=1e-5)


def test_kernels_that_add_up_to_less_than_the_call_keep_their_times() -> None:
    assert uncounted([0.25, 0.5], 1.0) == [0.25, 0.5]


def test_it_is_called_often_enough_and_each_call_is_timed() -> None:
    calls = list[int]()
    times = repeated(lambda: calls.append(1))
    assert len(times) == len(calls) >= COUNTED_CALLS
    assert all(0 <= milliseconds < 1000 for milliseconds in times)
