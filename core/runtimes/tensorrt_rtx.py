"""TensorRT for RTX: TensorRT's API, compiled on the user's GPU at the first call, and built anywhere, also without a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.runtimes.types import BuiltEngine, EngineOptions, Runtime, installed_version

if TYPE_CHECKING:
    from core.runtimes.trt_run import TrtEngine

NAME = "tensorrt_rtx"
MODULE = "tensorrt_rtx_bindings"
BINDINGS = ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings")


def runtime() -> Runtime:
    """The table entry."""
    return Runtime(
        name=NAME,
        version=installed_version(*BINDINGS),
        activation_grid="int8",
        addends="skip",
        depthwise_int8=False,
        load=_load,
        files=_files,
        precisions=("f32", "f16", "bf16"),
        pip_name="tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings",
        device="cuda",
        channel_multiple=32,
        compute_capabilities=("SM75", "SM80", "SM86", "SM89", "SM120", "SM121"),
        build=_build,
    )


def _load(path: str, options: EngineOptions) -> TrtEngine:
    from core.runtimes.trt_run import TrtEngine

    return TrtEngine(MODULE, NAME, str(runtime().version), path, options)


def _files(path: str, options: EngineOptions) -> dict[str, bytes]:
    return _load(path, options).files()


def _build(path: str, options: EngineOptions, compute_capability: tuple[str, ...]) -> BuiltEngine:
    from core.runtimes.trt_build import build

    return build(MODULE, NAME, path, options, compute_capability)[0]
