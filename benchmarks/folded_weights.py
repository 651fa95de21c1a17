"""What does it cost to dequantise in each call? python benchmarks/folded_weights.py [--students resnet20 ...] [--fresh]

Students with 8-bit weights and every layer in float, in ONNX Runtime, batch 1, one thread: once with the weights behind a
DequantizeLinear, which it runs in each call, once as the product that our files for it have (`Runtime.dequantises_once`). Both files of a
student are timed one after the other by core/latency.py. Finished rows of the same device, library and program version are kept. Nothing
else may run. Writes benchmarks/results/folded_weights.json.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.latency_zoo import ROOT, SHAPE, Row, code_digest, is_current, run, timed
from core.candidate import Candidate, GroupPlan
from core.compress import draft, resolve
from core.config import RuntimeConfig
from core.engines import EngineHost
from core.students import STUDENTS

RESULT = ROOT / "benchmarks" / "results" / "folded_weights.json"
Key = tuple[str, bool]


def main(argv: Sequence[str] | None = None) -> int:
    """Time what is missing, then print the table."""
    return run(__doc__, RESULT, key, rows, section, argv)


def key(row: Row) -> Key:
    return row["student"], row["product"]


def rows(students: list[str], max_s: float, kept: dict[Key, Row]) -> Iterator[Row]:
    """A row for everything that is not kept under the same facts. Both files of a student follow one another: they are compared."""
    with tempfile.TemporaryDirectory() as work, EngineHost(RuntimeConfig(name="onnxruntime", max_s=max_s), Path(work)) as engines:
        facts = {"fingerprint": engines.fingerprint, "device": engines.device, "code": code_digest()}
        for student, as_product in product(students, (False, True)):
            row = {"student": student, "product": as_product, **facts}
            if is_current(kept.get(key(row)), row):
                continue
            runtime = replace(engines.runtime, dequantises_once=not as_product)
            candidate = Candidate(student=student, groups=(GroupPlan(execution="float"),))
            dense = STUDENTS[student](classes=10, channels=3, image_size=SHAPE[1], width=1.0).eval()
            drafted = draft(*resolve(dense, candidate, SHAPE, runtime), SHAPE, runtime)
            yield row | timed(engines, drafted.save(Path(work, student)))


def section(found: list[Row]) -> str:
    """For docs/protocol.md: what was done, where, and what came of it."""
    device, by_key = found[0]["device"], {key(row): row for row in found if row["error"] is None}
    pairs = {name: (by_key[name, False], by_key[name, True]) for name, as_product in by_key if as_product and (name, False) in by_key}
    lines = [["student", "DequantizeLinear, ms", "product, ms", "times faster"], ["---"] * 4]
    for student, both in sorted(pairs.items()):
        before, after = (row["p50_ms"] for row in both)
        lines.append([student, *(f"{row['p50_ms']:.3f}{'' if row['stable'] else '*'}" for row in both), f"{before / after:.2f}"])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return (
        "Students at 32 px and full width, untrained, 8-bit weights, every layer in float, ONNX Runtime "
        f"{device['runtime_version']}, batch 1, 1 thread, {device['cpu']} ({', '.join(device['isa'])}): median ms with weights behind a "
        "DequantizeLinear, which it runs in each call, and as our files for it have them (`benchmarks/folded_weights.py`). *: the interval "
        f"stayed wide, or the machine was disturbed.\n\n{table}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
