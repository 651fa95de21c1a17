"""A latency budget on a real engine: layers are timed once, and executions give way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core.allocate.latency import TimeTable
from core.candidate import AllocationPlan, Candidate, Execution, GroupPlan
from core.compress import rough_bytes
from core.engines import QUIET_KEY, EngineHost
from core.errors import InfeasibleCandidate
from core.layers import layer_infos
from objectives.allocation import settle
from objectives.bench import Stages, Workbench
from objectives.evaluate import shape_of
from objectives.layer_times import layer_times, measured

STUDENT, WIDTH = "resnet8", 0.5


@pytest.fixture(scope="module")
def timed(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workbench, TimeTable]:
    """With a folder of its own."""
    bench = replace(bench, folder=tmp_path_factory.mktemp("timed"))
    return bench, layer_times(STUDENT, WIDTH, bench)


@pytest.fixture(scope="module")
def twins(bench: Workbench) -> Path:
    """The folder in which the host keeps what it has timed."""
    return bench.folder


def asked(budget_ms: float, budget_kb: float | None = None) -> Candidate:
    plan = AllocationPlan(strategy="haq", choices=(2, 4, 8), actions=(0.5,), budget_ms=budget_ms, budget_kb=budget_kb)
    return Candidate(student=STUDENT, width=WIDTH, groups=(GroupPlan(execution="float", prune_ratio=0.5),), round_to=4, allocation=plan)


def test_a_dense_network_s_table_has_every_layer_and_adds_up_to_the_latency_of_the_slower_twin(
    timed: tuple[Workbench, TimeTable], twins: Path
) -> None:
    bench, table = timed
    infos = layer_infos(bench.network(STUDENT, WIDTH), bench.input_shape)
    assert {name: time.macs for name, time in table.layers.items()} == {info.name: info.macs for info in infos}
    assert table.rest_ms >= 0.0
    executions: tuple[Execution, ...] = ("int8", "float")
    totals = sorted(table.total_ms(dict.fromkeys(table.layers, how)) for how in executions)
    kept = json.loads((twins / "latency.json").read_text())
    measured = sorted(report["p50_ms"] for entry, report in kept.items() if entry != QUIET_KEY)
    above = [total - latency for total, latency in zip(totals, measured, strict=True)]
    assert min(above) == pytest.approx(0.0, abs=1e-6)


def test_layers_are_timed_once_for_all_trials_of_a_network(timed: tuple[Workbench, TimeTable]) -> None:
    bench, table = timed
    kept = list((bench.folder / "layer_times").glob("resnet8-0.5-*.json"))
    assert len(kept) == 1
    written = kept[0].stat().st_mtime_ns
    assert layer_times(STUDENT, WIDTH, bench) == table
    assert kept[0].stat().st_mtime_ns == written


def halved(bench: Workbench) -> None:
    """Keeps a table on which the outcome does not depend on this machine's quiet: INT8 takes half."""
    path = next((bench.folder / "layer_times").glob("resnet8-0.5-*.json"))
    table = TimeTable.model_validate_json(path.read_text())
    halves = {name: time.model_copy(update={"int8_ms": 1.0, "float_ms": 2.0}) for name, time in table.layers.items()}
    path.write_text(TimeTable(layers=halves, rest_ms=1.0).model_dump_json())


def least_ms(bench: Workbench) -> float:
    """Of a candidate with all layers in INT8, by that table."""
    pruned, _ = shape_of(asked(100.0), bench)
    macs = {info.name: info.macs for info in layer_infos(pruned, bench.input_shape)}
    whole = {info.name: info.macs for info in layer_infos(bench.network(STUDENT, WIDTH), bench.input_shape)}
    return 1.0 + sum(macs[name] / whole[name] for name in macs)


def test_a_candidate_is_settled_with_executions_that_keep_the_budget_or_is_infeasible(timed: tuple[Workbench, TimeTable]) -> None:
    bench, _ = timed
    halved(bench)
    loose = settle(asked(100.0), bench, Stages())
    assert {layer.execution for layer in shape_of(loose, bench)[1].layers} == {"float"}
    least = least_ms(bench)
    tight = shape_of(settle(asked(least + 1e-6), bench, Stages()), bench)[1]
    assert {layer.execution for layer in tight.layers} == {"int8"}
    exact = bench.engines.runtime.int8_bits
    assert [layer.weight_bits for layer in tight.layers] == [min(layer.weight_bits, exact) for layer in shape_of(loose, bench)[1].layers]
    middle = shape_of(settle(asked(least * 1.3), bench, Stages()), bench)[1]
    assert {layer.execution for layer in middle.layers} == {"float", "int8"}
    with pytest.raises(InfeasibleCandidate, match=r"allocation\.budget_ms"):
        settle(asked(least - 1e-3), bench, Stages())


def test_scales_of_layers_that_become_int8_count_in_the_budget_of_bytes(timed: tuple[Workbench, TimeTable]) -> None:
    bench, runtime, shape = timed[0], timed[0].engines.runtime, timed[0].input_shape
    halved(bench)

    def bytes_of(candidate: Candidate) -> int:
        return rough_bytes(*shape_of(candidate, bench), shape, runtime, candidate.quantiser)

    limit = bytes_of(settle(asked(100.0), bench, Stages())) / 1000  # exact for layers in float
    found = settle(asked(least_ms(bench) + 1e-6, limit), bench, Stages())
    assert {layer.execution for layer in shape_of(found, bench)[1].layers} == {"int8"}
    assert 0.8 * limit * 1000 < bytes_of(found) <= limit * 1000


def test_runtimes_say_whether_they_time_layers(bench: Workbench, tmp_path: Path) -> None:
    assert bench.engines.times_layers
    with EngineHost(bench.config.runtime.model_copy(update={"name": "tensorrt_rtx", "build_for": ("SM89",)}), tmp_path) as host:
        assert not host.times_layers


def test_onnx_runtime_times_the_layers_of_both_twins(bench: Workbench, tmp_path: Path) -> None:
    network = bench.network(STUDENT, WIDTH)
    with EngineHost(bench.config.runtime.model_copy(update={"name": "onnxruntime"}), tmp_path) as host:
        table = measured(network, Candidate(student=STUDENT, width=WIDTH), replace(bench, engines=host))
    assert set(table.layers) == {info.name for info in layer_infos(network, bench.input_shape)}
    assert all(time.int8_ms > 0 and time.float_ms > 0 for time in table.layers.values())
    assert table.rest_ms > 0
