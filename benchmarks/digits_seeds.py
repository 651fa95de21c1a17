"""Digits, several seeds: python benchmarks/digits_seeds.py --seeds 3

Runs the README's search per seed, exports rank 0, which is chosen on the search split, and reports its TEST accuracy beside the
teacher's. One JSON row per seed; finished rows are kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import config_of, exported_point, front_of, teacher_test  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "digits_seeds.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=20)
    args = parser.parse_args()
    rows = {row["seed"]: row for row in json.loads(RESULT.read_text())["rows"]} if RESULT.exists() else {}
    for seed in range(args.seeds):
        if seed not in rows:
            rows[seed] = one_seed(seed, args.trials)
            write(list(rows.values()))
    for row in rows.values():
        print(json.dumps(row))


def one_seed(seed: int, trials: int) -> dict[str, object]:
    """Search, then score on the test split what the search split chose."""
    from search import run

    study, start = f"digits-seed{seed}", time.perf_counter()
    seeds = ["--seed", str(seed), "--set", f"data.seed={seed}"]
    command = ["--space", "spaces/digits.yaml", "--trials", str(trials), *seeds, "--study", study, "--fresh"]
    assert run.main(command) == 0
    wall_s = time.perf_counter() - start
    facts = json.loads(Path("runs", study, "run.json").read_text())
    front = front_of(study)
    return {
        "seed": seed,
        "wall_s": round(wall_s, 1),
        "front_points": len(front),
        "teacher": {"bytes": facts["teacher"]["size_bytes"], "test": teacher_test(study)},
        "rank0": exported_point(study, 0),
        "config": config_of(study),
        "versions": facts["versions"],
        "device": facts["device"],
    }


def write(rows: list[dict[str, object]]) -> None:
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps({"machine": platform.machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
