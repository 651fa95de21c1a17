"""Whose time a node's is, in graphs whose layers are known."""

from __future__ import annotations

import onnx
import pytest
from onnx import parser

from core.onnx_layers import layer_nodes, own_times

SCALES = "int8[4, 4] ints = {0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0}, float scale = {1.0}, int8 zero = {0}>"


def graph(text: str) -> onnx.GraphProto:
    """The graph of the body `text`: a weight `fc.weight`, integers `ints`, and nodes named as their outputs."""
    zeros = ",".join(["0"] * 16)
    head = f"agraph (float[1, 4] images) => (float[1, 4] logits) <float[4, 4] w = {{{zeros}}}, float[4] bias = {{0,0,0,0}}, "
    made = parser.parse_graph(f"{head}{SCALES} {{ {text} }}")
    for node in made.node:
        node.name = node.output[0]
        node.input[:] = ["fc.weight" if name in ("w", "ints") else name for name in node.input]
    for stored in made.initializer:
        stored.name = "fc.weight" if stored.name == ("ints" if "ints" in text else "w") else stored.name
    return made


def test_a_layer_has_the_time_of_its_call_and_of_what_makes_its_weights() -> None:
    found = layer_nodes(
        graph(
            """q = QuantizeLinear(images, scale, zero)  dq = DequantizeLinear(q, scale, zero)
               stored = DequantizeLinear(ints, scale, zero)  turned = Transpose(stored)
               logits = Gemm(dq, turned, bias)"""
        )
    )
    assert {name: set(nodes) for name, nodes in found.items()} == {"fc": {"logits", "turned", "stored"}}, "the image's Q/DQ is not its own"
    assert found["fc"][0] == "logits"


def test_a_product_of_cast_integers_and_scales_is_a_weight_and_one_of_activations_is_none() -> None:
    found = layer_nodes(
        graph(
            """cast = Cast <to = 1> (ints)  weight = Mul(cast, scale)  gate = Sigmoid(images)  gated = Mul(images, gate)
               logits = MatMul(gated, weight)"""
        )
    )
    assert {name: set(nodes) for name, nodes in found.items()} == {"fc": {"logits", "weight", "cast"}}


def test_a_layer_that_is_called_twice_has_both_calls() -> None:
    found = layer_nodes(graph("once = MatMul(images, w)  relu = Relu(once)  logits = MatMul(relu, w)"))
    assert found == {"fc": ("once", "logits")}
    assert own_times(found, {"once": 1.0, "logits": 2.0, "relu": 4.0}) == {"fc": pytest.approx(3.0)}


def test_a_layer_whose_call_has_no_time_has_none() -> None:
    nodes = {"a": ("call", "stored"), "b": (), "c": ("other", "weights")}
    assert own_times(nodes, {"stored": 1.0, "other": 2.0}) == {"c": 2.0}
