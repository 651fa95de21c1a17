"""ONNX Runtime on the CPU, and on the GPU by its CUDA provider."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core.errors import EngineBuildError
from core.hardware import int8_bits_here
from core.onnx_layers import COMPUTE, makers, read_model
from core.runtimes.counting import least, repeated, uncounted
from core.runtimes.types import Artifact, EngineOptions, Runtime, check_precision, fixed_shape, installed_version

if TYPE_CHECKING:
    import onnx

CPU = "CPUExecutionProvider"
KERNEL = "_kernel_time"
"""Behind a node's name in a profile."""
RENAMED = re.compile(r"_token_\d+$")
"""Behind the name of a node whose kernel took its place, as an INT8 convolution takes that of a convolution between Q/DQ. Behind that of a
node that another one was fused into stands `/what`."""
BLOCKED = "_nchwc"
"""Behind the name of what a convolution in the blocked layout gives: that of the activation or sum that was fused into it, if one was."""
Kernel = tuple[str, str]
"""(name in a profile, operator)"""
INT8_OPS = {"QLinearConv", "ConvInteger", "QGemm", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
FLOAT_OPS = {"Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


def runtime() -> Runtime:
    """The table entry."""
    return Runtime(
        name="onnxruntime",
        version=installed_version("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino"),
        activation_grid="uint8_relu",
        dequantises_once=False,
        rounds_bias=True,
        depthwise_int8=True,
        load=OnnxRuntimeEngine,
        layer_times=_layer_times,
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
        dequantises_once=False,
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

    def profile(self, repeat: Callable[[Callable[[], object]], object]) -> list[dict[str, Any]]:
        """Events of all kernels, call after call, as often as `repeat` calls a second session: profiling would slow down the first."""
        images = np.zeros(self.input_shape, np.float32)
        with tempfile.TemporaryDirectory() as folder:
            session = _session(self._path, self._options, self._provider, profile_prefix=str(Path(folder, "profile")))
            repeat(lambda: session.run(None, {self._input: images}))
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        return [event for event in events if event["name"].endswith(KERNEL)]

    def artifact(self) -> Artifact:
        """Kernels that ran, from the profile of one call."""
        kernels = [event["args"]["op_name"] for event in self.profile(lambda call: call())]
        int8 = sum(kernel in INT8_OPS for kernel in kernels)
        return {"precision": self._options.precision, "int8_layers": int8, "layers": int8 + sum(kernel in FLOAT_OPS for kernel in kernels)}


def _layer_times(path: str, options: EngineOptions) -> dict[str, float]:
    graph = read_model(Path(path)).graph
    return least(lambda: _counted(OnnxRuntimeEngine(path, options), graph))


def _counted(engine: OnnxRuntimeEngine, graph: onnx.GraphProto) -> dict[str, float]:
    """Node -> mean milliseconds without the first call, less what counting costs; ONNX Runtime counts in whole microseconds."""
    kernels, found = defaultdict[Kernel, list[int]](list), defaultdict[str, float](float)
    for event in engine.profile(repeated):
        kernels[event["name"].removesuffix(KERNEL), event["args"]["op_name"]].append(event["dur"])
    images = np.zeros(engine.input_shape, np.float32)
    call = statistics.fmean(repeated(lambda: engine.run(images))[1:])
    names, times = _origins(kernels, graph), [statistics.fmean(microseconds[1:]) / 1000 for microseconds in kernels.values()]
    for kernel, milliseconds in zip(kernels, uncounted(times, call), strict=True):
        found[names[kernel]] += milliseconds
    return dict(found)


def _origins(kernels: Iterable[Kernel], graph: onnx.GraphProto) -> dict[Kernel, str]:
    """The node that each kernel computes; its own name where it is none of the graph's, as a change of layout is not."""
    made, found = makers(graph), dict[Kernel, str]()
    named, layers = {node.name for node in graph.node}, {node.name for node in graph.node if node.op_type in COMPUTE}
    fused: dict[Kernel, onnx.NodeProto] = {}
    for name, operator in kernels:
        plain = name if name in named else RENAMED.sub("", name).partition("/")[0]
        node = made.get(plain.removesuffix(BLOCKED))
        found[name, operator] = plain if plain in named or node is None else node.name
        if operator in FLOAT_OPS and node is not None and found[name, operator] not in layers:
            fused[name, operator] = node
    for kernel, node in fused.items():
        free = layers - set(found.values())
        found[kernel] = next((each.name for each in _behind(node, made) if each.name in free), found[kernel])
    return found


def _behind(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """What `node` computes with, the nearest first, no further than the next layers."""
    waiting = deque([node])
    while waiting:
        before = [made[value] for value in waiting.popleft().input if value in made]
        yield from before
        waiting += [each for each in before if each.op_type not in COMPUTE]


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
