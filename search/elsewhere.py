"""A study's runtime for its finished points on another machine, or in another runtime than the search's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.config import RuntimeConfig
from core.errors import UserError
from core.hardware import usable_cores
from core.runtimes import RUNTIMES, Runtime, resolve_runtime
from core.tables import lookup

if TYPE_CHECKING:
    from results.record import TrialRecord


def runtime_of(own: RuntimeConfig, asked: str | None, record: TrialRecord, *, refined: bool) -> RuntimeConfig:
    """The runtime to export `record` for: the one `asked` for, else that of a refined point, else the study's own.

    UserError when it cannot run here, or when the study's own is not what `auto` means here.
    """
    assert record.measurement is not None
    measured = record.measurement.latency.runtime
    if asked is not None or refined:
        return suited(own, asked or measured)
    if own.build_for:
        return own
    if own.agent is None and (here := resolve_runtime(own.name)) != measured:
        raise UserError(
            f"this study was measured in {measured}, but runtime.name resolves to {here} here; install it, or name --runtime {here}"
        )
    return suited(own, own.name)


def suited(own: RuntimeConfig, name: str) -> RuntimeConfig:
    """`own` with engines of the runtime `name` that run; prints a line for each value that this one, or this machine, cannot have.

    UserError for an unknown runtime, MissingRuntime for one that does not run here. What an agent's device has, it says itself.
    """
    if own.agent is not None and name == "auto":
        return own
    runtime = lookup(RUNTIMES, "runtime", name if own.agent is not None else resolve_runtime(name))()
    changed = _changed(own, runtime)
    for key, value in changed.items():
        print(f"{runtime.name} cannot have runtime.{key} {getattr(own, key)} here: {value} is taken")
    return own.model_copy(update={"name": name, "build_for": (), **changed})


def _changed(own: RuntimeConfig, runtime: Runtime) -> dict[str, Any]:
    """What `own` must give up for the runtime: its float precision, its grid of activations, threads beyond the cores."""
    changed: dict[str, Any] = {}
    ever = runtime.precisions if own.agent is None else (*runtime.precisions, *runtime.needs)
    if own.precision not in ever:
        changed["precision"] = "f32"
    if own.activation_grid == "uint8_relu" and runtime.activation_grid == "int8":
        changed["activation_grid"] = "auto"
    if own.agent is None and own.threads > usable_cores():
        changed["threads"] = usable_cores()
    return changed
