"""Layers read back from the files of real networks, whose plans are known."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
from torch import Tensor, nn

from core.candidate import Candidate, Execution, GroupPlan, ShapePlan
from core.compress import draft, resolve
from core.config import RuntimeConfig
from core.engines import EngineHost
from core.errors import UserError
from core.hardware import int8_bits_here
from core.runtimes import RUNTIMES
from core.students import STUDENTS
from results.explanation import Times, explanation, one_more_bit, why_float
from results.layers import classes_of, read_layers, rest_bytes
from results.record import TrialRecord
from tests.results.views import view_of
from tests.tiny_onnx import Classifier

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
    "integers in float": Candidate(student="resnet8", width=0.5, groups=(GroupPlan(weight_bits=8, execution="float"),)),
    "floats": Candidate(student="resnet8", width=0.5, quantiser="float"),
}


@pytest.fixture(scope="module", params=list(CANDIDATES))
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Candidate, ShapePlan, Path, int]:
    """(candidate, plan, folder of its files, MACs)."""
    candidate, folder = CANDIDATES[request.param], tmp_path_factory.mktemp("model")
    return candidate, *written(candidate, folder)


def written(
    candidate: Candidate, folder: Path, bits: Literal[7, 8] = int8_bits_here(), name: str = "openvino"
) -> tuple[ShapePlan, Path, int]:
    """(plan, folder of its files, MACs) of an untrained one, for a CPU that multiplies weights of so many bits exactly."""
    runtime = replace(RUNTIMES[name](), int8_bits=bits)
    dense = STUDENTS[candidate.student](classes=7, channels=1, image_size=8, width=candidate.width)
    pruned, plan = resolve(dense, candidate, SHAPE, runtime)
    drafted = draft(pruned, plan, SHAPE, runtime, candidate.quantiser)
    drafted.save(folder)
    return plan, folder, drafted.macs


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


@pytest.mark.slow
def test_one_more_bit_costs_what_a_file_of_one_more_bit_takes(model, tmp_path):
    candidate, folder = model[0], written(model[0], tmp_path / "here", bits=8)[1]
    more = [group.model_copy(update={"weight_bits": group.weight_bits + (group.weight_bits < 8)}) for group in candidate.groups]
    grown = read_layers(written(candidate.model_copy(update={"groups": tuple(more)}), tmp_path / "more", bits=8)[1])
    layers = read_layers(folder)
    added = sum(layer.size_bytes for layer in grown) - sum(layer.size_bytes for layer in layers)
    assert abs(added - one_more_bit(layers)) <= sum(layer.bits < 8 for layer in layers)  # a longer table takes a longer length
    assert any(layer.shared for layer in layers) == (candidate.quantiser == "codebook")


def test_the_classes_are_those_of_the_exported_model(model, tmp_path):
    assert classes_of(model[2] / "model.onnx") == 7
    assert classes_of(tmp_path / "model.onnx") is None


@pytest.mark.parametrize("content", [b"", b"\x0a\xff\xff"])
def test_a_damaged_model_is_named_in_a_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "weights.pack").write_bytes(b"")
    for read in (lambda: classes_of(tmp_path / "model.onnx"), lambda: read_layers(tmp_path)):
        with pytest.raises(UserError, match=r"model\.onnx is damaged: it .*; run search\.doctor, or search anew"):
            read()


def test_missing_files_have_no_layers(tmp_path):
    assert read_layers(tmp_path) == ()


@pytest.fixture(scope="module", params=["openvino", "onnxruntime"])
def host(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    with EngineHost(RuntimeConfig(name=request.param), tmp_path_factory.mktemp("host")) as host:
        yield host


def test_every_layer_is_timed_under_its_name_in_the_graph(model: tuple[Candidate, ShapePlan, Path, int], host: EngineHost) -> None:
    times, layers = host.layer_times(model[2] / "model.onnx"), read_layers(model[2])
    assert [layer.name for layer in layers if layer.nodes[0] not in times] == []
    assert all(0.0 <= milliseconds < 1000 for milliseconds in times.values())


class Tokens(nn.Module):
    """A linear layer on tokens (B, 64, 8) behind a convolution: runtimes fuse the transposition between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix, self.head = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8, 8), nn.Linear(8, 7)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 1, 8, 8) -> (B, 7)."""
        tokens = self.conv(images).relu().flatten(2).transpose(1, 2)
        return self.head(self.mix(tokens).relu().mean(1))


@pytest.mark.parametrize("execution", ["int8", "float"])
def test_a_linear_layer_on_tokens_has_its_time(execution: Execution, host: EngineHost, tmp_path: Path) -> None:
    pruned, plan = resolve(Tokens(), Candidate(student="tokens", groups=(GroupPlan(execution=execution),)), SHAPE, host.runtime)
    draft(pruned, plan, SHAPE, host.runtime).save(tmp_path)
    times = host.layer_times(tmp_path / "model.onnx")
    assert [layer.name for layer in read_layers(tmp_path) if layer.nodes[0] not in times] == []


@pytest.mark.parametrize("name", ["light_cnn", "integers in float"])
def test_onnx_runtime_dequantises_no_float_layer_s_weights_in_a_call(name: str, tmp_path: Path) -> None:
    """With a DequantizeLinear it would, and keep a slower layout too (benchmarks/folded_weights.py)."""
    plan, folder, _ = written(CANDIDATES[name], tmp_path, name="onnxruntime")
    layers = read_layers(folder)
    assert [layer.execution for layer in layers] == [layer.execution for layer in plan.layers]
    with EngineHost(RuntimeConfig(name="onnxruntime"), tmp_path) as host:
        times = host.layer_times(folder / "model.onnx")
    for layer in layers:
        assert [node for node in layer.nodes if node in times][:1] == [layer.nodes[0]]
        assert layer.execution != "float" or not set(layer.nodes[1:]) & set(times)


@pytest.mark.slow
def test_larger_images_take_longer_in_the_layers(tmp_path: Path, host: EngineHost) -> None:
    in_all = []
    for side in (8, 48):
        network = STUDENTS["resnet8"](classes=7, channels=1, image_size=side, width=0.5)
        pruned, plan = resolve(network, Candidate(student="resnet8", width=0.5), (1, side, side), RUNTIMES["openvino"]())
        path = draft(pruned, plan, (1, side, side), RUNTIMES["openvino"](), "lsq").save(tmp_path / str(side))
        in_all.append(sum(host.layer_times(path).values()))
    assert 0 < in_all[0] < in_all[1]


def test_a_runtime_that_does_not_say_what_a_layer_takes_gives_nothing(tmp_path: Path) -> None:
    with EngineHost(RuntimeConfig(name="tensorrt_rtx", build_for=("SM89",)), tmp_path) as host:
        assert host.layer_times(Classifier(quantised=True).save(tmp_path / "model.onnx")) == {}


def test_an_explanation_with_milliseconds_adds_up_to_what_was_timed(
    model: tuple[Candidate, ShapePlan, Path, int], make_record: Callable[..., TrialRecord]
) -> None:
    candidate, _, folder, _ = model
    layers = read_layers(folder)
    record = make_record(0, 0.9, (folder / "weights.pack").stat().st_size, 0.1).model_copy(
        update={"candidate": candidate, "path": folder.name}
    )
    view = view_of([record], None, folder.parent)
    nodes = {layer.nodes[0]: 0.25 * (index + 1) for index, layer in enumerate(layers)} | {"a pooling": 0.5}
    told = explanation(view, record, layers, {}, Times(nodes, "0123456789ab"))
    column = told.splitlines()[2].index("ms")
    read = [float(line[: column + 2].split()[-1]) for line in told.splitlines()[3 : 5 + len(layers)]]
    assert read == [*(0.25 * (index + 1) for index in range(len(layers))), 0.5, sum(nodes.values())]
    assert "counting makes a call slower, so compare layers with one another." in told  # its latency is 0.1 ms
    quick = explanation(view, record, layers, {}, Times({layers[0].nodes[0]: 0.001}, "0123456789ab"))
    assert "a call also takes time outside of the layers." in quick
    assert "This is not the device of the study." not in told
    assert "This is not the device of the study." in explanation(view, record, layers, {}, Times(nodes, "another"))
    assert "openvino does not say here what a layer takes" in explanation(view, record, layers, {}, Times({}, "0123456789ab"))
    without = explanation(view, record, layers, {})
    assert " ms " not in without.splitlines()[2]
    assert "they were not asked for, or this machine cannot time them" in without
