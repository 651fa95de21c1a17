"""How often does a latency's interval hold the true median? python -m benchmarks.interval_coverage

Simulated measurements by the functions of core/latency.py: block medians are drawn from a lognormal distribution around 1, one after the
other, until the rule of `time_calls` ends the measurement. The interval is looked at after every block, which costs it coverage. Writes
benchmarks/results/interval_coverage.json, from which benchmarks/readme.py fills docs/protocol.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from core.cli import run_main
from core.config import RuntimeConfig
from core.files import write_atomically
from core.latency import BLOCK_S, MIN_BLOCKS, WATCH_S, _is_narrow, median_interval

RESULT = Path(__file__).parent / "results" / "interval_coverage.json"
SPREADS = (0.01, 0.02, 0.03, 0.04)
REL_CI = 0.02
"""The width at which a measurement ends, as `time_calls` has it by default."""


def main(argv: list[str]) -> int:
    """Simulate, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1500, help="measurements of each spread")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    most = int(RuntimeConfig().max_s / (BLOCK_S + WATCH_S))
    draw = np.random.default_rng(args.seed)
    rows = [simulated(spread, args.count, most, draw) for spread in SPREADS]
    result = {"count": args.count, "seed": args.seed, "rel_ci": REL_CI, "most_blocks": most, "rows": rows}
    write_atomically(RESULT, json.dumps(result, indent=2) + "\n")
    print(sentence(result))
    return 0


def simulated(spread: float, count: int, most: int, draw: np.random.Generator) -> dict[str, Any]:
    """`count` measurements of blocks whose logarithm has the standard deviation `spread`: how they ended."""
    held = stable = blocks = 0
    for _ in range(count):
        medians = np.exp(spread * draw.standard_normal(most))
        length = next((n for n in range(MIN_BLOCKS, most) if _is_narrow(medians[:n], REL_CI)), most)
        low, high = median_interval(medians[:length])
        held, blocks = held + (low <= 1.0 <= high), blocks + length
        stable += _is_narrow(medians[:length], REL_CI)
    return {"spread": spread, "held": held / count, "stable": stable / count, "mean_blocks": round(blocks / count, 1)}


def sentence(result: dict[str, Any]) -> str:
    """For docs/protocol.md."""
    spreads, held = (listed(result["rows"], key) for key in ("spread", "held"))
    return (
        f"In {result['count']:,} simulated measurements each, of independent lognormal blocks that spread by {spreads} %, it held the true"
        f" median in {held} % (`python -m benchmarks.interval_coverage`)."
    )


def listed(rows: list[dict[str, Any]], key: str) -> str:
    """Per cent, as in "1, 2 and 3"."""
    *first, last = (f"{100 * row[key]:.0f}" for row in rows)
    return f"{', '.join(first)} and {last}"


if __name__ == "__main__":
    raise SystemExit(run_main(main))
