"""What a machine that measures for others accepts as a model: plain ONNX in one piece, with standard operators."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, TensorProto

from core.errors import EngineBuildError

DOMAINS = ("", "ai.onnx")


def check_upload(content: bytes) -> None:
    """Raises EngineBuildError for what is no ONNX, names files of this machine, or brings operators of its own.

    Loops are refused too: a network of this program has none, and one without end costs the whole time limit.
    """
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise EngineBuildError("an uploaded model must be ONNX, but these bytes are not; send a file that search.run wrote") from error
    if not model.graph.node:
        raise EngineBuildError("an uploaded model must have operators, but this one has none; send a file that search.run wrote")
    if any(tensor.data_location == TensorProto.EXTERNAL or tensor.external_data for tensor in _tensors(model)):
        raise EngineBuildError("an uploaded model must hold its weights, but this one names files on the machine; save it in one file")
    foreign = sorted({node.domain for node in model.graph.node} - {*DOMAINS})
    if foreign or model.functions:
        named = ", ".join(foreign) or "functions of its own"
        raise EngineBuildError(f"an uploaded model must use standard operators, but this one has {named}; export it again")
    nested = next((node.op_type for node in model.graph.node if any(_is_graph(attribute) for attribute in node.attribute)), None)
    if nested is not None:
        raise EngineBuildError(f"an uploaded model must have no graphs inside its operators, but {nested} has; export it without")


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Every tensor of the graph that holds values."""
    yield from model.graph.initializer
    for sparse in model.graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in model.graph.node:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def _is_graph(attribute: AttributeProto) -> bool:
    return attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS) or attribute.HasField("g") or len(attribute.graphs) > 0
