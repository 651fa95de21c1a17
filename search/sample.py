"""Trial -> Candidate. Every trial of a study asks for the same parameters, whatever it answers (docs/architecture.md, decision 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.candidate import AllocationPlan, Candidate, DistilPlan, GroupPlan
from core.errors import UserError
from search.space import SELF, Range, Space, options

if TYPE_CHECKING:
    import optuna

EXECUTIONS = ("int8", "float")
DISTIL_GENES = ("loss", "temperature", "weight", "ce_weight", "grid", "complementary_weight", "alpha", "beta", "init")


def sample(space: Space, trial: optuna.trial.BaseTrial, executions: Sequence[str] = EXECUTIONS) -> Candidate:
    """The candidate that `trial` picks from `space`; `executions` are those that the runtime has on this machine.

    Position i of G = max(prune, quantise positions) takes prune gene i * P // G and quantise gene i * Q // G.
    """
    answers = {name: _ask(trial, name, value) for name, value in genes(space, executions).items()}
    student = answers["student"]
    return Candidate(
        student=student,
        width=1.0 if student == SELF else answers["width"],
        distil=DistilPlan(**{key: answers[key] for key in DISTIL_GENES}),
        groups=_groups(space, answers),
        quantiser=answers["quantiser"],
        round_to=answers["round_to"],
        edge_bits=answers["edge_bits"],
        rate_weight=answers["rate_weight"],
        sparsity=answers["sparsity"],
        sparsity_by=space.quantise.sparsity_by,
        importance=answers["importance"],
        prune_scope=space.prune.scope,
        allocation=_allocation(space, answers),
        order=answers["order"],
    )


def live_parameters(space: Space, executions: Sequence[str] = EXECUTIONS) -> int:
    """How many parameters every trial asks for: the values of `space` that are not fixed."""
    return sum(isinstance(value, tuple | Range) for value in genes(space, executions).values())


def genes(space: Space, executions: Sequence[str] = EXECUTIONS) -> dict[str, Any]:
    """Parameter name -> what it may be, in the order of asking; fixed values included."""
    prune, quantise = range(space.prune.positions), range(space.quantise.positions)
    execution = _legal(space, executions)
    return (
        {"student": space.student.name, "width": space.student.width}
        | {key: getattr(space.distil, key) for key in DISTIL_GENES}
        | {"quantiser": space.quantise.quantiser, "round_to": space.prune.round_to, "edge_bits": space.quantise.edge_bits}
        | {"rate_weight": space.quantise.rate_weight, "sparsity": space.quantise.sparsity}
        | {"importance": space.prune.importance, "order": space.order}
        | {f"ratio_{i}": space.prune.ratio for i in prune}
        | BITS.get(space.allocation.strategy, _no_bits)(space)
        | {f"exec_{i}": execution for i in quantise}
        | {key: value for key in LIMITS if (value := getattr(space.allocation, key)) is not None}
    )


def _bits(space: Space) -> dict[str, Any]:
    return {f"bits_{i}": space.quantise.weight_bits for i in range(space.quantise.positions)}


def _actions(space: Space) -> dict[str, Any]:
    return {f"action_{i}": Range(low=0.0, high=1.0) for i in range(space.quantise.positions)}


def _no_bits(space: Space) -> dict[str, Any]:
    return {}


BITS: dict[str, Callable[[Space], dict[str, Any]]] = {"per_position": _bits, "per_layer": _bits, "haq": _actions}
"""What is asked for the bits; the other strategies ask for a limit alone."""
LIMITS = ("budget_bits", "budget_kb", "budget_ms", "sqnr_db", "sqnr_loss_db")


def _legal(space: Space, executions: Sequence[str]) -> Any:
    wanted = options(space.quantise.execution)
    legal = tuple(name for name in wanted if name in executions)
    if not legal:
        here, allowed = ", ".join(executions), ", ".join(wanted)
        raise UserError(f"quantise.execution must allow one of those that this runtime has here ({here}), but it allows only {allowed}")
    return legal if len(legal) > 1 else legal[0]


def _ask(trial: optuna.trial.BaseTrial, name: str, value: Any) -> Any:
    if isinstance(value, Range):
        # Rounded: low + k * step has binary dust, and dust would make equal candidates differ.
        return float(f"{trial.suggest_float(name, value.low, value.high, step=value.step, log=value.log):.12g}")
    if not isinstance(value, tuple):
        return value
    if name.startswith(("bits_", "ratio_")):
        # The index of sorted choices: a sampler sees their order, which a categorical hides.
        return value[trial.suggest_int(name, 0, len(value) - 1)]
    return trial.suggest_categorical(name, list(value))


def _groups(space: Space, answers: Mapping[str, Any]) -> tuple[GroupPlan, ...]:
    p, q = space.prune.positions, space.quantise.positions
    count, open_bits = max(p, q), 8  # of positions whose bits are chosen later
    return tuple(
        _group(answers[f"ratio_{i * p // count}"], answers.get(f"bits_{i * q // count}", open_bits), answers[f"exec_{i * q // count}"])
        for i in range(count)
    )


def _allocation(space: Space, answers: Mapping[str, Any]) -> AllocationPlan:
    """What is left open for core/allocate; nothing where every position has its bits."""
    strategy, positions = space.allocation.strategy, range(space.quantise.positions)
    if strategy == "per_position":
        return AllocationPlan()
    limits: dict[str, Any] = {key: answers.get(key) for key in LIMITS}
    return AllocationPlan(
        strategy=strategy,
        choices=options(space.quantise.weight_bits),
        layers=tuple((answers[f"bits_{i}"], answers[f"exec_{i}"]) for i in positions) if strategy == "per_layer" else (),
        actions=tuple(answers[f"action_{i}"] for i in positions) if strategy == "haq" else (),
        **limits,
    )


def _group(ratio: float, bits: Any, execution: Any) -> GroupPlan:
    # No runtime executes 16-bit weights in INT8: the gene is overruled here, so the candidate states what happens.
    return GroupPlan(weight_bits=bits, execution=execution if bits <= 8 else "float", prune_ratio=ratio)
