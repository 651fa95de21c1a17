"""What a runtime is to the rest of the program: frozen facts and one function that loads an engine."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, TypedDict

import numpy as np

from core.errors import EngineBuildError, UserError

Precision = Literal["f32", "bf16", "f16"]


class Artifact(TypedDict):
    """What really runs: float precision, and how many of the compute layers (convolutions, matrix products) run in INT8."""

    precision: str
    int8_layers: int | None
    layers: int | None


@dataclass(frozen=True)
class EngineOptions:
    """Fixed when the engine is built. `precision` is that of the layers that execute in float."""

    batch: int
    threads: int
    precision: Precision
    cache: str | None = None
    """Folder where a runtime may keep what it learnt of this device (timings, compiled kernels); None: nowhere."""


class Engine(Protocol):
    """One loaded model. Input "images" float32 (batch, C, H, W), output "logits" float32 (batch, K)."""

    input_shape: tuple[int, ...]
    """(batch, C, H, W) with the batch of the options."""

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits (batch, K) of images (batch, C, H, W), float32."""

    def artifact(self) -> Artifact:
        """What the runtime made of the model; may build a second engine to find out."""


class DeviceTimed(Engine, Protocol):
    """An engine on a device with a clock of its own, which the host's clock would blur."""

    def time_ns(self) -> int:
        """Nanoseconds on the device of one call on the images of the last `run`, which stay on the device."""


@dataclass(frozen=True)
class BuiltEngine:
    """A serialised engine, what the builder made of the model, and what it warned of."""

    plan: bytes
    artifact: Artifact
    warnings: tuple[str, ...]


class Build(Protocol):
    """Builds an engine of an ONNX file for compute capabilities such as "SM89", on a machine that need not have them."""

    def __call__(self, path: str, options: EngineOptions, compute_capability: tuple[str, ...]) -> BuiltEngine: ...


class Files(Protocol):
    """Name -> content of what this device's engine can be loaded from at once: the engine, and what it learnt while it was built."""

    def __call__(self, path: str, options: EngineOptions) -> dict[str, bytes]: ...


class LayerTimes(Protocol):
    """Node of an ONNX file -> milliseconds of one call, of the nodes that the engine kept, each with what is fused into it.

    What the engine added, as changes of layout, has names of its own.
    """

    def __call__(self, path: str, options: EngineOptions) -> dict[str, float]: ...


ENGINE_FILES = ("model.engine", "model.blob", "timing.cache", "kernels.cache")
"""Every name that `Files` may give: TensorRT's engine, OpenVINO's compiled model, and TensorRT's caches."""


@dataclass(frozen=True)
class Runtime:
    """One inference runtime on this machine; `version` is None where it is not installed."""

    name: str
    version: str | None
    activation_grid: Literal["uint8_relu", "int8"]
    """uint8_relu: UINT8 with zero point 0 after a ReLU, INT8 symmetric elsewhere. int8: INT8 symmetric everywhere."""
    depthwise_int8: bool
    """Whether depthwise and grouped convolutions gain from INT8 here."""
    load: Callable[[str, EngineOptions], Engine]
    """Engine of an ONNX file; the runtime's own exceptions pass through (core/engines.py meets them)."""
    addends: Literal["both", "skip"] = "both"
    """Which inputs of a residual add between INT8 layers carry Q/DQ. skip: not the result of the last layer before the add, for a runtime
    whose kernels add before they round: it leaves out a rounding that the file states there, and does not compute what the file says."""
    dequantises_once: bool = True
    """Whether it computes the DequantizeLinear of a float layer's weights once, when it loads. False: they are written as a product of cast
    integers and scales, which it computes then. TensorRT takes no integers outside of a DequantizeLinear."""
    by_reciprocal: bool = False
    """Whether a QuantizeLinear multiplies with 1 / scale where the operator divides by scale: near ties fall on the other side."""
    rounds_bias: bool = False
    """Whether it keeps biases of INT8 convolutions whose results are rounded next as INT32, in steps of the scales of input and weights."""
    precisions: tuple[Precision, ...] = ("f32",)
    needs: Mapping[Precision, str] = field(default_factory=dict)
    """Of its precisions: those that take an instruction set of the processor, and which (`core.hardware.ISA_FLAGS`)."""
    pip_name: str = ""
    device: Literal["cpu", "cuda"] = "cpu"
    """What it computes on. A CUDA runtime that is installed can still be without a GPU: `core.hardware.gpu` tells."""
    int8_bits: Literal[7, 8] = 8
    """The most bits of a weight with which its INT8 kernels are exact on the machine that computes (`core.hardware.exact_int8_bits`)."""
    channel_multiple: int = 1
    """Channel counts that INT8 kernels want; others are padded. A hint for `prune.round_to`, no law."""
    compute_capabilities: tuple[str, ...] = ()
    """Those that `build` knows."""
    build: Build | None = None
    """None: engines are built where they run only."""
    files: Files | None = None
    """None: the runtime has no files of its own beside the ONNX model."""
    layer_times: LayerTimes | None = None
    """None: it does not say what each layer takes."""

    def on(self, isa: Collection[str]) -> Runtime:
        """As it is on a processor with these instruction sets."""
        always = [precision for precision in self.precisions if precision not in self.needs]
        return replace(self, precisions=(*always, *(precision for precision, flag in self.needs.items() if flag in isa)))


def installed_version(*distributions: str) -> str | None:
    """Version of the first of these distributions that is installed, read without importing it."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def check_precision(runtime: Runtime, precision: str) -> None:
    """UserError unless the runtime executes float layers in `precision`."""
    if precision not in runtime.precisions:
        known = ", ".join(runtime.precisions)
        raise UserError(f"{runtime.name} executes float layers in {known} only, but runtime.precision is {precision}; set it to {known}")


def fixed_shape(declared: list[int | str | None], batch: int) -> tuple[int, ...]:
    """The input's declared shape with `batch` in front; EngineBuildError when any other dimension is open."""
    rest = declared[1:]
    if len(declared) != 4 or not all(isinstance(size, int) and size > 0 for size in rest):
        raise EngineBuildError(
            f"a model takes images (batch, C, H, W) with C, H and W fixed, but this one takes {declared}; export it again"
        )
    return batch, *(int(size) for size in rest if size is not None)
