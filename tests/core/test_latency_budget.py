"""Laws of a latency budget: what is flipped to INT8, until when, and what cannot be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.allocate.latency import LayerTime, TimeTable, executions_of, in_time, time_table
from core.candidate import AllocationPlan, Candidate, Execution, GroupPlan, ShapePlan, WeightBits
from core.compress import as_stored
from core.errors import InfeasibleCandidate
from core.layers import LayerInfo
from core.plan import shape_plan

MACS = 1000
TIME = st.floats(0.01, 1.0)
ROWS = st.lists(st.tuples(TIME, TIME), min_size=2, max_size=8)


def infos(count: int, macs: int = MACS, groups: Mapping[int, int] | None = None) -> tuple[LayerInfo, ...]:
    by_index = groups or {}
    return tuple(LayerInfo(f"layer{i}", "conv", 8, 8, (3, 3), by_index.get(i, 1), 576, macs, (4, 4)) for i in range(count))


def table(rows: Sequence[tuple[float, float]], rest_ms: float = 0.5) -> TimeTable:
    """Rows of (INT8, float) milliseconds."""
    layers = {f"layer{i}": LayerTime(int8_ms=int8, float_ms=plain, macs=MACS) for i, (int8, plain) in enumerate(rows)}
    return TimeTable(layers=layers, rest_ms=rest_ms)


def candidate(count: int, budget_ms: float, bits: WeightBits = 4, execution: Execution = "float", **changes: object) -> Candidate:
    plan = AllocationPlan(strategy="haq", choices=(2, 4, 6, 16), actions=(0.5,), budget_ms=budget_ms, settled=True)
    groups = (GroupPlan(weight_bits=bits, execution=execution),) * count
    return Candidate(student="tiny", groups=groups, allocation=plan).model_copy(update=changes)


def planned(of: Candidate, layers: Sequence[LayerInfo], *, depthwise_int8: bool = True) -> ShapePlan:
    return as_stored(shape_plan(of, layers, depthwise_int8=depthwise_int8), of.quantiser)


def found(
    of: Candidate, times: TimeTable, layers: Sequence[LayerInfo] | None = None, *, depthwise_int8: bool = True
) -> dict[str, Execution]:
    """How the layers execute under the budget."""
    layers = layers or infos(len(of.groups))
    settled = in_time(of, layers, times, lambda each: planned(each, layers, depthwise_int8=depthwise_int8))
    return executions_of(planned(settled, layers, depthwise_int8=depthwise_int8))


def in_float_ms(times: TimeTable) -> float:
    return times.total_ms(dict.fromkeys(times.layers, "float"))


def fastest_ms(rows: Sequence[tuple[float, float]]) -> float:
    times = table(rows)
    return times.total_ms({name: "int8" if time.int8_ms < time.float_ms else "float" for name, time in times.layers.items()})


@given(ROWS, st.floats(0.0, 1.0))
def test_the_sum_of_the_table_keeps_the_budget_and_what_is_slower_in_int8_is_never_flipped(
    rows: list[tuple[float, float]], share: float
) -> None:
    times, least = table(rows), fastest_ms(rows)
    budget = least + share * (in_float_ms(times) - least) + 1e-9
    after = found(candidate(len(rows), budget), times)
    assert times.total_ms(after) <= budget
    assert all(times.layers[name].int8_ms < times.layers[name].float_ms for name, execution in after.items() if execution == "int8")


@given(ROWS, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_a_tighter_budget_flips_the_same_layers_and_more(rows: list[tuple[float, float]], one: float, other: float) -> None:
    times, least = table(rows), fastest_ms(rows)
    spread = in_float_ms(times) - least
    tight, loose = (found(candidate(len(rows), least + share * spread + 1e-9), times) for share in sorted((one, other)))
    assert {name for name, how in loose.items() if how == "int8"} <= {name for name, how in tight.items() if how == "int8"}


@given(ROWS)
def test_less_than_the_fastest_of_the_table_is_infeasible(rows: list[tuple[float, float]]) -> None:
    least = fastest_ms(rows)
    found(candidate(len(rows), least + 1e-9), table(rows))
    with pytest.raises(InfeasibleCandidate, match=r"must keep allocation\.budget_ms .*gives [0-9.]+ ms; not trained$"):
        found(candidate(len(rows), least - 1e-6), table(rows))


def test_a_loose_budget_changes_nothing() -> None:
    of = candidate(4, 100.0, bits=16)
    assert in_time(of, infos(4), table([(0.1, 0.2)] * 4), lambda each: planned(each, infos(4))) == of


def test_the_last_layers_are_flipped_first_and_no_more_than_it_takes() -> None:
    after = found(candidate(4, 0.5 + 0.8 - 0.2), table([(0.1, 0.2)] * 4))
    assert list(after.values()) == ["float", "float", "int8", "int8"]


def test_a_layer_of_sixteen_bits_gets_the_most_that_int8_takes_and_edges_keep_theirs() -> None:
    of, layers = candidate(4, 0.5 + 0.6, bits=16, edge_bits=16), infos(4)
    settled = in_time(of, layers, table([(0.1, 0.2)] * 4), lambda each: planned(each, layers))
    assert [(layer.weight_bits, layer.execution) for layer in planned(settled, layers).layers] == [
        (16, "float"),
        (6, "int8"),
        (6, "int8"),
        (16, "float"),
    ]


def test_what_the_runtime_or_the_quantiser_leaves_to_float_is_not_flipped() -> None:
    rows, depthwise = [(0.1, 0.2)] * 3, infos(3, groups={1: 8})
    assert found(candidate(3, 0.5 + 0.4), table(rows), depthwise, depthwise_int8=False) == {
        "layer0": "int8",
        "layer1": "float",
        "layer2": "int8",
    }
    with pytest.raises(InfeasibleCandidate):
        found(candidate(3, 0.5 + 0.5, quantiser="codebook"), table(rows))


def test_times_of_a_pruned_layer_fall_with_its_multiply_accumulates_and_the_rest_stays() -> None:
    half = table([(0.1, 0.2)] * 2).pruned(infos(2, macs=MACS // 2))
    assert half.total_ms({"layer0": "int8", "layer1": "float"}) == pytest.approx(0.5 + 0.05 + 0.1)


def test_a_table_gives_back_the_slower_rest_and_the_latency_of_its_twin() -> None:
    twins: dict[Execution, tuple[float, Mapping[str, float]]] = {
        "int8": (0.5, {"layer0": 0.1, "layer1": 0.2}),
        "float": (1.0, {"layer0": 0.5, "layer1": 0.4}),
    }
    made = time_table(twins, infos(2))
    assert made.rest_ms == pytest.approx(0.2)
    assert made.total_ms({"layer0": "int8", "layer1": "int8"}) == pytest.approx(0.5)
    assert TimeTable.model_validate_json(made.model_dump_json()) == made


def test_a_layer_that_one_twin_does_not_name_counts_with_the_rest() -> None:
    twins: dict[Execution, tuple[float, Mapping[str, float]]] = {
        "int8": (0.5, {"layer0": 0.1}),
        "float": (1.0, {"layer0": 0.5, "layer1": 0.4}),
    }
    made = time_table(twins, infos(2))
    assert set(made.layers) == {"layer0"}
    assert made.rest_ms == pytest.approx(0.5)
    assert found(candidate(2, 0.7), made) == {"layer0": "int8", "layer1": "float"}
