"""The types that a runtime reads its precision from: for those that take them from the ONNX file and are told nothing else."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from core.errors import EngineBuildError
from core.onnx_layers import is_product, makers, source_of
from core.runtimes.types import Precision

TYPES = {"f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
OPSET = 22
"""The first in which convolutions and poolings take bfloat16; nothing else of theirs has changed since 21."""
QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


def in_precision(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    """A copy in which everything that was float32 has the type of `precision`; inputs and outputs stay float32.

    The scales of Q/DQ too: a layer between them then computes in INT8 and hands over `precision`.
    """
    typed = onnx.ModelProto()
    typed.CopyFrom(model)
    if precision == "f32":
        return typed
    _multiply_out(typed.graph)
    graph, kind = typed.graph, TYPES[precision]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    for opset in typed.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, OPSET)
    del graph.value_info[:]
    for initialiser in graph.initializer:
        _retype(initialiser, dtype)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                _retype(attribute.t, dtype)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = kind
    _cast_borders(graph, kind)
    return typed


def refuse_foreign(model: onnx.ModelProto, runtime: str) -> None:
    """Raises EngineBuildError for a file that was written for another runtime, of which TensorRT builds a wrong engine or none.

    Activations on a UINT8 grid it reads as INT8 with a warning, and computes wrong numbers. Integer weights it takes behind a
    DequantizeLinear only.
    """
    types = {initialiser.name: initialiser.data_type for initialiser in model.graph.initializer}
    unsigned = [
        node
        for node in model.graph.node
        if node.op_type in QUANTISERS and len(node.input) > 2 and types.get(node.input[2]) == TensorProto.UINT8
    ]
    if unsigned:
        raise EngineBuildError(
            f"{runtime} takes symmetric INT8 activations only, but {len(unsigned)} Q/DQ nodes have UINT8 zero points "
            f"({unsigned[0].name or unsigned[0].input[0]} first); export the model for runtime.name {runtime}"
        )
    if cast := [node.input[0] for node in model.graph.node if node.op_type == "Cast" and types.get(node.input[0]) == TensorProto.INT8]:
        raise EngineBuildError(
            f"{runtime} takes integer weights behind a DequantizeLinear only, but {len(cast)} are cast ({cast[0]} first); "
            f"export the model for runtime.name {runtime}"
        )


def _multiply_out(graph: onnx.GraphProto) -> None:
    """Put values in place of products of stored integers and scales: a runtime computes a product in halves in each call."""
    made, stored = makers(graph), {initialiser.name: initialiser for initialiser in graph.initializer}
    for node in [node for node in graph.node if is_product(node, made)]:
        integers, scales = (numpy_helper.to_array(stored[source_of(value, made)]).astype(np.float32) for value in node.input)
        value = integers * scales.reshape(-1, *[1] * (integers.ndim - 1))
        graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
        for done in (node, *(made[value] for value in node.input)):
            graph.node.remove(done)


def _retype(tensor: onnx.TensorProto, dtype: np.dtype) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))


def _cast_borders(graph: onnx.GraphProto, kind: int) -> None:
    """Casts behind the float inputs and in front of the float outputs, whose names stay."""
    inputs = [value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    outputs = [value.name for value in graph.output if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name in (*inputs, *outputs):
                node.input[index] = f"{name}_typed"
        for index, name in enumerate(node.output):
            if name in outputs:
                node.output[index] = f"{name}_typed"
    before = [helper.make_node("Cast", [name], [f"{name}_typed"], name=f"cast_{name}", to=kind) for name in inputs]
    after = [helper.make_node("Cast", [f"{name}_typed"], [name], name=f"cast_{name}", to=TensorProto.FLOAT) for name in outputs]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
