"""ONNX Runtime on the CPU, and on the GPU by its CUDA provider."""

from __future__ import annotations

import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import EngineBuildError
from core.hardware import int8_bits_here
from core.runtimes.types import Artifact, EngineOptions, Runtime, check_precision, fixed_shape, installed_version

CPU = "CPUExecutionProvider"
INT8_OPS = {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
FLOAT_OPS = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def runtime() -> Runtime:
    """The table entry."""
    return Runtime(
        name="onnxruntime",
        version=installed_version("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
        activation_grid="uint8_relu",
        depthwise_int8=True,
        load=OnnxRuntimeEngine,
        precisions=("f32",),
        pip_name="onnxruntime",
        int8_bits=int8_bits_here(),
    )


def cuda_runtime() -> Runtime:
    """The table entry of the CUDA provider. It computes quantised layers in float, and copies images and logits in every call."""
    return Runtime(
        name="onnxruntime_cuda",
        version=installed_version("onnxruntime-gpu"),
        activation_grid="uint8_relu",
        depthwise_int8=False,
        load=partial(OnnxRuntimeEngine, provider="CUDAExecutionProvider"),
        precisions=("f32", "f16"),
        pip_name="onnxruntime-gpu",
        device="cuda",
    )


class OnnxRuntimeEngine:
    """A session of one provider."""

    def __init__(self, path: str, options: EngineOptions, provider: str = CPU) -> None:
        check_precision(runtime() if provider == CPU else cuda_runtime(), options.precision)
        self._path, self._options, self._provider = path, options, provider
        self._session = _session(path, options, provider)
        if provider not in self._session.get_providers():  # it falls back with a log line
            raise EngineBuildError(f"ONNX Runtime must run on {provider}, but it started without it; install its CUDA and cuDNN libraries")
        declared = self._session.get_inputs()[0]
        self.input_shape = fixed_shape(declared.shape, options.batch)
        self._input = declared.name

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits (batch, K)."""
        return np.asarray(self._session.run(None, {self._input: images})[0])

    def artifact(self) -> Artifact:
        """Kernels that ran, from the profile of one call of a second session (profiling would slow down the first)."""
        with tempfile.TemporaryDirectory() as folder:
            session = _session(self._path, self._options, self._provider, profile_prefix=str(Path(folder, "profile")))
            session.run(None, {self._input: np.zeros(self.input_shape, np.float32)})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        kernels = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
        int8 = sum(kernel in INT8_OPS for kernel in kernels)
        return {"precision": self._options.precision, "int8_layers": int8, "layers": int8 + sum(kernel in FLOAT_OPS for kernel in kernels)}


def _session(path: str, options: EngineOptions, provider: str, profile_prefix: str | None = None) -> Any:
    """An InferenceSession: sequential, all graph optimisations, denormals as zero.

    Where sums of 8-bit products saturate, weights beyond 7 bits take slower kernels that are exact: files from elsewhere have such.
    """
    import onnxruntime as ort  # late: 0.1 s, and only the process that measures needs it

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    settings.add_free_dimension_override_by_name("batch", options.batch)
    settings.add_session_config_entry("session.set_denormal_as_zero", "1")
    if int8_bits_here() < 8:  # elsewhere all kernels are exact, and a layer that is called twice would be refused with it
        settings.add_session_config_entry("session.x64quantprecision", "1")
    if profile_prefix:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile_prefix
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    refusals = tuple(kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception))
    try:
        return ort.InferenceSession(_typed(path, options), settings, providers=list(dict.fromkeys((provider, CPU))))
    except refusals as error:
        raise EngineBuildError(f"ONNX Runtime must load the model, but: {str(error).splitlines()[0]}") from error


def _typed(path: str, options: EngineOptions) -> str | bytes:
    """The file, or its content with float layers in another precision: the provider takes that from the types."""
    if options.precision == "f32":
        return path
    import onnx  # late: 0.2 s

    from core.runtimes.onnx_types import in_precision

    return in_precision(onnx.load(path), options.precision).SerializeToString()
