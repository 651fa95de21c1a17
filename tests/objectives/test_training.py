"""The order of the stages, and the numbers after each."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from core.candidate import AllocationPlan, Candidate, DistilPlan, GroupPlan
from core.config import PtqConfig, TrainConfig
from core.errors import InfeasibleCandidate
from core.layers import count_macs, count_parameters, layer_infos
from core.quantise.ptq import rounded
from core.students import STUDENTS
from core.train import learning_rate
from objectives.allocation import settle
from objectives.bench import Stages, Workbench
from objectives.budget import Limits
from objectives.evaluate import Evaluation, evaluate, fingerprint_of, shape_of
from objectives.journal import Journal
from objectives.training import quantise_dense
from results.stages import append_stages

FIRST = Candidate(student="light_cnn", width=0.25, groups=(GroupPlan(weight_bits=3, prune_ratio=0.5),), round_to=4, edge_bits=4)
SECOND = FIRST.model_copy(update={"order": "quantise, prune"})


def watched(bench: Workbench, folder: Path, candidate: Candidate) -> tuple[Evaluation, Stages]:
    bench, stages = replace(bench, config=bench.config.model_copy(update={"journal": True})), Stages()
    pruned, plan = shape_of(candidate, bench)
    return evaluate(candidate, pruned, plan, bench, Limits(), stages, folder), stages


@pytest.fixture(scope="module")
def both(bench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Evaluation, Stages]]:
    return {each.order: watched(bench, tmp_path_factory.mktemp("order"), each) for each in (FIRST, SECOND)}


@pytest.mark.slow
def test_every_stage_leaves_a_record_in_its_order(both: dict[str, tuple[Evaluation, Stages]]) -> None:
    stages = {order: [record.stage for record in run.records] for order, (_, run) in both.items()}
    assert stages["prune, quantise"] == ["parent", "prune", "distil", "quantise"]
    assert stages["quantise, prune"] == ["parent", "quantise dense", "prune", "quantise"]


def test_both_ways_begin_with_one_parent_and_end_with_the_same_shapes(both: dict[str, tuple[Evaluation, Stages]]) -> None:
    first, second = (stages.records for _, stages in both.values())
    shared, again = (record.model_dump(exclude={"seconds", "latency_ms"}) for record in (first[0], second[0]))
    assert again.pop("stage") == shared.pop("stage")
    assert again == pytest.approx(shared, rel=1e-4)
    for key in ("parameters", "macs", "size_bytes"):
        assert getattr(first[-1], key) == getattr(second[-1], key)


def test_pruning_is_counted_when_it_happens_and_quantisation_when_it_does(both: dict[str, tuple[Evaluation, Stages]]) -> None:
    rows = {order: {record.stage: record for record in stages.records} for order, (_, stages) in both.items()}
    for found in rows.values():
        assert found["prune"].macs == found["quantise"].macs < found["parent"].macs
        assert found["prune"].parameters == found["quantise"].parameters < found["parent"].parameters
    dense = rows["quantise, prune"]["quantise dense"]
    assert dense.macs == rows["quantise, prune"]["parent"].macs
    assert rows["quantise, prune"]["quantise"].size_bytes < dense.size_bytes < 0.5 * rows["quantise, prune"]["parent"].size_bytes


@pytest.mark.parametrize("quantiser", ["lsq", "codebook"])
@pytest.mark.slow
def test_a_dense_network_that_is_not_pruned_later_has_the_bytes_of_the_file(quantiser: str, bench: Workbench, tmp_path: Path) -> None:
    quick = TrainConfig(epochs=0.5, batch_size=16)
    short = bench.config.model_copy(
        update={"finetune": quick, "quantise": bench.config.quantise.model_copy(update={"train": quick}), "journal": True}
    )
    whole = SECOND.model_copy(update={"groups": (GroupPlan(weight_bits=3),), "quantiser": quantiser})
    _, stages = watched(replace(bench, config=short), tmp_path, whole)
    sizes = {record.stage: record.size_bytes for record in stages.records}
    assert sizes["quantise dense"] == sizes["quantise"] == (tmp_path / "weights.pack").stat().st_size


@pytest.mark.slow
def test_a_training_that_finds_bits_is_a_stage_of_its_own(bench: Workbench, tmp_path: Path) -> None:
    quick = TrainConfig(epochs=0.5, batch_size=16)
    quantise = bench.config.quantise.model_copy(update={"train": quick})
    short = replace(bench, config=bench.config.model_copy(update={"finetune": quick, "quantise": quantise}))
    plan = AllocationPlan(strategy="sdq", choices=(2, 4, 8), budget_bits=4.0)
    candidate = settle(FIRST.model_copy(update={"groups": (GroupPlan(prune_ratio=0.5),), "allocation": plan}), short, Stages())
    _, stages = watched(short, tmp_path, candidate)
    assert [record.stage for record in stages.records] == ["parent", "prune", "distil", "learn bits", "quantise"]
    learned, last = stages.records[-2:]
    assert learned.size_bytes == last.size_bytes == (tmp_path / "weights.pack").stat().st_size
    assert 0 < learned.seconds < stages.seconds["quantise"]


def test_the_last_record_is_the_measurement_and_the_seconds_are_those_of_the_stages(both: dict[str, tuple[Evaluation, Stages]]) -> None:
    for done, stages in both.values():
        last, measured = stages.records[-1], done.measurement
        assert (last.accuracy, last.size_bytes, last.latency_ms) == (measured.accuracy, measured.size_bytes, measured.latency.p50_ms)  # type: ignore[union-attr]
        own = sum(seconds for stage, seconds in stages.seconds.items() if stage != "journal")
        assert sum(record.seconds for record in stages.records) == pytest.approx(own, abs=0.01)
        assert stages.seconds["journal"] > 0
        assert json.loads((done.folder / "stages.json").read_text()) == [record.model_dump(mode="json") for record in stages.records]
        assert measured.accuracy > 0.6
        assert all(record.loss > 0 for record in stages.records)


def test_the_order_makes_another_network(bench: Workbench, both: dict[str, tuple[Evaluation, Stages]]) -> None:
    assert len({fingerprint_of(each, shape_of(each, bench)[1]) for each in (FIRST, SECOND)}) == 2
    files = [(done.folder / "weights.pack").read_bytes() for done, _ in both.values()]
    assert files[0] != files[1]


def test_a_trial_that_a_limit_ends_keeps_its_records(bench: Workbench, tmp_path: Path) -> None:
    quick, stages = replace(bench, config=bench.config.model_copy(update={"finetune": TrainConfig(epochs=0.0), "journal": True})), Stages()
    candidate = FIRST.model_copy(update={"quantiser": "ptq", "distil": DistilPlan(init="scratch")})
    pruned, plan = shape_of(candidate, quick)
    with pytest.raises(InfeasibleCandidate, match="accuracy"):
        evaluate(candidate, pruned, plan, quick, Limits(accuracy=1.0), stages, tmp_path)
    assert [record.stage for record in stages.records] == ["prune", "distil"]
    assert json.loads((tmp_path / "stages.json").read_text()) == [record.model_dump(mode="json") for record in stages.records]


def test_without_a_journal_nothing_is_looked_at(bench: Workbench, tmp_path: Path) -> None:
    quick = replace(bench, config=bench.config.model_copy(update={"finetune": TrainConfig(epochs=0.0)}))
    candidate = FIRST.model_copy(update={"quantiser": "ptq"})
    pruned, plan = shape_of(candidate, quick)
    stages = Stages()
    evaluate(candidate, pruned, plan, quick, Limits(), stages, tmp_path)
    assert stages.records == []
    assert not (tmp_path / "stages.json").exists()


def test_a_dense_network_that_was_quantised_has_few_values_per_channel(bench: Workbench, tmp_path: Path) -> None:
    told: list[tuple[str | float, ...]] = []
    stages, recipe = Stages(on_epoch=lambda *numbers: told.append(numbers)), bench.config.quantise.train
    parent = bench.parent(SECOND.student, SECOND.width)
    counts = count_parameters(parent), count_macs(parent, bench.input_shape)
    quantise_dense(parent, SECOND, bench, stages, tmp_path, Journal(bench, stages, tmp_path))
    for name, module in parent.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            levels = max(len(channel.unique()) for channel in module.weight.detach())
            assert levels <= 16, name  # 3 bits, 4 at both ends
    assert (count_parameters(parent), count_macs(parent, bench.input_shape)) == counts
    assert parent.state_dict().keys() == bench.parent(SECOND.student, SECOND.width).state_dict().keys()
    steps = math.ceil(len(bench.train_set) / recipe.batch_size)
    assert [(name, done, rate) for name, done, *_, rate in told] == [
        ("quantise dense", done, learning_rate(recipe, steps, done)) for done in (1.0, 2.0, 3.0, 4.0)
    ]


def test_of_dense_layers_that_share_their_weight_the_finest_grid_stays(bench: Workbench, tmp_path: Path) -> None:
    quick = bench.config.quantise.model_copy(update={"train": TrainConfig(epochs=0.0)})
    short = replace(bench, config=bench.config.model_copy(update={"quantise": quick}))
    parent = bench.network("resnet8", 0.25)
    infos = layer_infos(parent, bench.input_shape)
    pairs = [(a, b) for a, b in pairwise(infos) if (a.in_channels, a.out_channels, a.kernel) == (b.in_channels, b.out_channels, b.kernel)]
    first, second = (parent.get_submodule(info.name) for info in pairs[0])
    second.weight = first.weight
    weight = first.weight.detach().clone()
    groups = tuple(GroupPlan(weight_bits=2 if info is pairs[0][1] else 4, execution="float") for info in infos)
    candidate = Candidate(student="resnet8", width=0.25, groups=groups, order="quantise, prune")
    quantise_dense(parent, candidate, short, Stages(), tmp_path, Journal(short, Stages(), tmp_path))
    assert first.weight is second.weight
    torch.testing.assert_close(first.weight, rounded(weight, 4, PtqConfig()).dequantised())


def normed(classes: int, channels: int = 3, **more: object) -> nn.Module:
    first, second = weight_norm(nn.Conv2d(channels, 8, 3, padding=1)), weight_norm(nn.Conv2d(8, 8, 3, padding=1))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes))


def test_a_network_with_weight_norm_goes_both_ways(bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STUDENTS, "normed", normed)
    quick = TrainConfig(epochs=0.5, batch_size=32)
    quantise = bench.config.quantise.model_copy(update={"train": quick})
    parent = bench.config.parent.model_copy(update={"train": quick})
    changes = {"finetune": quick, "quantise": quantise, "parent": parent}
    short = replace(bench, config=bench.config.model_copy(update=changes), folder=tmp_path)
    sizes = set()
    for each in (FIRST, SECOND):
        candidate = each.model_copy(update={"student": "normed", "width": 1.0, "groups": (GroupPlan(weight_bits=3),)})
        pruned, plan = shape_of(candidate, short)
        done = evaluate(candidate, pruned, plan, short, Limits(), Stages(), tmp_path / each.order.replace(", ", "-"))
        sizes.add(done.measurement.size_bytes)
    assert len(sizes) == 1


def test_the_summary_has_a_line_for_each_stage_of_each_trial(tmp_path: Path, both: dict[str, tuple[Evaluation, Stages]]) -> None:
    path = tmp_path / "stages.csv"
    append_stages(path, 0, ())
    assert not path.exists()
    for trial, (_, stages) in enumerate(both.values()):
        append_stages(path, trial, stages.records)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["trial"], row["stage"]) for row in rows][3:5] == [("0", "quantise"), ("1", "parent")]
    assert float(rows[-1]["accuracy"]) == pytest.approx(list(both.values())[1][0].measurement.accuracy)
