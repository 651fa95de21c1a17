"""Layers read back from the files of real networks, whose plans are known."""

from pathlib import Path

import pytest

from core.candidate import Candidate, GroupPlan, ShapePlan
from core.compress import draft, resolve
from core.runtimes import RUNTIMES
from core.students import STUDENTS
from results.explanation import one_more_bit, why_float
from results.layers import classes_of, read_layers, rest_bytes
from results.record import TrialRecord

SHAPE = (1, 8, 8)
GROUPS = (
    GroupPlan(weight_bits=4, prune_ratio=0.3),
    GroupPlan(weight_bits=5, execution="float"),
    GroupPlan(weight_bits=16, execution="float"),
    GroupPlan(weight_bits=3),
)
CANDIDATES = {
    "resnet8": Candidate(student="resnet8", width=0.5, groups=GROUPS, round_to=4),
    "light_cnn": Candidate(student="light_cnn", width=0.25, groups=GROUPS, round_to=4, edge_bits=None),
    "shufflenet_v2": Candidate(student="shufflenet_v2", width=0.25, groups=(GroupPlan(weight_bits=6),)),
    "shared values": Candidate(student="resnet8", width=0.5, groups=GROUPS, quantiser="codebook"),
    "floats": Candidate(student="resnet8", width=0.5, quantiser="float"),
}


@pytest.fixture(scope="module", params=list(CANDIDATES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, ShapePlan, Path, int]:
    """(candidate, plan, folder of its files, MACs)."""
    candidate, folder = CANDIDATES[request.param], tmp_path_factory.mktemp("model")
    dense = STUDENTS[candidate.student](classes=7, channels=1, image_size=8, width=candidate.width)
    pruned, plan = resolve(dense, candidate, SHAPE, RUNTIMES["openvino"]())
    drafted = draft(pruned, plan, SHAPE, RUNTIMES["openvino"](), candidate.quantiser)
    drafted.save(folder)
    return candidate, plan, folder, drafted.macs


def test_names_channels_bits_and_execution_are_those_of_the_plan(model):
    _, plan, folder, _ = model
    layers = read_layers(folder)
    assert [(layer.name, layer.shape[0], layer.bits, layer.execution) for layer in layers] == [
        (layer.name, layer.out_channels, layer.weight_bits, layer.execution) for layer in plan.layers
    ]


def test_bytes_and_macs_add_up(model):
    _, _, folder, macs = model
    layers = read_layers(folder)
    size = (folder / "weights.pack").stat().st_size
    assert sum(layer.size_bytes for layer in layers) + rest_bytes(folder, layers) == size
    assert 0 < rest_bytes(folder, layers) < size
    assert sum(layer.macs for layer in layers) == macs


def test_a_layer_takes_its_bits_per_weight_and_little_more(model):
    candidate, _, folder, _ = model
    for layer in read_layers(folder):
        payload = -(-layer.weights * layer.bits // 8)
        table = 4 * min(2**layer.bits, layer.weights) + len(layer.name) + 20 if candidate.quantiser == "codebook" else 0
        assert payload < layer.size_bytes <= payload + table + 8 * layer.shape[0] + 2 * len(layer.name) + 40


def test_every_float_layer_has_a_reason_and_no_other_has(model, make_record):
    candidate, _, folder, _ = model
    layers = read_layers(folder)
    record: TrialRecord = make_record(0, 0.9, 5_000, 0.1).model_copy(update={"candidate": candidate})
    reasons = [why_float(layer, index, len(layers), record) for index, layer in enumerate(layers)]
    assert [bool(reason) for reason in reasons] == [layer.execution == "float" for layer in layers]
    for layer, reason in zip(layers, reasons, strict=True):
        assert ("16-bit weights" in reason) == (layer.bits == 16)
        assert "the graph does not quantise" not in reason


def test_one_more_bit_costs_an_eighth_of_a_byte_for_each_weight_that_can_grow(model):
    _, _, folder, _ = model
    layers = read_layers(folder)
    growing = [layer for layer in layers if layer.bits < 8]
    exact = sum(layer.weights for layer in growing) / 8
    assert exact - len(growing) <= one_more_bit(layers) <= exact + len(growing)


def test_the_classes_are_those_of_the_exported_model(model, tmp_path):
    assert classes_of(model[2] / "model.onnx") == 7
    assert classes_of(tmp_path / "model.onnx") is None


def test_missing_files_have_no_layers(tmp_path):
    assert read_layers(tmp_path) == ()
