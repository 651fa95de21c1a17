"""The table of inference runtimes. Importing it imports none of them."""

from __future__ import annotations

from collections.abc import Callable

from core.errors import MissingRuntime
from core.runtimes import onnxruntime, openvino
from core.runtimes.types import Engine, EngineOptions, Runtime, check_precision
from core.tables import lookup

__all__ = ["RUNTIMES", "Engine", "EngineOptions", "Runtime", "check_precision", "installed_runtime", "resolve_runtime"]

RUNTIMES: dict[str, Callable[[], Runtime]] = {"openvino": openvino.runtime, "onnxruntime": onnxruntime.runtime}

AUTO_ORDER = ("openvino", "onnxruntime")


def resolve_runtime(name: str) -> str:
    """A name of RUNTIMES that is installed here; "auto" is OpenVINO where it is installed, else ONNX Runtime.

    UserError for an unknown name, MissingRuntime for one that is not installed.
    """
    if name == "auto":
        name = next((known for known in AUTO_ORDER if RUNTIMES[known]().version), AUTO_ORDER[-1])
    return installed_runtime(name).name


def installed_runtime(name: str) -> Runtime:
    """The entry `name`, "auto" not among them; UserError when unknown, MissingRuntime when not installed."""
    runtime = lookup(RUNTIMES, "runtime", name)()
    if runtime.version is None:
        raise MissingRuntime(f"the runtime {name} must be installed to be used, but it is not; run: pip install {runtime.pip_name or name}")
    return runtime
