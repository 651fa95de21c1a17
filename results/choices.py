"""What a candidate chose: in columns for the CSV, in words, and as the few numbers that regressions and figures look at."""

from __future__ import annotations

from typing import Any

from core.candidate import IN_FLOAT, Candidate, Execution

TRAINING = ("loss", "temperature", "weight", "ce_weight", "init")
OF_CANDIDATE = ("order", "round_to", "importance", "prune_scope", "edge_bits", "rate_weight", "sparsity", "sparsity_by")
OF_DISTIL = ("grid", "complementary_weight", "alpha", "beta")
LIMITS = ("budget_bits", "budget_kb", "budget_ms", "sqnr_db", "sqnr_loss_db")


def executions(candidate: Candidate) -> list[Execution]:
    """How each depth position computes, as its quantiser leaves it."""
    return ["float" if candidate.quantiser in IN_FLOAT else group.execution for group in candidate.groups]


def float_share(candidate: Candidate) -> float:
    """Share of the depth positions that execute in float, in [0, 1]."""
    return executions(candidate).count("float") / len(candidate.groups)


def mean_ratio(candidate: Candidate) -> float:
    """Mean of the sampled pruning ratios over the depth positions, in [0, 1)."""
    return sum(group.prune_ratio for group in candidate.groups) / len(candidate.groups)


def settings(candidate: Candidate) -> dict[str, Any]:
    """Key of a space -> what was chosen, of the keys that most spaces leave alone."""
    plan = candidate.allocation
    return (
        {key: getattr(candidate, key) for key in OF_CANDIDATE}
        | {key: getattr(candidate.distil, key) for key in OF_DISTIL}
        | {"allocation": plan.strategy}
        | {key: getattr(plan, key) for key in LIMITS}
    )


USUAL = settings(Candidate(student="any"))


def unusual(candidate: Candidate) -> dict[str, str]:
    """Key -> "key value", of the `settings` that are not the default."""
    return {key: f"{key} {'null' if value is None else value}" for key, value in settings(candidate).items() if value != USUAL[key]}


def columns(candidate: Candidate) -> dict[str, Any]:
    """The values of `COLUMNS`."""
    groups = candidate.groups
    return {
        "pruned_mean": mean_ratio(candidate),
        "float_share": float_share(candidate),
        **{key: getattr(candidate.distil, key) for key in TRAINING},
        "quantiser": candidate.quantiser,
        **settings(candidate),
        "bits": " ".join(str(group.weight_bits) for group in groups),
        "executions": " ".join(executions(candidate)),
        "ratios": " ".join(f"{group.prune_ratio:g}" for group in groups),
    }


BY_POSITION = frozenset({"pruned_mean", "float_share", "bits", "executions", "ratios"})
"""Of `COLUMNS`, those that say what the depth positions got."""
COLUMNS = tuple(columns(Candidate(student="any")))
