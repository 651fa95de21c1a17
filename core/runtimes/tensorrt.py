"""TensorRT 10 and 11 on the GPU of this machine. Its libraries come from NVIDIA's own index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from core.runtimes.types import EngineOptions, Runtime, installed_version

if TYPE_CHECKING:
    from core.runtimes.trt_run import TrtEngine

NAME = "tensorrt"


def runtime() -> Runtime:
    """The table entry."""
    return Runtime(
        name=NAME,
        version=installed_version("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
        activation_grid="int8",
        addends="skip",
        depthwise_int8=False,
        load=_load,
        files=_files,
        precisions=("f32", "f16", "bf16"),
        pip_name="tensorrt",
        device="cuda",
        channel_multiple=32,
    )


def _load(path: str, options: EngineOptions) -> TrtEngine:
    from core.runtimes.trt_run import TrtEngine

    return TrtEngine("tensorrt", NAME, str(runtime().version), path, options)


def _files(path: str, options: EngineOptions) -> dict[str, bytes]:
    return _load(path, options).files()
