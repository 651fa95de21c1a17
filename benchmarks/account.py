"""What does a whole study spend beside its trials? python -m benchmarks.account --trials 200

Runs one search from the command line and reads the account that it writes itself (`run.json`): seconds of the teacher, of parents, of
every stage of the trials, of the sampler, of `storage` (all that the loop does beside: database, records, notes), and of all else that
happens once (imports, checks, timing of students, the final summary). `bookkeeping` is the share of sampler and storage in the wall-clock.
Digits have the shortest trials, so the largest share.
Writes benchmarks/results/account.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from core.cli import run_main
from core.files import write_atomically
from core.hardware import device_facts
from search.summary import versions

OUT = Path(__file__).parent / "results" / "account.json"
STUDY = "account"
BESIDE = ("sampler", "storage")


def main(argv: list[str] | None = None) -> int:
    """Run, read, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="spaces/digits.yaml")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    command = ["--space", args.space, "--study", STUDY, "--trials", str(args.trials), "--fresh", "--quiet"]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "search.run", *command], check=True)
    wall = time.perf_counter() - start
    run: dict[str, Any] = json.loads(Path("runs", STUDY, "run.json").read_text(encoding="utf-8"))
    content = {
        "command": command,
        "wall_seconds": round(wall, 1),
        **run["account"],
        "versions": versions(),
        "device": device_facts(),
    }
    content["seconds"]["other"] = round(wall - sum(value for part, value in content["seconds"].items() if part != "other"), 1)
    content["bookkeeping"] = round(sum(content["seconds"][part] for part in BESIDE) / wall, 4)
    write_atomically(args.out, json.dumps(content, indent=1) + "\n")
    print(text(content))
    return 0


def text(content: dict[str, Any]) -> str:
    """What docs/protocol.md says."""
    seconds, wall = content["seconds"], content["wall_seconds"]
    shares = ", ".join(f"{part} {value:,.0f} s ({100 * value / wall:.1f} %)" for part, value in seconds.items() if value)
    ends = ", ".join(f"{count} {ending}" for ending, count in content["trials"].items())
    device = content["device"]
    kept = " The teacher and its answers were there from an earlier run." if seconds["teacher"] < 1 else ""
    command = f"python -m search.run {' '.join(content['command'])}"
    return (
        f"`{command}`, {ends}, took {wall / 60:.1f} minutes: {shares}. `storage` is all that the loop does beside trials and sampler: "
        f"database, records, notes; with the sampler {100 * content['bookkeeping']:.1f} %. `other` happens once: imports, checks, the "
        f"timing of students, the summary. Digits have the shortest trials, so the largest share.{kept} {device['cpu']}, "
        f"{device['cores']} cores ({', '.join(device['isa'])})."
    )


if __name__ == "__main__":
    raise SystemExit(run_main(main))
