"""The table of inference runtimes. Importing it imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from core.errors import MissingRuntime, UserError
from core.hardware import gpu
from core.runtimes import onnxruntime, openvino, tensorrt, tensorrt_rtx
from core.runtimes.types import Engine, EngineOptions, Runtime, check_precision
from core.tables import lookup

__all__ = [
    "RUNTIMES",
    "Engine",
    "EngineOptions",
    "Runtime",
    "building_runtime",
    "check_precision",
    "compute_capability",
    "installed_runtime",
    "on_grid",
    "resolve_runtime",
    "running_runtime",
    "why_not_here",
]

RUNTIMES: dict[str, Callable[[], Runtime]] = {
    "openvino": openvino.runtime,
    "onnxruntime": onnxruntime.runtime,
    "onnxruntime_cuda": onnxruntime.cuda_runtime,
    "tensorrt": tensorrt.runtime,
    "tensorrt_rtx": tensorrt_rtx.runtime,
}

AUTO_ORDER = ("tensorrt", "tensorrt_rtx", "openvino", "onnxruntime")
"""The first of them that runs on this machine: a GPU that TensorRT can use goes before the CPU."""


def resolve_runtime(name: str) -> str:
    """A name of RUNTIMES that runs here; "auto" is the first of AUTO_ORDER that does.

    UserError for an unknown name, MissingRuntime for one that is not installed or finds no GPU.
    """
    if name == "auto":
        name = next((known for known in AUTO_ORDER if why_not_here(RUNTIMES[known]()) is None), AUTO_ORDER[-1])
    runtime = installed_runtime(name)
    reason = why_not_here(runtime)
    if reason is not None:
        raise MissingRuntime(reason)
    return name


def running_runtime(name: str) -> Runtime:
    """The entry that `name` stands for on this machine; errors as `resolve_runtime`."""
    return installed_runtime(resolve_runtime(name))


def installed_runtime(name: str) -> Runtime:
    """The entry `name`, "auto" not among them; UserError when unknown, MissingRuntime when not installed."""
    runtime = lookup(RUNTIMES, "runtime", name)()
    if runtime.version is None:
        raise MissingRuntime(str(why_not_here(runtime)))
    return runtime


def why_not_here(runtime: Runtime) -> str | None:
    """None where the runtime can run engines on this machine, else the reason and the remedy, in one line."""
    name = runtime.name
    if runtime.version is None:
        return f"the runtime {name} must be installed to be used, but it is not; run: python -m pip install {runtime.pip_name or name}"
    if runtime.device == "cpu":
        return None
    found = gpu()
    if found is None:
        return f"the runtime {name} needs an NVIDIA GPU, but nvidia-smi shows none here; use another runtime{_or_build(runtime)}"
    known = runtime.compute_capabilities
    if known and found["compute_capability"] not in known:
        return (
            f"the runtime {name} runs on {', '.join(known)}, but this GPU ({found['gpu']}) is {found['compute_capability']}; "
            "use another runtime, such as tensorrt"
        )
    return None


def building_runtime(name: str, compute_capability: tuple[str, ...]) -> Runtime:
    """The entry `name`, which builds engines for other GPUs; "auto" is the first that does.

    UserError when it does not, or does not know one of the targets.
    """
    builders = [known for known, entry in RUNTIMES.items() if entry().build is not None]
    runtime = installed_runtime(builders[0] if name == "auto" else name)
    if runtime.build is None:
        listed = ", ".join(builders)
        raise UserError(f"only {listed} builds engines for GPUs that are not here, but the runtime is {name}; name that one")
    unknown = [target for target in compute_capability if target not in runtime.compute_capabilities]
    if unknown or not compute_capability:
        raise UserError(
            f"{name} builds for one or more of {', '.join(runtime.compute_capabilities)}, but got {', '.join(unknown) or 'none'}; "
            "name the compute capability of the GPU that will run the engine"
        )
    return runtime


def compute_capability(text: str) -> str:
    """ "SM89" of "89", "8.9", "sm89"."""
    return f"SM{text.upper().removeprefix('SM').replace('.', '')}"


def on_grid(runtime: Runtime, grid: Literal["uint8_relu", "int8"]) -> Runtime:
    """The runtime with models on another grid of activations; UserError where it would compute wrong numbers.

    Models on the grid of TensorRT keep weights behind a DequantizeLinear, for TensorRT may build them next.
    """
    if grid == "uint8_relu" and runtime.activation_grid == "int8":
        raise UserError(
            f"{runtime.name} takes symmetric INT8 activations only, but runtime.activation_grid is {grid}; set it to int8 or auto"
        )
    return replace(runtime, activation_grid=grid, dequantises_once=runtime.dequantises_once or grid == "int8")


def _or_build(runtime: Runtime) -> str:
    return ", or only build engines: python -m core.engines build --help" if runtime.build else ""
