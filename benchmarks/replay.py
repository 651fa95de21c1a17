"""What skipping, stopping and the samplers are worth, replayed on a recorded table: no training, 100 seeds.

    python -m benchmarks.replay benchmarks/tables/table-cifar10.json --seeds 100

`gate` (replay_gate.py): the table's rows in random orders, through the very gate of a search, by the confidence asked of it. Told are the
training seconds that were not spent, in all and in the second half of the order, without and with parents, beside what was `possible` to
save; the hypervolume lost at the end; and, apart for stopped and for skipped trials, the share that would have joined the front at that
moment, with two 95 % upper limits: `_rows`, that of other rows than these (BCa bootstrap of the rows, each with all that the orders made
of it), and that of the trials of one order on average (Clopper-Pearson). `optimal_skipped` counts rows of the whole table's front that
were skipped in any order, `optimal_skipped_bound_right` those whose accuracy the skip's own limit held: the law allows none.

`samplers` (surrogate.py): each searches a model of the table for --budget trials, and `paired` has its differences to random of equal
seeds, at a quarter, a half and all of the budget, with 95 % intervals. The model's cross-validated R2 stands beside it.

Writes results/replay.json. Finished rows are kept while the table and the numbers asked for are the same, and those of the gate while its
sources are.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import joblib

from benchmarks.recorded import read_table, space_of
from benchmarks.replay_gate import gate_claims, order_of
from benchmarks.surrogate import MARKS, fitted, paired, sampler_claims
from core.cli import run_main
from core.config import StoppingConfig
from core.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "replay.json"
BASE = "random"
"""The sampler that the others are compared with."""


def main(argv: list[str] | None = None) -> int:
    """Make the rows that are missing, then print what they say."""
    args = build_parser().parse_args(argv)
    text = args.table.read_text(encoding="utf-8")
    content, digest = json.loads(text), hashlib.sha256(text.encode()).hexdigest()[:16]
    table, space = read_table(content, args.classes), space_of(content)
    result = read(args.out, {"name": args.table.name, "digest": digest, "rows": len(table.rows), "studies": len(content["studies"])})
    result["teachers"] = sorted({study["teacher"]["accuracy"] for study in content["studies"].values()}, reverse=True)

    def keep(key: str, make: Callable[[], dict[str, Any]], program: str | None = None) -> dict[str, Any]:
        if key not in result["rows"] or result["rows"][key].get("program") != program:
            result["rows"][key] = make() | ({"program": program} if program else {})
            write(args.out, result)
        found: dict[str, Any] = result["rows"][key]
        print(key, json.dumps({name: value for name, value in found.items() if name != "volumes"}), flush=True)
        return found

    orders = [order_of(table, seed) for seed in range(args.seeds)]
    for confidence in args.confidences:
        config, key = StoppingConfig(confidence=confidence), f"gate: confidence {confidence:g}, {args.seeds} orders"
        keep(key, partial(gate_claims, table, orders, config, args.jobs), gate_program())
        if args.each_look:
            keep(f"{key}, of each answer", partial(gate_claims, table, orders, config, args.jobs, together=False), gate_program())
    surrogate = fitted(table, space)
    result["surrogate"] = surrogate.told
    numbers = f"{args.budget} trials, {args.seeds} seeds"
    found = {
        name: keep(f"sampler: {name}, {numbers}", partial(sampler_claims, surrogate, name, args.seeds, args.budget, args.jobs))
        for name in dict.fromkeys([BASE, *args.samplers])
    }
    result["paired"] = {
        f"{name} - {BASE}, {numbers}": {mark: paired(row["volumes"][mark], found[BASE]["volumes"][mark]) for mark in MARKS}
        for name, row in found.items()
        if name != BASE
    }
    write(args.out, result)
    print(json.dumps({"surrogate": result["surrogate"], "paired": result["paired"]}, indent=1))
    return 0


def gate_program() -> str:
    """12 hex digits of the sources that decide what the gate answers."""
    names = ("objectives/outlook.py", "objectives/budget.py", "search/stopping.py", "benchmarks/replay_gate.py")
    return hashlib.sha256(b"".join((ROOT / name).read_bytes() for name in names)).hexdigest()[:12]


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--samplers", nargs="*", default=["tpe", "nsga2"], help=f"beside {BASE}")
    parser.add_argument("--budget", type=int, default=120, help="trials of a sampler")
    parser.add_argument("--confidences", nargs="*", type=float, default=[0.75, 0.8, 0.82, 0.83])
    parser.add_argument("--each-look", action="store_true", help="also with a confidence of each answer alone")
    parser.add_argument("--jobs", type=int, default=joblib.cpu_count(), help="processes")
    parser.add_argument("--out", type=Path, default=OUT)
    return parser


def read(path: Path, table: dict[str, Any]) -> dict[str, Any]:
    """What is there of the same table, or the beginning of a result."""
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return kept if kept.get("table") == table else {"table": table, "rows": {}}


def write(path: Path, result: dict[str, Any]) -> None:
    """A line per row."""
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(row)}" for key, row in result["rows"].items())
    head = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in result.items() if key != "rows"]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "{\n" + ",\n".join([*head, f'"rows": {{\n{rows}\n}}']) + "\n}\n")


if __name__ == "__main__":
    raise SystemExit(run_main(main))
