"""ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from core.runtimes.types import Artifact, EngineOptions, Runtime, check_precision, fixed_shape, installed_version

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
    )


class OnnxRuntimeEngine:
    """A session of the CPU provider."""

    def __init__(self, path: str, options: EngineOptions) -> None:
        check_precision(runtime(), options.precision)
        self._path, self._options = path, options
        self._session = _session(path, options)
        declared = self._session.get_inputs()[0]
        self.input_shape = fixed_shape(declared.shape, options.batch)
        self._input = declared.name

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits (batch, K)."""
        return np.asarray(self._session.run(None, {self._input: images})[0])

    def artifact(self) -> Artifact:
        """Kernels that ran, from the profile of one call of a second session (profiling would slow down the first)."""
        with tempfile.TemporaryDirectory() as folder:
            session = _session(self._path, self._options, profile_prefix=str(Path(folder, "profile")))
            session.run(None, {self._input: np.zeros(self.input_shape, np.float32)})
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        kernels = [event["args"]["op_name"] for event in events if event["name"].endswith("_kernel_time")]
        int8 = sum(kernel in INT8_OPS for kernel in kernels)
        return {"precision": "f32", "int8_layers": int8, "layers": int8 + sum(kernel in FLOAT_OPS for kernel in kernels)}


def _session(path: str, options: EngineOptions, profile_prefix: str | None = None) -> Any:
    """An InferenceSession: sequential, all graph optimisations, denormals as zero."""
    import onnxruntime as ort  # late: 0.1 s, and only the process that measures needs it

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    settings.add_free_dimension_override_by_name("batch", options.batch)
    settings.add_session_config_entry("session.set_denormal_as_zero", "1")
    if profile_prefix:
        settings.enable_profiling = True
        settings.profile_file_prefix = profile_prefix
    return ort.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
