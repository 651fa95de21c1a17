"""A trial from end to end: a candidate in, a measured engine out, on a few images and with a real engine."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from core.candidate import START, AllocationPlan, Candidate, DistilPlan, GroupPlan, Rung, fingerprint
from core.config import Config, ParentConfig, QuantiseConfig, RuntimeConfig, TeacherConfig, TeacherTrainConfig, TrainConfig, ViewsConfig
from core.engines import EngineHost
from core.errors import InfeasibleCandidate, TrainingDiverged, UserError
from core.export import check_rebuilds
from core.pack import unpack
from core.quantise.setting import genes_of
from core.teacher import obtain_teacher
from core.teacher_logits import TeacherLogits
from core.train import Device
from core.views import viewed
from objectives.allocation import settle
from objectives.bench import SELF, Stages, Workbench
from objectives.budget import Known, Limits
from objectives.evaluate import Evaluation, evaluate, fingerprint_of, shape_of
from objectives.outlook import looked_at
from tests.tiny_data import search_data

CPU = Device(torch.device("cpu"), torch.bfloat16)
NET = """
from torch import nn
def build(classes, channels):
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes),
    )
"""
GROUPS = (GroupPlan(weight_bits=4, prune_ratio=0.5), GroupPlan(weight_bits=16), GroupPlan(weight_bits=3, execution="float"))
CANDIDATE = Candidate(student="light_cnn", width=0.25, groups=GROUPS, round_to=4)
NONE = Limits()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    folder = tmp_path_factory.mktemp("run")
    (folder / "net.py").write_text(NET)
    short = TrainConfig(epochs=4.0, batch_size=16, lr=0.05)
    config = Config(
        teacher=TeacherConfig(model=f"{folder / 'net.py'}:build", train=TeacherTrainConfig(epochs=20.0, batch_size=16, lr=0.1)),
        views=ViewsConfig(number=2, flip=False, shift=0),
        parent=ParentConfig(train=short),
        finetune=short,
        quantise=QuantiseConfig(train=short.model_copy(update={"lr": 0.01}), calibration_images=64),
        runtime=RuntimeConfig(warmup_s=0.0, max_s=0.02, timeout_s=60.0),
    )
    data = search_data()
    teacher = obtain_teacher(config, data, CPU, folder / "cache")
    train_set = viewed(data.train, teacher.normalise, config.views, config.seed, CPU.device)
    logits = TeacherLogits(teacher, train_set, data.info.digest, CPU, folder / "cache")
    with EngineHost(config.runtime, folder) as engines:
        yield Workbench(config, data, train_set, teacher, logits, CPU, engines, folder)


def run(candidate: Candidate, bench: Workbench, folder: Path, limits: Limits = NONE, stages: Stages | None = None) -> Evaluation:
    pruned, plan = shape_of(candidate, bench)
    return evaluate(candidate, pruned, plan, bench, limits, stages or Stages(), folder)


@pytest.fixture(scope="module")
def done(bench: Workbench) -> tuple[Evaluation, Stages]:
    stages = Stages()
    return run(CANDIDATE, bench, bench.folder / "first", stages=stages), stages


def test_a_candidate_becomes_a_measured_engine(done: tuple[Evaluation, Stages], bench: Workbench) -> None:
    measured, artifact = done[0].measurement, done[0].artifact
    assert measured.accuracy > 0.8
    assert measured.agreement >= 0.95
    assert measured.images == len(bench.data.search)
    assert measured.latency.p50_ms > 0
    assert measured.latency.runtime == artifact.runtime == bench.engines.runtime.name
    assert artifact.int8_layers is None or artifact.int8_layers < artifact.layers  # type: ignore[operator]


def test_the_size_is_that_of_the_file_which_rebuilds_the_model(done: tuple[Evaluation, Stages]) -> None:
    packed = (done[0].folder / "weights.pack").read_bytes()
    assert done[0].measurement.size_bytes == len(packed)
    check_rebuilds(onnx.load(done[0].folder / "model.onnx"), unpack(packed))


def test_the_accuracy_is_that_of_the_engine_of_the_saved_file(done: tuple[Evaluation, Stages], bench: Workbench) -> None:
    images = bench.teacher.normalise(bench.data.search.images).numpy()
    logits, _ = bench.engines.predict(done[0].folder / "model.onnx", images)
    assert done[0].measurement.accuracy == pytest.approx(float((logits.argmax(1) == bench.data.search.labels.numpy()).mean()))


def test_the_stages_run_in_their_order_and_are_timed(done: tuple[Evaluation, Stages]) -> None:
    assert list(done[1].seconds) == ["engine", "parent", "prune", "distil", "quantise", "accuracy"]
    assert all(seconds >= 0 for seconds in done[1].seconds.values())


def test_the_same_candidate_again_gives_the_same_files(done: tuple[Evaluation, Stages], bench: Workbench, tmp_path: Path) -> None:
    again = run(CANDIDATE, bench, tmp_path)
    for name in ("weights.pack", "model.onnx"):
        assert (tmp_path / name).read_bytes() == (done[0].folder / name).read_bytes()
    assert again.measurement == done[0].measurement  # the latency too: it was measured once


def test_the_parent_is_distilled_once_and_the_teacher_asked_once_per_view(done: tuple[Evaluation, Stages], bench: Workbench) -> None:
    asked = bench.logits.forward_images
    assert asked <= 2 * len(bench.train_set)
    assert len(list((bench.folder / "parents").glob("*.safetensors"))) == 1
    epochs: list[float] = []
    bench.parent("light_cnn", 0.25, lambda *numbers: epochs.append(numbers[0]))
    assert epochs == []
    assert bench.logits.forward_images == asked


@pytest.mark.slow
def test_a_trial_that_is_interrupted_at_its_very_end_keeps_its_checkpoints(bench: Workbench, tmp_path: Path) -> None:
    seen: list[str] = []

    def on_stage(name: str) -> None:
        seen.append(name)
        if name == "journal" and "accuracy" in seen:
            raise KeyboardInterrupt

    looking = replace(bench, config=bench.config.model_copy(update={"journal": True}))
    with pytest.raises(KeyboardInterrupt):
        run(CANDIDATE, looking, tmp_path, stages=Stages(on_stage))
    assert list(tmp_path.glob("*.part"))
    run(CANDIDATE, looking, tmp_path)
    assert not list(tmp_path.glob("*.part"))


def test_the_own_network_is_its_own_student(bench: Workbench, tmp_path: Path) -> None:
    before = copy.deepcopy(bench.teacher.model.state_dict())
    gentle = TrainConfig(epochs=4.0, batch_size=16, lr=0.005)  # it begins with trained weights
    recipes = {"finetune": gentle, "quantise": bench.config.quantise.model_copy(update={"train": gentle})}
    pruned = Candidate(student=SELF, groups=(GroupPlan(prune_ratio=0.5),), round_to=4)
    result = run(pruned, replace(bench, config=bench.config.model_copy(update=recipes)), tmp_path)
    assert result.measurement.accuracy > 0.5
    assert all(torch.equal(before[name], value) for name, value in bench.teacher.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in bench.teacher.model.parameters())


def test_the_own_network_unpruned_in_eight_bits_without_training_is_as_good_as_the_teacher(bench: Workbench, tmp_path: Path) -> None:
    still = bench.config.model_copy(update={"finetune": TrainConfig(epochs=0.0)})
    result = run(Candidate(student=SELF, quantiser="ptq"), replace(bench, config=still), tmp_path)
    assert result.measurement.accuracy == pytest.approx(bench.teacher.accuracy, abs=0.05)


@pytest.mark.parametrize(
    "genes",
    [{"quantiser": "rate", "rate_weight": 0.1}, {"quantiser": "codebook", "sparsity": 0.5}, {"quantiser": "lsq", "sparsity": 0.5}],
)
def test_a_quantiser_that_trains_by_its_own_rule_gives_an_engine_that_is_right(
    genes: dict[str, object], bench: Workbench, tmp_path: Path
) -> None:
    result = run(CANDIDATE.model_copy(update={**genes, "groups": (GroupPlan(weight_bits=4),)}), bench, tmp_path)
    assert result.measurement.accuracy > 0.8
    assert result.measurement.agreement >= 0.95


@pytest.mark.parametrize("quantiser", ["brecq", "nncf", "float"])
@pytest.mark.slow
def test_a_quantiser_that_does_not_train_keeps_the_teacher_s_accuracy(quantiser: str, bench: Workbench, tmp_path: Path) -> None:
    still = bench.config.model_copy(update={"finetune": TrainConfig(epochs=0.0)})
    result = run(Candidate(student=SELF, quantiser=quantiser), replace(bench, config=still), tmp_path)
    assert result.measurement.accuracy == pytest.approx(bench.teacher.accuracy, abs=0.05)


def test_from_scratch_needs_no_parent(bench: Workbench, tmp_path: Path) -> None:
    stages = Stages()
    scratch = CANDIDATE.model_copy(update={"width": 0.375, "distil": DistilPlan(init="scratch", loss="dkd")})
    run(scratch, bench, tmp_path, stages=stages)
    assert "parent" not in stages.seconds
    assert not list((bench.folder / "parents").glob("light_cnn-0.375*"))


@pytest.mark.parametrize(
    ("limits", "last"), [(Limits(size_kb=0.1), "engine"), (Limits(latency_ms=1e-6), "engine"), (Limits(accuracy=1.0), "accuracy")]
)
def test_a_limit_ends_the_trial_as_soon_as_its_number_is_known(limits: Limits, last: str, bench: Workbench, tmp_path: Path) -> None:
    stages = Stages()
    hopeless = CANDIDATE.model_copy(
        update={"groups": (GroupPlan(weight_bits=2),), "edge_bits": 2, "quantiser": "ptq", "distil": DistilPlan(init="scratch")}
    )
    untrained = bench.config.model_copy(update={"finetune": TrainConfig(epochs=0.0)})
    with pytest.raises(InfeasibleCandidate):
        run(hopeless, replace(bench, config=untrained), tmp_path, limits, stages)
    assert list(stages.seconds)[-1] == last


@dataclass
class Heard:
    """A gate that lets everything pass and remembers what it was told."""

    notes: dict[str, Any] = field(default_factory=dict)
    rungs: list[Rung] = field(default_factory=list)

    def note(self, **facts: Any) -> None:
        self.notes |= facts

    def before_training(self, known: Known) -> None: ...

    def at_rung(self, known: Known, rung: Rung) -> None:
        self.rungs.append(rung)


def heard(candidate: Candidate, bench: Workbench, folder: Path, limits: Limits = NONE, epochs: float = 2.0) -> Heard:
    """What a gate hears of a candidate that trains for so many epochs a stage."""
    short = TrainConfig(epochs=epochs, batch_size=32)
    quick = {"finetune": short, "quantise": bench.config.quantise.model_copy(update={"train": short})}
    gate, (pruned, plan) = Heard(), shape_of(candidate, bench)
    with suppress(InfeasibleCandidate):
        evaluate(candidate, pruned, plan, replace(bench, config=bench.config.model_copy(update=quick)), limits, Stages(), folder, gate)
    return gate


@pytest.mark.slow
def test_what_a_limit_of_accuracy_refuses_in_the_end_is_measured_and_told(bench: Workbench, tmp_path: Path) -> None:
    poor = CANDIDATE.model_copy(update={"groups": (GroupPlan(weight_bits=2),), "edge_bits": 2, "distil": DistilPlan(init="scratch")})
    missed = heard(poor, bench, tmp_path, Limits(accuracy=1.0), epochs=0.0).notes["missed"]
    assert missed.accuracy < 1.0
    assert missed.parameters > 0
    assert "missed" not in heard(poor, bench, tmp_path / "free", epochs=0.0).notes


SDQ = AllocationPlan(strategy="sdq", choices=(2, 4, 8), budget_bits=4.0)


@pytest.mark.parametrize(
    ("changes", "stops"),
    [
        ({}, [("distil", 1.0), ("distil", 2.0)]),
        ({"quantiser": "codebook"}, [("distil", 1.0), ("distil", 2.0)]),
        ({"quantiser": "codebook", "sparsity": 0.5}, [("distil", 1.0), ("distil", 2.0), ("quantise", 1.0)]),
        ({"allocation": SDQ}, [("distil", 1.0), ("distil", 2.0), ("quantise", 1.0)]),
        ({"quantiser": "ptq"}, [("distil", 1.0)]),
    ],
)
@pytest.mark.slow
def test_half_of_all_epochs_is_too_late_to_stop_however_many_trainings_there_are(
    changes: dict[str, Any], stops: list[tuple[str, float]], bench: Workbench, tmp_path: Path
) -> None:
    candidate = settle(CANDIDATE.model_copy(update={"groups": (GroupPlan(weight_bits=4),), **changes}), bench, Stages())
    rungs = looked_at(heard(candidate, bench, tmp_path).rungs)
    assert [(rung.stage, rung.epoch) for rung in rungs if rung.stage != START] == stops


@pytest.mark.slow
def test_the_size_of_learned_bits_is_told_and_kept_within_the_limit_before_the_last_training(bench: Workbench, tmp_path: Path) -> None:
    short = TrainConfig(epochs=1.0, batch_size=32)
    quick = {"finetune": short, "quantise": bench.config.quantise.model_copy(update={"train": short})}
    quickly = replace(bench, config=bench.config.model_copy(update=quick))
    candidate = settle(CANDIDATE.model_copy(update={"groups": (GroupPlan(weight_bits=4),), "allocation": SDQ}), bench, Stages())
    pruned, plan = shape_of(candidate, bench)

    class Sizes(Heard):
        def at_rung(self, known: Known, rung: Rung) -> None:
            seen.append((rung.stage, known.size_bytes))

    seen: list[tuple[str, int]] = []
    done = evaluate(candidate, pruned, plan, quickly, NONE, Stages(), tmp_path / "free", Sizes())
    drafted, learned = dict(seen)["quantise"], dict(seen)["quantise 2"]
    assert drafted < learned == done.measurement.size_bytes
    seen.clear()
    with pytest.raises(InfeasibleCandidate, match=r"its bits are learned$"):
        evaluate(candidate, pruned, plan, quickly, Limits(size_kb=(learned - 1) / 1000), Stages(), tmp_path / "limited", Sizes())
    assert "quantise 2" not in dict(seen)


def test_a_diverging_training_ends_the_trial(bench: Workbench, tmp_path: Path) -> None:
    wild = bench.config.model_copy(update={"finetune": TrainConfig(epochs=8.0, lr=1e12, batch_size=16)})
    with pytest.raises(TrainingDiverged):
        run(CANDIDATE, replace(bench, config=wild), tmp_path)


@pytest.mark.parametrize("wrong", [{"student": "resnet9"}, {"quantiser": "none"}, {"distil": DistilPlan(loss="mse")}])
def test_a_name_that_is_in_no_table_is_refused(wrong: dict[str, object], bench: Workbench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown (student|quantiser|loss)"):
        run(CANDIDATE.model_copy(update=wrong), bench, tmp_path)


def test_equal_networks_trained_alike_have_one_fingerprint(bench: Workbench) -> None:
    def of(candidate: Candidate) -> str:
        return fingerprint_of(candidate, shape_of(candidate, bench)[1])

    known = of(CANDIDATE)
    tiny_change = GroupPlan(weight_bits=4, prune_ratio=0.49)  # rounds to the same channels
    assert of(CANDIDATE.model_copy(update={"groups": (tiny_change, *GROUPS[1:])})) == known
    forced = GroupPlan(weight_bits=16, execution="float")  # what 16 bits execute in anyway
    assert of(CANDIDATE.model_copy(update={"groups": (GROUPS[0], forced, GROUPS[2])})) == known
    for other in ({"width": 0.5}, {"quantiser": "ptq"}, {"edge_bits": 4}, {"distil": DistilPlan(temperature=2.0)}):
        assert of(CANDIDATE.model_copy(update=other)) != known
    assert of(CANDIDATE.model_copy(update={"rate_weight": 0.5, "sparsity_by": "std"})) == known  # of other quantisers, or of no effect
    rounded = CANDIDATE.model_copy(update={"quantiser": "ptq"})
    assert of(rounded.model_copy(update={"sparsity": 0.5})) == of(rounded)
    for quantiser, gene in (("rate", "rate_weight"), ("codebook", "sparsity"), ("lsq", "sparsity"), ("rate", "sparsity")):
        found = {of(CANDIDATE.model_copy(update={"quantiser": quantiser, gene: value})) for value in (0.2, 0.4)}
        assert len(found) == 2
    by_labels = [DistilPlan(loss="ce", temperature=t, weight=w) for t, w in ((1.0, 0.5), (4.0, 0.9))]
    assert len({of(CANDIDATE.model_copy(update={"distil": plan})) for plan in by_labels}) == 1


def test_a_sparsity_of_zero_leaves_fingerprints_as_they_were_before_there_was_one(bench: Workbench) -> None:
    plan = shape_of(CANDIDATE, bench)[1]
    assert fingerprint_of(CANDIDATE, plan) == fingerprint(plan, CANDIDATE.distil, "lsq")
    by_rate = CANDIDATE.model_copy(update={"quantiser": "rate"})
    assert genes_of(CANDIDATE) == {}
    assert genes_of(by_rate) == {"rate_weight": by_rate.rate_weight}


def test_the_untrained_network_is_the_same_every_time_and_leaves_torch_s_generator_alone(bench: Workbench) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = bench.network("light_cnn", 0.25).state_dict()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], value) for name, value in bench.network("light_cnn", 0.25).state_dict().items())
    assert np.isfinite(sum(float(value.float().sum()) for value in first.values()))
