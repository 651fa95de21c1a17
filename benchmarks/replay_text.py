"""What benchmarks/results/replay.json says, for docs/protocol.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PREFIX = "gate: "
HEAD = (
    "| confidence | training time saved | in the second half | hypervolume lost | stopped | of these would have joined | skipped | "
    "of these would have joined |"
)


def section(result: Mapping[str, Any]) -> str:
    """Skipping and stopping by confidence, and the samplers; from the JSON of replay.py."""
    gates = gates_of(result)
    facts, first = result["table"], gates[0]
    teachers = " and ".join(f"{100 * accuracy:.2f} %" for accuracy in result["teachers"])
    told = f"{facts['rows']} random candidates of `{facts['name']}` (teachers of {teachers}), each trained in full once"
    right = sum(row["optimal_skipped_bound_right"] for row in gates)
    lines = [
        f"**Replayed:** {told}, in {first['orders']} random orders through the gate of a search. Who knew every accuracy beforehand, and",
        f"trained only what joins the front, would save {100 * first['possible_median']:.0f} % of the training time.",
        "",
        HEAD,
        "|" + "---|" * HEAD.count(" |"),
        *map(line, gates),
        "",
        "Medians over the orders (saved, lost), means per order (counts), and shares with two 95 % upper limits: of other rows than these",
        "(BCa bootstrap of the rows, each with all its orders), and of the trials of one order on average (Clopper-Pearson).",
        f"Optimal rows that were skipped although their accuracy was within its limit: {right}.",
        "",
        "![what skipping and stopping save and lose](skip_stop.png)",
    ]
    return "\n".join([*lines, "", *samplers(result)])


def gates_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of skipping and stopping, by rising confidence."""
    gates = [row for key, row in result["rows"].items() if key.startswith(PREFIX) and row["confidence_of"] != "each answer"]
    return sorted(gates, key=lambda row: float(row["confidence"]))


def line(row: Mapping[str, Any]) -> str:
    """One confidence."""
    cells = [f"{row['confidence']:g}", *(f"{100 * row[name]:.1f} %" for name in ("saved_median", "saved_later_median"))]
    cells.append(f"{100 * row['hypervolume_lost_median']:.2f} %")
    for name in ("stopped", "skipped"):
        joined = f"{name}_would_have_joined"
        share, most, once = (f"{100 * row[joined + end]:.1f} %" for end in ("", "_upper_95_rows", "_upper_95"))
        cells += [f"{row[f'{name}_per_order']:.1f}", f"{share} (at most {most}; {once})"]
    return f"| {' | '.join(cells)} |"


def samplers(result: Mapping[str, Any]) -> list[str]:
    """What each sampler gains over random draws, on a model of the table."""
    told = [
        f"{name}: {', '.join(difference(mark, each) for mark, each in marks.items())}" for name, marks in result.get("paired", {}).items()
    ]
    return (
        [
            f"**Samplers**, on a model of the table ({modelled(result['surrogate'])}), so with neither noise nor values beyond its own: "
            f"hypervolume against that of random draws of the same seed (mean, 95 % interval over the seeds alone): {'; '.join(told)}."
        ]
        if told
        else []
    )


def modelled(told: Mapping[str, Any]) -> str:
    """How well the model tells rows that it was not fitted to."""
    shares = ", ".join(f"{name} {told['r2'][name][kind]:.2f}" for name, kind in told["chosen"].items())
    return f"cross-validated R²: {shares}"


def difference(mark: str, each: Mapping[str, float]) -> str:
    """Percent, when so much of the budget is spent."""
    low, high = 100 * each["low_95_share"], 100 * each["high_95_share"]
    return f"{100 * each['mean_share']:+.2f} % ({low:+.2f} to {high:+.2f}; {mark} of the budget)"
