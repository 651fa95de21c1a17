"""INT8 by NNCF's post-training quantisation of the exported ONNX file: its ranges, its placement of Q/DQ, its bias correction.

For comparison with what is ours. Of its placement one thing is undone: where a runtime adds before it rounds (`Runtime.addends`), so does
the file. Its weights are int8 initialisers, as decision 3 wants them; activations are symmetric on the runtime's grid: unsigned with zero
point 0 where NNCF saw nothing negative, or signed everywhere (`int8`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from core.candidate import ShapePlan
from core.onnx_layers import layer_calls, makers
from core.pack import QTensor
from core.pack import Tensor as Packed
from core.quantise.graph import Grid, build_graph
from core.quantise.ptq import keep_float
from core.quantise.setting import untrained
from core.runtimes.openvino import send_nothing
from core.runtimes.types import Runtime


@dataclass(frozen=True)
class Int8Model:
    """A quantised file, what its packed weights are, and a module that computes what it says."""

    model: onnx.ModelProto
    tensors: dict[str, Packed]
    simulation: nn.Module


def nncf(model: nn.Module, plan: ShapePlan, images: Tensor, runtime: Runtime) -> Int8Model:
    """Quantise the layers of `plan` that execute in INT8; the others stay in float32. `images`: float32 (N, C, H, W)."""
    from core.export import INPUT, export_onnx  # late: export imports this package

    shape, grid = (images.shape[1], images.shape[2], images.shape[3]), runtime.activation_grid
    names = {layer.name: layer.weight_bits for layer in plan.layers}
    in_float = plan.model_copy(update={"layers": tuple(layer.model_copy(update={"execution": "float"}) for layer in plan.layers)})
    # a trained network is channels-last, and exports other reshapes than its draft did
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    graph = build_graph(model, keep_float(model, names, untrained), in_float, grid, shape)
    exported = export_onnx(graph, shape)
    batches = [{INPUT: part.numpy()} for part in images.split(1)]
    float_layers = [layer.name for layer in plan.layers if layer.execution != "int8"]
    quantised = _quantised(exported, batches, float_layers, halved=runtime.int8_bits < 8)
    if runtime.addends == "skip":
        _add_before_rounding(quantised)
    tensors = _named_as_packed(quantised, grid)
    return Int8Model(quantised, tensors, Literally(quantised))


def _quantised(
    exported: onnx.ModelProto, batches: list[dict[str, np.ndarray]], float_layers: list[str], *, halved: bool
) -> onnx.ModelProto:
    """`halved`: weights in -64..64, whose products with 8-bit activations no INT8 kernel clips."""
    library = _library()
    advanced = library.AdvancedQuantizationParameters(overflow_fix=library.OverflowFix.ENABLE) if halved else None
    ignored = [node.name for name, node in layer_calls(exported.graph) if name in float_layers]
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found: onnx.ModelProto = library.quantize(
                exported,
                library.Dataset(batches),
                preset=library.QuantizationPreset.PERFORMANCE,
                subset_size=len(batches),
                ignored_scope=library.IgnoredScope(names=ignored),
                advanced_parameters=advanced,
            )
    finally:
        logging.disable(level)
    return found


def _library() -> Any:
    """NNCF, which then reports nothing."""
    send_nothing()
    import nncf as library  # late: it takes seconds

    return library


def _add_before_rounding(model: onnx.ModelProto) -> None:
    """In place: at every residual add the result of the last INT8 layer before it loses its Q/DQ, where nothing else takes it."""
    graph = model.graph
    made = makers(graph)
    places = {output: place for place, node in enumerate(graph.node) for output in node.output}
    takers = Counter(name for node in graph.node for name in node.input)
    for add in [node for node in graph.node if node.op_type == "Add"]:
        pairs = {index: pair for index, name in enumerate(add.input) if (pair := _pair_before(name, made))}
        results = {index: pair[0].input[0] for index, pair in pairs.items() if _is_int8_layer(made.get(pair[0].input[0]), made)}
        if not results:
            continue
        last = max(results, key=lambda index: places[results[index]])
        if all(takers[name] == 1 for name in (results[last], *(node.output[0] for node in pairs[last]))):
            add.input[last] = results[last]
            for node in pairs[last]:
                graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for each in [each for each in graph.initializer if each.name not in used]:
        graph.initializer.remove(each)


def _pair_before(name: str, made: Mapping[str, onnx.NodeProto]) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Q and DQ, where the tensor `name` comes out of them."""
    back = made.get(name)
    point = None if back is None or back.op_type != "DequantizeLinear" else made.get(back.input[0])
    return (point, back) if back is not None and point is not None else None


def _is_int8_layer(node: onnx.NodeProto | None, made: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether its weights are integers."""
    weight = made.get(node.input[1]) if node is not None and node.op_type in ("Conv", "Gemm") else None
    return weight is not None and weight.op_type == "DequantizeLinear"


def _named_as_packed(model: onnx.ModelProto, grid: Grid) -> dict[str, Packed]:
    """Give all constants the names that the packed file has for them, in place, and return what it keeps: integers, scales, floats."""
    constants = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    renamed: dict[str, str] = {}
    tensors: dict[str, Packed] = {}
    points = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for index, node in enumerate(points):
        values, scale, zero = node.input
        if values in constants:
            stem = values.removeprefix("q_output_").rpartition("weight")[0]
            renamed[values] = f"{stem}weight"
            scales = np.broadcast_to(constants[scale].reshape(-1), constants[values].shape[:1])
            tensors[f"{stem}weight"] = QTensor(constants[values], scales.astype(np.float32), 8)
            assert not constants[zero].any(), "symmetric weights have the zero point 0"
        elif scale in renamed:
            continue
        else:
            stem = f"quantise_{index}."
            if grid == "int8" and constants[zero].dtype == np.uint8:
                # NNCF has no configuration that is signed everywhere: the same range on the signed grid
                constants[zero] = constants[zero].astype(np.int8)
                constants[scale] = constants[scale] * np.float32(255 / 127)
        renamed |= {scale: f"{stem}scale", zero: f"{stem}zero"}
    _rename(model, constants, renamed)
    scales_of_weights = {f"{name.removesuffix('weight')}scale" for name in tensors}
    for each in model.graph.initializer:
        if each.data_type == onnx.TensorProto.FLOAT and each.name not in scales_of_weights:
            tensors[each.name] = numpy_helper.to_array(each)
    return tensors


def _rename(model: onnx.ModelProto, constants: dict[str, np.ndarray], renamed: dict[str, str]) -> None:
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = renamed.get(name, name)
    for given in [given for given in model.graph.input if given.name in constants]:
        model.graph.input.remove(given)  # a constant that a caller may change is none to a runtime
    del model.graph.value_info[:]
    for each in model.graph.initializer:
        each.CopyFrom(numpy_helper.from_array(constants[each.name], renamed.get(each.name, each.name)))


class Literally(nn.Module):
    """An ONNX file, every Q/DQ computed as it is written, nothing fused: what the engines of runtimes are compared with."""

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__()
        import onnxruntime  # late: heavy

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor:
        """float32 (B, C, H, W) -> logits (B, K)."""
        name = self.session.get_inputs()[0].name
        return torch.from_numpy(self.session.run(None, {name: images.numpy()})[0])
