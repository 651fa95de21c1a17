"""Engines of TensorRT and TensorRT-RTX, built: one API, strongly typed networks, no GPU needed where the target is named.

INT8 comes from explicit Q/DQ, float precisions from the types in the ONNX file: TensorRT 11 knows no other way.

References: NVIDIA TensorRT 10 and 11 documentation, "Strongly Typed Networks", "Working with Quantized Types";
TensorRT-RTX documentation, "CPU-Only AOT and TensorRT-RTX Engines".
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass, field
from typing import Any

from core.errors import EngineBuildError, one_line
from core.runtimes.types import Artifact, BuiltEngine, EngineOptions, Precision, fixed_shape

LAYER = re.compile(r"Name: .*?, LayerType: (?P<kind>[^,]*), Inputs: \[ \{(?P<first_input>[^}]*)\}")
COMPUTE = re.compile("conv|correlation|gemm|matmul|matrix|fully", re.IGNORECASE)
"""Kinds of layers that multiply weights or maps: TensorRT-RTX calls a convolution a correlation."""
LAYERS_MARK = "LayerType: "


@dataclass(frozen=True)
class Log:
    """What the library said, by severity. `layers` is its description of the finished engine."""

    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    layers: list[str] = field(default_factory=list)

    def last_errors(self) -> str:
        """The first two errors: what follows them says the same again."""
        return " | ".join(self.errors[:2]) or "it gave no reason"


def listening(trt: Any, log: Log) -> Any:
    """A logger of the library that writes into `log`; everything but warnings, errors and the layers is dropped."""
    severity = trt.ILogger.Severity
    kept = {severity.WARNING: log.warnings, severity.ERROR: log.errors, severity.INTERNAL_ERROR: log.errors}

    class Listener(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, level: Any, message: str) -> None:
            if level in kept:
                kept[level].append(one_line(message))
            elif LAYERS_MARK in message:
                log.layers.append(message)

    return Listener()


def build(
    module: str,
    name: str,
    path: str,
    options: EngineOptions,
    compute_capability: tuple[str, ...] = (),
    timing_cache: bytes | None = None,
) -> tuple[BuiltEngine, bytes | None]:
    """The engine of an ONNX file, and the timing cache after it where one was given (b"": an empty one).

    Without `compute_capability` it is built for the GPU of this machine. Raises EngineBuildError with the library's reason.
    """
    trt, log = importlib.import_module(module), Log()
    builder = trt.Builder(listening(trt, log))
    builder.max_threads = options.threads
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse(_typed(path, options.precision, name)):
        raise EngineBuildError(f"{name} cannot parse it: {log.last_errors()}")
    images = network.get_input(0)
    images.shape = fixed_shape([size if size > 0 else "open" for size in images.shape], options.batch)
    config = _config(trt, builder, compute_capability)
    cache = None
    if timing_cache is not None:
        cache = config.create_timing_cache(timing_cache) or config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineBuildError(f"{name} cannot build it{_target(compute_capability)}: {log.last_errors()}")
    artifact = count_layers("\n".join(log.layers), options.precision)
    return BuiltEngine(bytes(plan), artifact, tuple(log.warnings)), None if cache is None else bytes(cache.serialize())


def count_layers(description: str, precision: Precision) -> Artifact:
    """Compute layers in an engine's description, one layer a line; in INT8 are those whose first input is."""
    layers = [match for match in LAYER.finditer(description) if COMPUTE.search(match["kind"])]
    int8 = sum("Int8" in match["first_input"] for match in layers)
    return {"precision": precision, "int8_layers": int8 if layers else None, "layers": len(layers) or None}


def _typed(path: str, precision: Precision, name: str) -> bytes:
    """The model as the parser takes it."""
    import onnx  # late: 0.2 s, and only an engine of TensorRT needs it

    from core.runtimes.onnx_types import in_precision, refuse_foreign

    model = onnx.load(path)
    refuse_foreign(model, name)
    return in_precision(model, precision).SerializeToString()


def _config(trt: Any, builder: Any, compute_capability: tuple[str, ...]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # layers keep their types in the description
    config.clear_flag(trt.BuilderFlag.TF32)  # f32 means f32; who wants it faster takes f16
    if compute_capability:
        config.num_compute_capabilities = len(compute_capability)
        for index, target in enumerate(compute_capability):
            config.set_compute_capability(getattr(trt.ComputeCapability, target), index)
    return config


def _target(compute_capability: tuple[str, ...]) -> str:
    return f" for {', '.join(compute_capability)}" if compute_capability else ""
