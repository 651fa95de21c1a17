"""What is inside a compressed model, layer by layer, read from its two files: the ONNX graph and the packed weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.candidate import Execution
from core.onnx_layers import RESHAPES, layer_calls, layer_nodes, makers, read_model, source_of
from core.pack import QTensor, Tensor, tensor_bytes, unpack

if TYPE_CHECKING:
    import onnx


class LayerFacts(NamedTuple):
    """One layer as it is stored and as the graph asks to execute it; None where the graph does not say."""

    name: str
    shape: tuple[int, ...]
    """Of the weights, output channels first."""
    bits: int
    size_bytes: int
    """Weights with their scales or shared values, and the bias, in the packed file."""
    execution: Execution | None
    groups: int
    macs: int | None
    """Multiply-accumulates for one image."""
    nodes: tuple[str, ...] = ()
    """Names of those whose time is its own (`core.onnx_layers.layer_nodes`)."""
    shared: bool = False
    """Whether its weights are indices into a table of values (`codebook`)."""

    @property
    def weights(self) -> int:
        """Number of weights without the bias."""
        return math.prod(self.shape)


def read_layers(folder: Path) -> tuple[LayerFacts, ...]:
    """Every layer of `folder`'s model.onnx and weights.pack in order of execution; () where a file is missing.

    Raises UserError for a damaged file.
    """
    model, packed = folder / "model.onnx", folder / "weights.pack"
    if not (model.is_file() and packed.is_file()):
        return ()
    graph = read_model(model).graph
    content = packed.read_bytes()
    tensors, sizes = unpack(content), tensor_bytes(content)
    found, nodes = dict(layer_calls(graph)), layer_nodes(graph)
    order = {name: index for index, name in enumerate(found)}
    kept = [(*name.rpartition(".")[::2], tensor) for name, tensor in tensors.items()]
    names = [
        stem for stem, leaf, tensor in kept if leaf == "indices" or (leaf == "weight" and (isinstance(tensor, QTensor) or stem in found))
    ]
    shapes = {value.name: _dims(value) for value in graph.value_info}
    return tuple(
        _facts(name, tensors, sizes, graph, found.get(name), shapes)._replace(nodes=nodes.get(name, ()))
        for name in sorted(names, key=lambda name: order.get(name, len(order)))
    )


def rest_bytes(folder: Path, layers: tuple[LayerFacts, ...]) -> int:
    """Bytes of the packed file outside its layers: header, checksum, scales of the activations, what is left in float."""
    return (folder / "weights.pack").stat().st_size - sum(layer.size_bytes for layer in layers)


def classes_of(model: Path) -> int | None:
    """Number of classes of an exported model; None where the file is missing or leaves it open."""
    if not model.is_file():
        return None
    return _dims(read_model(model).graph.output[0])[-1] or None


def _facts(
    name: str,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, int],
    graph: onnx.GraphProto,
    call: onnx.NodeProto | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> LayerFacts:
    weight = tensors.get(f"{name}.indices", tensors.get(f"{name}.weight"))
    assert weight is not None
    values, bits = (weight.values, weight.bits) if isinstance(weight, QTensor) else (weight, 32)
    size_bytes = sum(sizes.get(f"{name}.{leaf}", 0) for leaf in ("weight", "indices", "codebook", "bias"))
    groups = next((item.i for item in call.attribute if item.name == "group"), 1) if call is not None else 1
    out = shapes.get(call.output[0], ()) if call is not None else ()
    positions = math.prod(out[2:]) if call is not None and call.op_type == "Conv" and all(out[1:]) and out else None
    macs = None if positions is None else positions * int(values.size)
    shared = f"{name}.indices" in tensors
    return LayerFacts(name, values.shape, bits, size_bytes, _execution(graph, call), int(groups), macs, shared=shared)


def _execution(graph: onnx.GraphProto, call: onnx.NodeProto | None) -> Execution | None:
    """INT8 where the layer's input comes through a Q/DQ pair: that is what runtimes fuse."""
    if call is None:
        return None
    made = makers(graph)
    inputs = [value for value in call.input[:2] if not source_of(value, made).endswith(".weight")]
    value = inputs[0] if inputs else ""
    while value in made and made[value].op_type in RESHAPES:
        if made[value].op_type == "DequantizeLinear":
            return "int8"
        value = made[value].input[0]
    return "float"


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    """0 for a symbolic dimension."""
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
