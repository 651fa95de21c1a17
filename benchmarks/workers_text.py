"""What docs/protocol.md says of killed runs, mutated input, and the price of coordination, from benchmarks/results/*.json."""

from __future__ import annotations

from collections import Counter
from typing import Any

VICTIMS = {"run": "the run's process", "worker": "one worker, then the run", "all": "all processes at once", "stop": "SIGTERM to the run"}
PARTS = ("sampler", "storage", "lock", "own")


def section(kills: dict[str, Any], fuzz: dict[str, Any], scaling: dict[str, Any]) -> str:
    """The section with its heading."""
    parts = [killed(kills), mutated(fuzz), several(scaling["trials"]), coordination(scaling["coordination"])]
    return "\n\n".join(["## Killed runs, mutated input, several workers", *parts])


def killed(result: dict[str, Any]) -> str:
    rows, end = result["kills"], result["end"]
    counts = Counter(row["victim"] for row in rows)
    listed = ", ".join(f"{words} {counts[victim]} times" for victim, words in VICTIMS.items())
    stops = max(row["stopped_in_s"] for row in rows if row["victim"] == "stop")
    return (
        f"**Killed {len(rows)} times** (`make faults`): a study with 2 workers, killed at random moments: {listed}. "
        f"Of {rows[-1]['after']} finished trials {sum(row['lost'] for row in rows) + end['lost']} were lost or changed and "
        f"{sum(row['doubled'] for row in rows) + end['doubled']} counted twice; after the last kill the study ended by itself with its "
        f"{end['finished']} trials and {end['running']} left as running. SIGTERM was obeyed within {stops:.1f} s. {machine(result)}"
    )


def mutated(result: dict[str, Any]) -> str:
    rows = result["inputs"]
    kinds = ", ".join(f"{count} {kind.removesuffix('s')}s" for kind, count in sorted(Counter(row["kind"] for row in rows).items()))
    codes = Counter(row["code"] for row in rows)
    return (
        f"**{len(rows)} mutated inputs** through the commands ({kinds}): {codes[2]} refused in one line with exit code 2, {codes[0]} fine, "
        f"{sum(not row['fine'] for row in rows)} that ended otherwise, took over {result['limit_s']:g} s or left a file elsewhere."
    )


def several(rows: list[dict[str, Any]]) -> str:
    rates = "; ".join(f"{row['workers']} worker{'s' * (row['workers'] > 1)}: {row['trials_per_hour']:.0f}" for row in rows)
    timed = "from the first trial's start to the last one's end, without the teacher"
    return f"**Trials per hour** of `spaces/digits.yaml` ({rows[0]['trials']} trials, SQLite; {timed}): {rates}. {machine(rows[0])}"


def coordination(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of a worker per trial."""
    head = ["workers", "trials", *PARTS, "first tenth", "last tenth", "growth"]
    lines = [head, ["---"] * len(head)]
    for row in sorted(rows, key=lambda row: (row["workers"], row["trials"])):
        cells = [f"{row['workers']}", f"{row['trials']:,}", *(f"{row[f'{part}_ms']:.2f}" for part in PARTS)]
        tenths = (row["first_tenth_ms"], row["last_tenth_ms"])
        lines.append([*cells, *(f"{value:.1f}" for value in tenths), f"{tenths[1] / tenths[0]:.2f}"])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    databases = ", ".join(sorted({f"{row['database']}, {row['sampler']} sampler" for row in rows}))
    return (
        f"**Coordination alone**, without any training ({databases}); ms of a worker per trial. Sampler, storage and lock by the "
        f"clock; `own`: what our code computed, the processor's time without them. {machine(rows[0])}\n\n{table}"
    )


def machine(result: dict[str, Any]) -> str:
    device, versions = result["device"], result["versions"]
    return f"{device['cores']} cores, {device['cpu']}, optuna {versions['optuna']}, torch {versions['torch']}."
