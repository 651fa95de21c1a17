"""Is INT8 faster, and where? python benchmarks/latency_zoo.py [--students resnet20 ...] [--fresh]

Every student of the table with all layers in INT8, and in float at every precision of the runtime, in OpenVINO and ONNX Runtime, batch 1,
one thread; and ResNet-20 in PyTorch eager. A row per (student, execution, precision, runtime) by core/latency.py; finished rows of the
same device, library versions and program version are kept. --table prints what there is. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.candidate import Candidate, GroupPlan, LatencyReport  # noqa: E402
from core.compress import draft, resolve  # noqa: E402
from core.config import RuntimeConfig  # noqa: E402
from core.eager import NAME, time_eager  # noqa: E402
from core.engines import EngineHost  # noqa: E402
from core.errors import TrialError  # noqa: E402
from core.export import export_onnx  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.students import STUDENTS  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "latency_zoo.json"
RUNTIMES = ("openvino", "onnxruntime")
EAGER = "resnet20"
SHAPE = (3, 32, 32)
Row = dict[str, Any]
Key = tuple[str, str, str, str]


def main() -> int:
    return run(__doc__, RESULT, key, rows, table)


def run(
    doc: str | None,
    result: Path,
    key: Callable[[Row], Hashable],
    rows: Callable[[list[str], float, dict[Any, Row]], Iterator[Row]],
    table: Callable[[list[Row]], str],
    argv: Sequence[str] | None = None,
) -> int:
    """The command of a benchmark that times students row by row: time what is not kept, write every row, print the table.

    `rows` gets the students, the longest measurement in seconds, and the kept rows by `key`, of which it leaves out the current ones.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=sorted(STUDENTS), choices=sorted(STUDENTS), metavar="NAME")
    parser.add_argument("--max-s", type=float, default=6.0, metavar="S", help="longest measurement (default %(default)s)")
    parser.add_argument("--out", type=Path, default=result)
    parser.add_argument("--fresh", action="store_true", help="time also what was timed before")
    parser.add_argument("--table", action="store_true", help="print the table of what there is, time nothing")
    args = parser.parse_args(argv)
    kept = {} if args.fresh or not args.out.exists() else {key(row): row for row in json.loads(args.out.read_text())["rows"]}
    if not args.table:
        for row in rows(args.students, args.max_s, kept):
            kept[key(row)] = row
            print(json.dumps(row), flush=True)
            write_atomically(args.out, json.dumps({"rows": list(kept.values())}, indent=1) + "\n")
    print(table(list(kept.values())))
    return 0


def is_current(known: Row | None, row: Row) -> bool:
    """Whether the kept row was timed on this device by this program, without an error."""
    return known is not None and known.get("error") is None and all(known[fact] == row[fact] for fact in ("fingerprint", "code"))


def key(row: Row) -> Key:
    return row["student"], row["execution"], row["precision"], row["runtime"]


def rows(students: list[str], max_s: float, kept: dict[Key, Row]) -> Iterator[Row]:
    """A row for everything that is not kept under the same facts."""
    code = code_digest()
    for name in RUNTIMES:
        with tempfile.TemporaryDirectory() as work, EngineHost(RuntimeConfig(name=name, max_s=max_s), Path(work)) as plain:
            facts = {"runtime": name, "fingerprint": plain.fingerprint, "device": plain.device, "code": code}
            for student in students:
                wanted = [("int8", "f32"), *(("float", precision) for precision in plain.runtime.precisions)]
                for execution, precision in wanted:
                    row = {"student": student, "execution": execution, "precision": precision, **facts}
                    if is_current(kept.get(key(row)), row):
                        continue
                    path = model(student, execution, plain, Path(work))
                    with EngineHost(plain.config.model_copy(update={"precision": precision}), Path(work)) as engines:
                        yield row | timed(engines, path)
    if EAGER in students:
        yield from eager(max_s, code, kept)


def model(student: str, execution: str, engines: EngineHost, work: Path) -> Path:
    """The student untrained: 8-bit weights and every layer in INT8, or plain float."""
    dense = STUDENTS[student](classes=10, channels=3, image_size=32, width=1.0).eval()
    if execution == "float":
        return write_atomically(work / "float.onnx", export_onnx(dense, SHAPE).SerializeToString())
    pruned, plan = resolve(dense, Candidate(student=student, groups=(GroupPlan(weight_bits=8, execution="int8"),)), SHAPE, engines.runtime)
    return draft(pruned, plan, SHAPE, engines.runtime).save(work / "int8")


def timed(engines: EngineHost, path: Path) -> Row:
    """Latency and what really ran, or the error."""
    try:
        report, artifact = engines.time_model(path)
    except TrialError as error:
        return {"error": str(error)}
    return {**numbers(report), "int8_layers": artifact.int8_layers, "layers": artifact.layers, "error": None}


def numbers(report: LatencyReport) -> Row:
    """Those of a row."""
    return {name: getattr(report, name) for name in ("p50_ms", "ci_ms", "stable", "redone", "busy_cores")}


def eager(max_s: float, code: str, kept: dict[Key, Row]) -> Iterator[Row]:
    """ResNet-20 as PyTorch runs it, one thread, in this process."""
    import torch

    from core.hardware import device_fingerprint

    facts = {"runtime": "torch_eager", "version": torch.__version__, "code": code}
    facts["fingerprint"] = device_fingerprint(1, NAME, torch.__version__)[1]
    row: Row = {"student": EAGER, "execution": "float", "precision": "f32", **facts}
    if is_current(kept.get(key(row)), row):
        return
    network = STUDENTS[EAGER](classes=10, channels=3, image_size=32, width=1.0)
    report = time_eager(network, SHAPE, RuntimeConfig(warmup_s=0.5, max_s=max_s))
    yield row | numbers(report) | {"int8_layers": 0, "error": None}


def table(found: list[Row]) -> str:
    """Markdown: milliseconds by student and runtime, and how much faster INT8 is than float32."""
    by_key = {key(row): row for row in found if row.get("error") is None}
    heads = ["student", *(f"{name} {what}" for name in RUNTIMES for what in ("INT8", "bf16", "f32", "f32 / INT8"))]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for student in sorted({row["student"] for row in found}):
        cells = [student]
        for runtime in RUNTIMES:
            variants = (("int8", "f32"), ("float", "bf16"), ("float", "f32"))
            times = [by_key.get((student, execution, precision, runtime)) for execution, precision in variants]
            cells += ["-" if row is None else f"{row['p50_ms']:.3f}{'' if row['stable'] else '*'}" for row in times]
            cells.append("-" if times[0] is None or times[2] is None else f"{times[2]['p50_ms'] / times[0]['p50_ms']:.2f}")
        lines.append(" | ".join(cells))
    torch_row = by_key.get((EAGER, "float", "f32", "torch_eager"))
    lines = [f"| {line} |" for line in lines]
    if torch_row is None:
        return "\n".join(lines)
    rows = [(runtime, by_key.get((EAGER, "int8", "f32", runtime))) for runtime in RUNTIMES]
    faster = [f"{torch_row['p50_ms'] / row['p50_ms']:.1f} x faster in {runtime} INT8" for runtime, row in rows if row is not None]
    eager = f"PyTorch eager, {EAGER}: {torch_row['p50_ms']:.3f}{'' if torch_row['stable'] else '*'} ms"
    return "\n".join([*lines, "", ", ".join([eager, *faster])])


def code_digest() -> str:
    """12 hex digits of everything in core/ that decides what is exported and how it is timed."""
    folders = ("students", "quantise", "runtimes")
    sources = sorted(path for folder in folders for path in (ROOT / "core" / folder).rglob("*.py"))
    names = ("export.py", "compress.py", "plan.py", "latency.py", "reference.py", "engine_child.py", "eager.py")
    more = [ROOT / "core" / name for name in names]
    return hashlib.sha256(b"".join(path.read_bytes() for path in (*sources, *more))).hexdigest()[:12]


if __name__ == "__main__":
    raise SystemExit(main())
