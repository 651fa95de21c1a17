"""OpenVINO on the CPU: the default runtime."""

from __future__ import annotations

import functools
import sys
from collections import defaultdict
from typing import Any

import numpy as np

from core.hardware import int8_bits_here, is_x86_without_avx512, isa_here
from core.runtimes.counting import least, repeated
from core.runtimes.types import Artifact, EngineOptions, Precision, Runtime, fixed_shape, installed_version

NEEDS: dict[Precision, str] = {"bf16": "avx512f"}
"""Without it, the plugin takes a wish for bf16 and computes in f32 all the same."""
DEQUANTISING = ("Convert", "Subtract", "Multiply", "Reshape")
IN_FLOAT = {"LP_TRANSFORMS_MODE": False}
"""Computes Q/DQ as it is written, no layer in INT8: for models from elsewhere whose sums INT8 kernels would clip on this CPU."""
COMPUTE_LAYERS = ("Convolution", "Deconvolution", "FullyConnected", "MatMul")
"""Of an execution graph; a counted one has them with endings, as FullyConnectedCompressed."""
COMPUTE_OPS = ("Convolution", "GroupConvolution", "MatMul")
"""Of the graph that was read."""


def runtime() -> Runtime:
    """The table entry."""
    return Runtime(
        name="openvino",
        version=installed_version("openvino"),
        activation_grid="uint8_relu",
        addends="skip",
        by_reciprocal=True,
        depthwise_int8=True,
        load=OpenVinoEngine,
        files=_files,
        layer_times=_layer_times,
        needs=NEEDS,
        pip_name="openvino",
        int8_bits=int8_bits_here(),
    ).on(isa_here())


class OpenVinoEngine:
    """A compiled model with one stream and one inference request."""

    def __init__(self, path: str, options: EngineOptions, *, counted: bool = False) -> None:
        core = _core()
        import openvino as ov

        model = core.read_model(path)
        shape = model.input(0).partial_shape
        self.input_shape = fixed_shape([size.get_length() if size.is_static else str(size) for size in shape], options.batch)
        ops = model.get_ordered_ops() if counted else []
        self._read = [_node(op.get_friendly_name()) for op in ops if op.get_type_name() in COMPUTE_OPS]
        model.reshape({model.input(0): ov.PartialShape(list(self.input_shape))})
        supported = core.get_property("CPU", "SUPPORTED_PROPERTIES")
        exact = IN_FLOAT if int8_bits_here() < 8 and _beyond_seven_bits(model) else {}
        if options.threads > 1 and is_x86_without_avx512():
            _skip_before_pointwise(model)
        self._model = core.compile_model(model, "CPU", _properties(options, supported) | exact | {"PERF_COUNT": counted})
        self._request = self._model.create_infer_request()

    def exported(self) -> bytes:
        """The compiled model, which `Core.import_model` loads in the same version on an equal processor, given the same properties."""
        return bytes(self._model.export_model().getvalue())

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits (batch, K), a copy."""
        self._request.infer([images], share_inputs=True)  # no copy in: the request is synchronous
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)

    def counters(self) -> dict[str, float]:
        """Node -> mean milliseconds of the calls so far, of an engine that is `counted`; OpenVINO counts in whole microseconds."""
        nodes, found = self._request.get_profiling_info(), defaultdict[str, float](float)
        names = self._names([_node(node.node_name) for node in nodes if node.node_type.startswith(COMPUTE_LAYERS)])
        for node in nodes:
            found[names.get(_node(node.node_name), _node(node.node_name))] += node.real_time.total_seconds() * 1000
        return dict(found)

    def _names(self, executed: list[str]) -> dict[str, str]:
        """Executed -> read, of the layers whose name the plugin did not keep: a 1x1 convolution may run as a matrix product.

        They are paired in order, and where their numbers differ not at all.
        """
        renamed = [name for name in executed if name not in self._read]
        missing = [name for name in self._read if name not in executed]
        return dict(zip(renamed, missing, strict=True)) if len(renamed) == len(missing) else {}

    def artifact(self) -> Artifact:
        """Precisions of the execution graph: what the plugin chose, not what was asked for."""
        # the kernel's name, not runtimePrecision: that is i8 also where 8-bit weights are only stored and computed with in f32
        layers = [_text(op, "primitiveType") for op in self._model.get_runtime_model().get_ordered_ops() if _is_compute(op)]
        int8 = sum(kernel.upper().endswith("I8") for kernel in layers)
        hint = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        return {"precision": {"float32": "f32", "bfloat16": "bf16"}.get(hint, hint), "int8_layers": int8, "layers": len(layers)}


def _files(path: str, options: EngineOptions) -> dict[str, bytes]:
    return {"model.blob": OpenVinoEngine(path, options).exported()}


def _layer_times(path: str, options: EngineOptions) -> dict[str, float]:
    return least(lambda: _counted(OpenVinoEngine(path, options, counted=True)))


def _counted(engine: OpenVinoEngine) -> dict[str, float]:
    """Node -> mean milliseconds without the first call, which compiles some kernels; the counters cannot be reset."""
    images = np.zeros(engine.input_shape, np.float32)
    engine.run(images)
    first = engine.counters()
    calls = len(repeated(lambda: engine.run(images)))
    return {name: max(0.0, (mean * (calls + 1) - first.get(name, mean)) / calls) for name, mean in engine.counters().items()}


def send_nothing() -> None:
    """Before OpenVINO or NNCF is imported: both report their use unless this package is missing. Nothing is sent from a user's machine."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


@functools.cache
def _core() -> Any:
    """The only core of this process, never freed.

    Each core's CPU plugin installs a stack for signal handlers and puts the one before it back when it goes: two that are freed in the
    order they were made leave a freed stack installed, and the next signal with a Python handler ends the process with SIGSEGV.
    """
    send_nothing()
    import openvino as ov  # late: 0.2 s, and only the process that measures needs it

    return ov.Core()


def _properties(options: EngineOptions, supported: Any) -> dict[str, Any]:
    """Plugin options. LATENCY with one stream: one call at a time, all threads for it."""
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": options.precision,
    }
    if "DYNAMIC_QUANTIZATION_GROUP_SIZE" in supported:  # else a float layer with integer weights quantises its activations on the fly
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    if "CPU_DENORMALS_OPTIMIZATION" in supported:  # denormals in untrained weights cost time that trained ones do not
        properties["CPU_DENORMALS_OPTIMIZATION"] = True
    return properties


def _beyond_seven_bits(model: Any) -> bool:
    """Whether a layer that would run in INT8 has weights whose sums of products may be clipped (`core.hardware.exact_int8_bits`)."""
    for op in model.get_ordered_ops():
        if op.get_type_name() in COMPUTE_OPS:
            image, weight = (_integers(op.input_value(place)) for place in (0, 1))
            known = image is not None and weight is not None and weight.get_type_name() == "Constant"
            if known and np.abs(weight.data.astype(np.int16)).max() > 64:
                return True
    return False


def _skip_before_pointwise(model: Any) -> None:
    """Give `model` a pooling of single pixels, in INT8 too, before the convolutions that `_overruns`: the same numbers."""
    import openvino as ov
    from openvino import opset13 as ops

    still = [0, 0]
    for op in filter(_overruns, model.get_ordered_ops()):
        image, weight = op.input_value(0), op.input_value(1)
        met = ops.max_pool(image, op.get_attributes()["strides"], [1, 1], still, still, [1, 1]).output(0)
        dense = ops.convolution(met, weight, [1, 1], still, still, [1, 1])
        dense.set_friendly_name(op.get_friendly_name())
        ov.utils.replace_node(op, dense)


def _overruns(op: Any) -> bool:
    """Whether it is a convolution that corrupts what another thread computes: strided, 1x1, in INT8, its channels no multiple of 16.

    oneDNN's AVX2 kernels first copy the pixels that the stride meets, in pieces of 16 bytes, so that 8, 24 or 40 channels end in the
    next thread's part (OpenVINO 2026.4, 2 threads, 64 images: other logits in every call; none with 16, 32 and 48 channels, with one
    thread, in float, or in SSE4.1 kernels). Shortcuts of narrow and of pruned ResNets are such layers.
    """
    if op.get_type_name() != "Convolution" or _integers(op.input_value(0)) is None:
        return False
    settings = op.get_attributes()
    padded = any((*settings["pads_begin"], *settings["pads_end"]))
    _, channels, *kernel = op.input_value(1).get_shape()
    return kernel == [1, 1] and list(settings["strides"]) != [1, 1] and not padded and channels % 16 != 0


def _integers(value: Any) -> Any:
    """The operation whose 8-bit integers a dequantisation turns into `value`; None where that is no dequantisation."""
    op = value.get_node()
    while op.get_output_element_type(0).to_string() not in ("i8", "u8"):
        if op.get_type_name() not in DEQUANTISING:
            return None
        op = op.input_value(0).get_node()
    return op


def _node(name: str) -> str:
    """The ONNX node's name: OpenVINO splits a node into operations `name/what`."""
    return name.partition("/")[0]


def _is_compute(op: Any) -> bool:
    return _text(op, "layerType") in COMPUTE_LAYERS


def _text(op: Any, key: str) -> str:
    return str(op.rt_info[key].astype(str))
