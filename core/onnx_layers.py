"""Which nodes of an exported model compute its layers: names of layers are kept in those of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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


def layer_nodes(graph: onnx.GraphProto) -> dict[str, tuple[str, ...]]:
    """Layer name -> names of the nodes whose time is its own, in order of execution of the layers.

    Every call of it, and what dequantises and reshapes its weights and bias: a runtime that does not fold those runs them in each call.
    """
    made, stored, found = makers(graph), {each.name for each in graph.initializer}, dict[str, list[str]]()
    for name, call in layer_calls(graph):
        found.setdefault(name, []).append(call.name)
        for value in call.input:
            if source_of(value, made) in stored:
                found[name] += [node.name for node in _before(value, made) if node.name not in found[name]]
    return {name: tuple(nodes) for name, nodes in found.items()}


def own_times(nodes: Mapping[str, Sequence[str]], times: Mapping[str, float]) -> dict[str, float]:
    """Layer -> what its nodes (`layer_nodes`) take together, of those layers whose first call has a time."""
    timed = ((name, own) for name, own in nodes.items() if own and own[0] in times)
    return {name: sum(times.get(node, 0.0) for node in own) for name, own in timed}


def makers(graph: onnx.GraphProto) -> dict[str, onnx.NodeProto]:
    """Value -> the node that makes it."""
    return {output: node for node in graph.node for output in node.output}


def source_of(value: str, made: Mapping[str, onnx.NodeProto]) -> str:
    """The name at the far end of the reshapes and dequantisations behind `value`."""
    for node in _before(value, made):
        value = node.input[0]
    return value


def _before(value: str, made: Mapping[str, onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The reshapes and dequantisations behind `value`, the nearest first; a product of cast integers and their scales is one."""
    while value in made and (made[value].op_type in RESHAPES or is_product(made[value], made)):
        yield made[value]
        value = made[value].input[0]


def is_product(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> bool:
    """Whether it multiplies stored integers with their scales, as `Runtime.dequantises_once` has them: nothing else is cast before."""
    first = made.get(node.input[0]) if node.op_type == "Mul" else None
    return first is not None and first.op_type == "Cast" and first.input[0] not in made
