"""Does every student build as a TensorRT engine? python benchmarks/matrix.py [--students resnet20 ...] [--fresh]     (make matrix)

Each student of the table, with layers in INT8 and float in turn and all in float, is exported on TensorRT's grid and built by
TensorRT-RTX for five compute capabilities, without a GPU. A row per (student, execution, target); finished rows of the same library
and program version are kept. Ends with 1 when a build fails or warns.
Networks with matrix products of two maps (attention) build in float32 from SM80 on; for SM75 they are built in float16.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from core.candidate import Candidate, GroupPlan  # noqa: E402
from core.compress import draft, resolve  # noqa: E402
from core.errors import EngineBuildError  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.runtimes import EngineOptions, building_runtime  # noqa: E402
from core.students import STUDENTS  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "matrix.json"
TARGETS = ("SM75", "SM80", "SM86", "SM89", "SM120")
WITHOUT_FLOAT32_PRODUCTS = "SM75"
EXECUTIONS: dict[str, tuple[GroupPlan, ...]] = {
    "mixed": (
        GroupPlan(weight_bits=8, execution="int8"),
        GroupPlan(weight_bits=4, execution="int8"),
        GroupPlan(weight_bits=16, execution="float"),
        GroupPlan(weight_bits=3, execution="int8"),
    ),
    "float": (GroupPlan(weight_bits=8, execution="float"),),
}
Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=sorted(STUDENTS), choices=sorted(STUDENTS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--fresh", action="store_true", help="build also what was built before")
    args = parser.parse_args()
    version = str(building_runtime("tensorrt_rtx", TARGETS).version)
    code = _code()  # once: the program may change while this runs
    kept = {} if args.fresh else _kept(args.out, version, code)
    for student in args.students:
        for execution in EXECUTIONS:
            done = {row["target"] for row in kept.values() if (row["student"], row["execution"]) == (student, execution)}
            targets = tuple(target for target in TARGETS if target not in done)
            for row in rows(student, execution, targets) if targets else ():
                kept[(student, execution, row["target"])] = row
                print(json.dumps(row), flush=True)
            write_atomically(args.out, _document(version, code, list(kept.values())))
    chosen = [row for row in kept.values() if row["student"] in args.students]
    bad = [row for row in chosen if row["error"] or row["warnings"]]
    print(f"{len(chosen)} engines, {len(bad)} failed or with warnings")
    return 1 if bad else 0


def rows(student: str, execution: str, targets: tuple[str, ...], *, width: float = 1.0, image_size: int = 32) -> Iterator[Row]:
    """A row per target: what was built, how long it took, how many layers run in INT8, warnings and the error."""
    runtime = building_runtime("tensorrt_rtx", targets)
    shape = (3, image_size, image_size)
    dense = STUDENTS[student](classes=10, channels=3, image_size=image_size, width=width).eval()
    pruned, plan = resolve(dense, Candidate(student=student, width=width, groups=EXECUTIONS[execution]), shape, runtime)
    drafted = draft(pruned, plan, shape, runtime)
    products = any(node.op_type in ("MatMul", "Gemm") for node in drafted.model.graph.node)
    assert runtime.build is not None
    with tempfile.TemporaryDirectory() as folder:
        path = str(drafted.save(Path(folder)))
        for target in targets:
            precision = "f16" if products and target == WITHOUT_FLOAT32_PRODUCTS else "f32"
            row: Row = {"student": student, "execution": execution, "target": target, "precision": precision, "error": None}
            start = time.perf_counter()
            try:
                built = runtime.build(path, EngineOptions(1, 1, precision), (target,))  # type: ignore[arg-type]
            except EngineBuildError as error:
                yield {**row, "warnings": [], "error": str(error)}
                continue
            layers = {"int8_layers": built.artifact["int8_layers"], "layers": built.artifact["layers"]}
            planned = sum(layer.execution == "int8" for layer in plan.layers)
            numbers = {"seconds": round(time.perf_counter() - start, 2), "bytes": len(built.plan), "planned_int8": planned, **layers}
            yield {**row, **numbers, "warnings": sorted(set(built.warnings))}


def _kept(out: Path, version: str, code: str) -> dict[tuple[str, str, str], Row]:
    """Good rows of an earlier run with the same library and the same code of the program."""
    if not out.exists():
        return {}
    stored = json.loads(out.read_text(encoding="utf-8"))
    if (stored["tensorrt_rtx"], stored["code"]) != (version, code):
        return {}
    return {(row["student"], row["execution"], row["target"]): row for row in stored["rows"] if not row["error"]}


def _document(version: str, code: str, found: list[Row]) -> str:
    head = json.dumps({"tensorrt_rtx": version, "code": code, "targets": TARGETS})[:-1]
    lines = ",\n".join(f" {json.dumps(row)}" for row in found)
    return f'{head}, "rows": [\n{lines}\n]}}\n'


def _code() -> str:
    """12 hex digits of everything in core/ that decides what is exported and built."""
    sources = sorted(path for folder in ("students", "quantise", "runtimes") for path in (ROOT / "core" / folder).rglob("*.py"))
    more = [ROOT / "core" / name for name in ("export.py", "prune.py", "compress.py", "plan.py")]
    text = b"".join(path.read_bytes() for path in (*sources, *more, Path(__file__)))
    return hashlib.sha256(text).hexdigest()[:12]


if __name__ == "__main__":
    raise SystemExit(main())
