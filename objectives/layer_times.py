"""What each layer of a dense network takes in INT8 and in float on the study's device, measured once per study and (student, width)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from core.allocate.latency import TimeTable, time_table
from core.candidate import Candidate, Execution, GroupPlan, LatencyReport, fingerprint
from core.compress import draft, resolve
from core.files import made_once, write_atomically
from core.layers import layer_infos
from core.onnx_layers import layer_nodes, own_times
from objectives.bench import Workbench


def layer_times(student: str, width: float, bench: Workbench) -> TimeTable:
    """The table, measured when it is first asked for and kept in the study's folder. The key is device, engine and network.

    The runtime must have layer times (`EngineHost.times_layers`). Errors as `EngineHost.latency`.
    """
    path = bench.folder / "layer_times" / f"{student.replace(':', '-')}-{width:g}-{_key(student, width, bench)}.json"
    if not path.exists():
        with made_once(path, bench.on_wait):
            if not path.exists():  # it may have been made while waiting
                table = measured(bench.network(student, width), Candidate(student=student, width=width), bench)
                write_atomically(path, table.model_dump_json(indent=1) + "\n")
    return TimeTable.model_validate_json(path.read_text(encoding="utf-8"))


def measured(dense: nn.Module, of: Candidate, bench: Workbench) -> TimeTable:
    """Timed now, on the two twins: all layers in INT8 where that is legal, and all in float."""
    twins: tuple[Execution, ...] = ("int8", "float")
    return time_table({execution: _twin(dense, of, execution, bench) for execution in twins}, layer_infos(dense, bench.input_shape))


def _twin(dense: nn.Module, of: Candidate, execution: Execution, bench: Workbench) -> tuple[float, dict[str, float]]:
    """(latency, layer -> its part), in ms. Nodes are scaled to the latency: a runtime that counts them is slower than one that does not."""
    host, folder = bench.engines, bench.engines.scratch / "layer_times"
    plain = of.model_copy(update={"groups": (GroupPlan(execution=execution),)})
    drafted = draft(*resolve(dense, plain, bench.input_shape, host.runtime), bench.input_shape, host.runtime)
    model: Path = drafted.save(folder)
    latency, nodes = host.latency(model, key=drafted.structure), host.layer_times(model)
    assert isinstance(latency, LatencyReport), "checked when the study starts"
    factor = latency.p50_ms / max(sum(nodes.values()), 1e-9)
    own = own_times(layer_nodes(drafted.model.graph), nodes)
    return latency.p50_ms, {name: factor * milliseconds for name, milliseconds in own.items()}


def _key(student: str, width: float, bench: Workbench) -> str:
    config, host = bench.config.runtime, bench.engines
    written = [getattr(host.runtime, fact) for fact in ("activation_grid", "addends", "dequantises_once")]
    engine = [host.fingerprint, config.batch, config.precision, *written]
    return fingerprint(student, width, engine, bench.input_shape, bench.data.info.digest, bench.teacher.digest)
