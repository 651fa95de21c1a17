"""Laws of the float types in an ONNX file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from core.errors import EngineBuildError
from core.export import export_onnx
from core.runtimes.onnx_types import in_precision, refuse_foreign
from core.runtimes.types import Precision
from tests.tiny_nets import SHAPE, Residual, plan_of, quantised, settled
from tests.tiny_onnx import IMAGES, Classifier

FLOATS = {"f32": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@pytest.fixture(params=[False, True], ids=["float", "quantised"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> onnx.ModelProto:
    return onnx.load(Classifier(quantised=request.param, signed=True).save(tmp_path / "m.onnx"))


@pytest.mark.parametrize("precision", FLOATS)
def test_every_float_inside_has_the_asked_type_and_every_float_outside_stays(model: onnx.ModelProto, precision: Precision) -> None:
    typed = in_precision(model, precision)
    kinds = {initialiser.data_type for initialiser in typed.graph.initializer}
    assert kinds - {TensorProto.INT8, TensorProto.INT64} == {FLOATS[precision]}
    assert [value.name for value in (*typed.graph.input, *typed.graph.output)] == ["images", "logits"]
    assert all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in (*typed.graph.input, *typed.graph.output))
    onnx.checker.check_model(typed, full_check=True)


def test_float32_changes_nothing(model: onnx.ModelProto) -> None:
    assert in_precision(model, "f32") == model


def test_integers_are_the_same_in_every_precision(model: onnx.ModelProto) -> None:
    def integers(of: onnx.ModelProto) -> list[bytes]:
        return [initialiser.raw_data for initialiser in of.graph.initializer if initialiser.data_type == TensorProto.INT8]

    assert integers(in_precision(model, "f16")) == integers(model)


def test_float16_gives_nearly_the_same_logits(model: onnx.ModelProto) -> None:
    logits = [
        ort.InferenceSession(in_precision(model, kind).SerializeToString(), providers=["CPUExecutionProvider"]).run(
            None, {"images": IMAGES}
        )[0]
        for kind in ("f32", "f16")
    ]
    assert logits[1].dtype == np.float32
    np.testing.assert_allclose(logits[1], logits[0], atol=0.1)  # one level of an activation at most
    np.testing.assert_array_equal(logits[1].argmax(1), logits[0].argmax(1))


def test_the_original_is_left_alone(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    in_precision(model, "bf16")
    assert model.SerializeToString(deterministic=True) == before


def test_unsigned_activations_are_refused_with_their_number(tmp_path: Path) -> None:
    refuse_foreign(onnx.load(Classifier(quantised=True, signed=True).save(tmp_path / "signed.onnx")), "tensorrt")
    with pytest.raises(EngineBuildError, match="symmetric INT8 activations only, but 6 Q/DQ nodes have UINT8 zero points"):
        refuse_foreign(onnx.load(Classifier(quantised=True).save(tmp_path / "unsigned.onnx")), "tensorrt")


@pytest.mark.parametrize("precision", ["f16", "bf16"])
def test_products_of_integers_and_scales_are_multiplied_out(precision: Precision) -> None:
    """No runtime on a CPU folds a product in halves: it would be computed in each call."""
    network = settled(Residual())
    model = export_onnx(quantised(network, plan_of(network, bits=4, execution="float"), dequantises_once=False), SHAPE)
    typed = in_precision(model, precision)
    onnx.checker.check_model(typed, full_check=True)
    assert {node.op_type for node in model.graph.node} >= {"Cast", "Mul"}
    assert not {"Mul", "Reshape"} & {node.op_type for node in typed.graph.node}
    before, after = ({each.name: numpy_helper.to_array(each) for each in of.graph.initializer} for of in (model, typed))
    (conv,) = [node for node in typed.graph.node if "conv1.bias" in node.input]
    exact = before["conv1.weight"].astype(np.float32) * before["conv1.scale"][:, None, None, None]
    np.testing.assert_array_equal(after[conv.input[1]], exact.astype(after[conv.input[1]].dtype))


def test_integer_weights_that_are_cast_are_refused_with_their_number() -> None:
    network = settled(Residual())
    plan = plan_of(network, bits=4, execution="float")
    refuse_foreign(export_onnx(quantised(network, plan, grid="int8"), SHAPE), "tensorrt")
    with pytest.raises(EngineBuildError, match=r"behind a DequantizeLinear only, but 5 are cast \(stem\.weight first\)"):
        refuse_foreign(export_onnx(quantised(network, plan, grid="int8", dequantises_once=False), SHAPE), "tensorrt")
