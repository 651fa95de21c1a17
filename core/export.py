"""ONNX with explicit Q/DQ from a quantised graph, and its weights as a packed file that rebuilds them bit for bit."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript import ir
from onnxscript.optimizer import fold_constants, remove_unused_nodes
from torch import nn

from core.errors import EngineMismatch, UserError
from core.pack import QTensor, Tensor
from core.quantise.integer import IntegerWeight
from core.quantise.layers import OPSET, exporting, integer_layers
from core.quantise.stored import CodebookWeight, FloatWeight, StoredWeight

INPUT, OUTPUT = "images", "logits"


def export_onnx(model: nn.Module, input_shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Export an eval-mode network or quantised graph: input `images` float32 (batch, C, H, W), output `logits` (batch, K).

    The batch is symbolic. Raises UserError when torch.onnx cannot express the network.
    """
    # four images: torch.export would specialise a batch of one
    example = torch.zeros(4, *input_shape)
    with exporting(), _quiet():
        try:
            program = torch.onnx.export(
                model,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                # the optimiser merges equal constants; names must stay one to one with the packed file
                optimize=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            raise UserError(f"the network must export to ONNX, but torch.onnx refuses it: {_first_line(error)}") from error
    assert program is not None
    _fold_shapes(program.model)
    _give_first_names(program.model, model)
    return _stripped(program.model_proto)


def _give_first_names(exported: ir.Model, model: nn.Module) -> None:
    """Call a tied parameter or buffer as `named_parameters` does: torch.onnx keeps the last of its names."""
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    first: dict[int, str] = {}
    for name, value in held:
        known, other = first.setdefault(id(value), name), exported.graph.initializers.get(name)
        if known != name and other is not None:
            other.name = known


def packed_tensors(graph: nn.Module) -> dict[str, Tensor]:
    """Everything that training decided, under the names of the ONNX initialisers: integers, scales, biases, activation scales,
    and what is left in float (an unfolded batch norm, an attention's projection)."""
    layers = integer_layers(graph)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors |= {f"{name}.{leaf}": tensor for leaf, tensor in _stored_tensors(layer.stored).items()}
        tensors[f"{name}.bias"] = layer.bias.numpy()
    taken = {f"{name}.{leaf}" for name in layers for leaf in ("weight", "bias", "scale", "zero")}
    # not state_dict: the engine needs buffers that are not persistent too
    for name, value in (*graph.named_parameters(), *graph.named_buffers()):
        if name not in taken and value.is_floating_point():
            tensors[name] = value.detach().numpy().astype(np.float32)
    return tensors


def _stored_tensors(weight: StoredWeight) -> dict[str, Tensor]:
    """A layer's weight by the last part of its names: `weight`, or `indices`, centred as integers of its bits, and `codebook`."""
    if isinstance(weight, FloatWeight):
        return {"weight": weight.values.numpy()}
    if isinstance(weight, CodebookWeight):
        centred = (weight.indices - 2 ** (weight.bits - 1)).numpy().astype(np.int8)
        return {"indices": QTensor(centred, weight.scales.numpy(), weight.bits), "codebook": weight.codebook.numpy()}
    return {"weight": QTensor(weight.values.numpy().astype(np.int8 if weight.bits <= 8 else np.int16), weight.scales.numpy(), weight.bits)}


@torch.no_grad()
def load_packed(graph: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put unpacked tensors back into a quantised graph of the same layers: the inverse of `packed_tensors`, activation scales apart."""
    layers = integer_layers(graph)
    for name, layer in layers.items():
        stored = _stored_weight(name, tensors)
        assert (type(layer.stored), layer.bits) == (type(stored), stored.bits), f"{name}: {layer.bits} bits, but {stored.bits} are packed"
        layer.take(stored)
    floats = dict((*graph.named_parameters(), *graph.named_buffers()))
    weights = {f"{name}.weight" for name in layers}
    for name, tensor in tensors.items():
        if name in floats and name not in weights:  # another plan has other Q/DQ points
            floats[name].copy_(torch.tensor(tensor))


def _stored_weight(name: str, tensors: Mapping[str, Tensor]) -> StoredWeight:
    """The inverse of `_stored_tensors`, for the layer `name`."""
    kept = tensors.get(f"{name}.indices", tensors.get(f"{name}.weight"))
    if not isinstance(kept, QTensor):
        return FloatWeight(torch.tensor(kept))
    values, scales = torch.tensor(kept.values).to(torch.int16), torch.tensor(kept.scales)
    if f"{name}.indices" in tensors:
        return CodebookWeight(values + 2 ** (kept.bits - 1), torch.tensor(tensors[f"{name}.codebook"]), scales, kept.bits)
    return IntegerWeight(values, scales, kept.bits)


def float_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a float network, for the size of its packed file."""
    return {
        name: value.detach().cpu().numpy().astype(np.float32) for name, value in model.state_dict().items() if value.is_floating_point()
    }


def initialisers_of(tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Unpacked tensors as the ONNX initialisers they stand for: name -> int8 or float32 array."""
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        table = tensors.get(f"{name.removesuffix('indices')}codebook") if name.endswith(".indices") else None
        if not isinstance(tensor, QTensor):
            arrays[name] = tensor
        elif table is not None:
            assert isinstance(table, np.ndarray)
            scales = tensor.scales.reshape(-1, *[1] * (tensor.values.ndim - 1))
            arrays[f"{name.removesuffix('indices')}weight"] = table[tensor.values.astype(np.int64) + 2 ** (tensor.bits - 1)] * scales
        elif tensor.bits > 8:
            scales = tensor.scales.reshape(-1, *[1] * (tensor.values.ndim - 1))
            arrays[name] = tensor.values.astype(np.float32) * scales
        else:
            arrays[name] = tensor.values
            arrays[name.removesuffix("weight") + "scale"] = tensor.scales
    return arrays


def check_rebuilds(model: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> None:
    """Raise EngineMismatch unless the unpacked tensors equal every float or INT8 weight of the ONNX, bit for bit.

    What is neither (shapes, indices, masks), and a tensor that is filled with one value, belong to the graph: nothing trained is in them.
    """
    arrays = initialisers_of(tensors)
    for initialiser in model.graph.initializer:
        value = numpy_helper.to_array(initialiser)
        if initialiser.name.endswith(".zero") or (initialiser.name not in arrays and _is_structure(value)):
            continue
        known = arrays.get(initialiser.name)
        if known is None or (known.dtype, known.shape) != (value.dtype, value.shape) or known.tobytes() != value.tobytes():
            raise EngineMismatch(
                f"the packed file must rebuild the ONNX bit for bit, but {initialiser.name!r} differs; search or export anew"
            )


def _is_structure(value: np.ndarray) -> bool:
    return value.dtype not in (np.float32, np.int8) or (value.size > 1 and bool((value == value.flat[0]).all()))


def with_weights(model: onnx.ModelProto, tensors: Mapping[str, Tensor]) -> onnx.ModelProto:
    """A copy of the exported structure with other weights of the same shapes: a trained candidate is not exported twice."""
    arrays = initialisers_of(tensors)
    filled = onnx.ModelProto()
    filled.CopyFrom(model)
    for initialiser in filled.graph.initializer:
        if initialiser.name in arrays:
            old, new = numpy_helper.to_array(initialiser), arrays[initialiser.name]
            assert (old.shape, old.dtype) == (new.shape, new.dtype), f"{initialiser.name}: {old.shape} {new.shape}"
            initialiser.CopyFrom(numpy_helper.from_array(np.asarray(new, order="C"), initialiser.name))
    return filled


def structure_key(model: onnx.ModelProto) -> str:
    """16 hex digits of everything but the values of the weights: equal structure, equal latency."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    for initialiser in bare.graph.initializer:
        if initialiser.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT8):
            initialiser.ClearField("raw_data")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()[:16]


def _fold_shapes(model: ir.Model) -> None:
    """Compute shapes and axes that are constant: TensorRT takes the axes of a mean as a constant only, not as a reshaped one.

    Integers alone, since weights keep their names.
    """
    with _quiet():
        fold_constants(model, should_fold=_is_shape_arithmetic)
        remove_unused_nodes(model)


def _is_shape_arithmetic(node: ir.Node) -> bool:
    constants = [value.const_value for value in node.inputs if value is not None]
    return node.op_type != "Cast" and all(constant is not None and constant.dtype == ir.DataType.INT64 for constant in constants)


def _stripped(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes on every node (stack traces with paths of this machine)."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    for initialiser in model.graph.initializer:
        del initialiser.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints progress and logs notes about its own internals."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
