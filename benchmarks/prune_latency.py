"""Does latency fall when channels go? python benchmarks/prune_latency.py [--students resnet20 ...] [--fresh]

Every student of the table at its own width and with half of the channels of every prunable group removed, all layers in INT8 and all in
f32, in OpenVINO, batch 1, one thread. A row per (student, ratio, execution) by core/latency.py with the counted parameters, MACs and
channels; finished rows of the same device, library and program version are kept. --table prints what there is, and why latency falls less
than the multiply-accumulates where it does: layers that kept all channels, and time that no multiply-accumulate takes. Two networks of one
structure give that: t = fixed + MACs / speed, once dense, once pruned. Nothing else may run. Writes benchmarks/results/prune_latency.json.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from torch import nn

from benchmarks.latency_zoo import ROOT, SHAPE, Row, code_digest, is_current, run, timed
from core.candidate import Candidate, Execution, GroupPlan, ShapePlan
from core.compress import draft, resolve
from core.config import RuntimeConfig
from core.engines import EngineHost
from core.export import export_onnx
from core.files import write_atomically
from core.layers import count_macs, count_parameters, layer_infos
from core.students import STUDENTS

RESULT = ROOT / "benchmarks" / "results" / "prune_latency.json"
RATIO = 0.5
SLACK = 0.1
"""By so much more of its latency than of its MACs may be left where both fell in proportion."""
EXECUTIONS: tuple[Execution, ...] = ("int8", "float")
Key = tuple[str, float, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Time what is missing, then print the table."""
    return run(__doc__, RESULT, key, rows, table, argv)


def key(row: Row) -> Key:
    return row["student"], row["ratio"], row["execution"]


def rows(students: list[str], max_s: float, kept: dict[Key, Row]) -> Iterator[Row]:
    """A row for everything that is not kept under the same facts. Both ratios of a student follow one another: they are compared."""
    with tempfile.TemporaryDirectory() as work, EngineHost(RuntimeConfig(name="openvino", max_s=max_s), Path(work)) as engines:
        facts = {"fingerprint": engines.fingerprint, "device": engines.device, "code": code_digest()}
        for student, execution, ratio in product(students, EXECUTIONS, (0.0, RATIO)):
            row = {"student": student, "ratio": ratio, "execution": execution, **facts}
            if is_current(kept.get(key(row)), row):
                continue
            network, plan = pruned(student, ratio, execution, engines)
            yield row | counted(network) | timed(engines, exported(network, plan, execution, engines, Path(work)))


def pruned(student: str, ratio: float, execution: Execution, engines: EngineHost) -> tuple[nn.Module, ShapePlan]:
    """The untrained student without a share `ratio` of the channels of every prunable group, and its plan."""
    dense = STUDENTS[student](classes=10, channels=3, image_size=SHAPE[1], width=1.0).eval()
    group = GroupPlan(weight_bits=8, prune_ratio=ratio, execution=execution)
    return resolve(dense, Candidate(student=student, groups=(group,)), SHAPE, engines.runtime)


def exported(network: nn.Module, plan: ShapePlan, execution: Execution, engines: EngineHost, work: Path) -> Path:
    """8-bit weights and every layer in INT8, or plain float."""
    if execution == "int8":
        return draft(network, plan, SHAPE, engines.runtime).save(work / "int8")
    return write_atomically(work / "float.onnx", export_onnx(network, SHAPE).SerializeToString())


def counted(network: nn.Module) -> Row:
    """By the project's one counter."""
    widths = [info.out_channels for info in layer_infos(network, SHAPE)]
    return {"parameters": count_parameters(network), "macs": count_macs(network, SHAPE), "channels": sum(widths), "widths": widths}


def section(found: list[Row]) -> str:
    """For docs/protocol.md: what was done, where, and `table`."""
    device, timed_ones = found[0]["device"], {row["student"] for row in found}
    where = f"OpenVINO {device['runtime_version']}, batch 1, 1 thread, {device['cpu']} ({', '.join(device['isa'])})"
    return (
        f"{len(timed_ones)} of the {len(STUDENTS)} students at 32 px and full width, untrained, and the same without half of the "
        "channels of every group that can be pruned;"
        f" {where}: median ms of all layers in INT8, and of all in f32 (`benchmarks/prune_latency.py`). *: the interval stayed wide,"
        f" or the machine was disturbed.\n\n{table(found)}"
    )


def table(found: list[Row]) -> str:
    """Markdown: what is left of everything at half the channels, per student; then why, where latency did not follow."""
    by_key = {key(row): row for row in found if row["error"] is None}
    heads = ["student", "channels left", "parameters left", "MACs left"]
    heads += [f"{name}{what}" for name in ("INT8", "f32") for what in (", ms", " pruned, ms", " left")]
    lines = [heads, ["---"] * len(heads)]
    for student in sorted({row["student"] for row in found}):
        pairs = [(by_key.get((student, 0.0, execution)), by_key.get((student, RATIO, execution))) for execution in EXECUTIONS]
        before, after = next(((before, after) for before, after in pairs if before and after), (None, None))
        cells = [student]
        cells += [
            "-" if before is None or after is None else left(after[what], before[what]) for what in ("channels", "parameters", "macs")
        ]
        for one, other in pairs:
            cells += [milliseconds(one), milliseconds(other), "-" if one is None or other is None else left(other["p50_ms"], one["p50_ms"])]
        lines.append(cells)
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", *reasons(by_key)])


def reasons(by_key: dict[Key, Row]) -> list[str]:
    """A line for every student and execution whose latency fell less than its MACs, in Markdown."""
    found, unstable = list[str](), 0
    for student, _, execution in sorted(key for key in by_key if key[1] == RATIO):
        before, after = by_key.get((student, 0.0, execution)), by_key[student, RATIO, execution]
        if before is None or after["p50_ms"] / before["p50_ms"] <= after["macs"] / before["macs"] + SLACK:
            continue
        if before["stable"] and after["stable"]:
            found.append(f"- **{student}, {execution}:** {reason(before, after)}")
        else:
            unstable += 1
    head = f"Latency left exceeds MACs left by more than {100 * SLACK:.0f} points in {len(found) + unstable} cases"
    head += f". In {unstable if found else 'all'} of them a time is unstable (*), so no reason is read from them" if unstable else ""
    return [f"{head}. The others:" if unstable else f"{head}:", "", *found] if found else [f"{head}."]


def reason(before: Row, after: Row) -> str:
    """What kept the latency of `after`, the pruned network, up: from its counts and both times, which are stable."""
    time, macs = after["p50_ms"] / before["p50_ms"], after["macs"] / before["macs"]
    layers = before["layers"] or len(before["widths"])
    # the two equations of t = fixed + MACs / speed
    share = (time - macs) / (1 - macs)
    fixed = share * before["p50_ms"]
    whole = [width for width, left_over in zip(before["widths"][:-1], after["widths"][:-1], strict=True) if width == left_over]
    told = [f"{left(time, 1)} of the latency and {left(macs, 1)} of the MACs are left"]
    if share > 1:
        told.append("it is slower with fewer channels: kernels of other widths run, and MACs say nothing about them")
    else:
        per_layer = 1000 * fixed / layers
        told.append(f"{fixed:.3f} ms, {left(share, 1)} of the dense time, go with no MACs: {layers} layers x {per_layer:.1f} us")
    if whole:
        told.append(f"{len(whole)} of {len(before['widths']) - 1} layers kept all channels (round_to, or what they are coupled to)")
    return "; ".join(told)


def left(after: float, before: float) -> str:
    return f"{100 * after / before:.0f} %"


def milliseconds(row: Row | None) -> str:
    """A star marks a time whose interval stayed wide."""
    return "-" if row is None else f"{row['p50_ms']:.3f}{'' if row['stable'] else '*'}"


if __name__ == "__main__":
    raise SystemExit(main())
