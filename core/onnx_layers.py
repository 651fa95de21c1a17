"""Which nodes of an exported model compute its layers: names of layers are kept in those of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import UserError

if TYPE_CHECKING:
    import onnx

COMPUTE = ("Conv", "Gemm", "MatMul")
RESHAPES = ("DequantizeLinear", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Cast")
"""What may stand between a layer and its weights or its quantised input."""


def read_model(path: Path) -> onnx.ModelProto:
    """The model in an ONNX file. Raises UserError for one that is damaged."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load(path)
    except DecodeError as error:
        raise UserError(f"{path} is damaged: it is no ONNX model; run search.doctor, or search anew") from error
    if not model.graph.node:
        raise UserError(f"{path} is damaged: it holds no operators; run search.doctor, or search anew")
    return model


def layer_calls(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """(layer name, a node that computes with its weights) in order of execution; a layer that is called twice has two."""
    made = makers(graph)
    for node in graph.node:
        if node.op_type in COMPUTE:
            for value in node.input[:2]:
                source = source_of(value, made)
                if source.endswith(".weight"):
                    yield source.removesuffix(".weight"), node


def makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Value -> the node that makes it."""
    return {output: node for node in graph.node for output in node.output}


def source_of(value: str, made: Mapping[str, onnx.NodeProto]) -> str:
    """The name at the far end of the reshapes and dequantisations behind `value`."""
    while value in made and made[value].op_type in RESHAPES:
        value = made[value].input[0]
    return value
