"""Candidates whose bits or ratios are open, from settling to a measured engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.candidate import AllocationPlan, Candidate, GroupPlan
from core.config import TrainConfig
from core.errors import InfeasibleCandidate
from objectives.allocation import is_open, settle, settle_roughly
from objectives.bench import Stages, Workbench
from objectives.budget import Limits
from objectives.evaluate import Evaluation, evaluate, fingerprint_of, shape_of

CHOICES = (2, 3, 4, 6, 8)
OPEN = Candidate(student="light_cnn", width=0.25, groups=(GroupPlan(prune_ratio=0.25), GroupPlan()), round_to=4)


def asked(strategy: str, **more: object) -> Candidate:
    plan = AllocationPlan(strategy=strategy, choices=CHOICES, **({"budget_bits": 3.5} | more))  # type: ignore[arg-type]
    return OPEN.model_copy(update={"allocation": plan})


def run(candidate: Candidate, bench: Workbench, folder: Path, stages: Stages | None = None) -> Evaluation:
    candidate = settle(candidate, bench, stages or Stages())
    pruned, plan = shape_of(candidate, bench)
    return evaluate(candidate, pruned, plan, bench, Limits(), stages or Stages(), folder)


def still(bench: Workbench) -> Workbench:
    """The same, and candidates are not trained."""
    return replace(bench, config=bench.config.model_copy(update={"finetune": TrainConfig(epochs=0.0)}))


@pytest.mark.parametrize("strategy", ["haq", "sqnr", "sensitivity"])
def test_size_and_bits_are_known_before_the_candidate_trains(strategy: str, bench: Workbench, tmp_path: Path) -> None:
    candidate = settle(asked(strategy, actions=(1.0, 1.0) if strategy == "haq" else ()), bench, Stages())
    assert not is_open(candidate)
    quick = candidate.model_copy(update={"quantiser": "ptq"})
    pruned, plan = shape_of(quick, bench)
    done = evaluate(quick, pruned, plan, still(bench), Limits(), Stages(), tmp_path)
    assert done.candidate is None
    most = {"int8": bench.engines.runtime.int8_bits, "float": 16}
    expected = [min(gene.weight_bits, most[layer.execution]) for gene, layer in zip(candidate.groups, plan.layers, strict=True)]
    assert [layer.weight_bits for layer in plan.layers] == expected
    assert done.measurement.mean_bits == plan.mean_bits


def test_what_looks_at_weights_takes_the_parent_s_and_the_losses_are_kept(bench: Workbench) -> None:
    stages = Stages()
    first = settle(asked("sensitivity"), bench, stages)
    assert list(stages.seconds) == ["parent", "allocate"]
    kept = list((bench.folder / "sensitivity").glob("light_cnn-0.25-*.json"))
    assert len(kept) == 1
    written = kept[0].stat().st_mtime_ns
    assert settle(asked("sensitivity"), bench, Stages()) == first
    assert kept[0].stat().st_mtime_ns == written
    assert list((bench.folder / "sensitivity").glob("*.json")) == kept
    stages = Stages()
    settle(asked("haq", actions=(0.5,)), bench, stages)
    assert list(stages.seconds) == ["allocate"]


def test_two_ways_to_the_same_bits_are_one_network(bench: Workbench) -> None:
    found = settle(asked("haq", actions=(0.5, 0.5)), bench, Stages())
    by_hand = found.model_copy(update={"allocation": AllocationPlan()})
    assert fingerprint_of(found, shape_of(found, bench)[1]) == fingerprint_of(by_hand, shape_of(by_hand, bench)[1])


@pytest.mark.slow
def test_learned_bits_keep_their_budget_and_are_in_the_result(bench: Workbench, tmp_path: Path) -> None:
    candidate = settle(asked("sdq"), bench, Stages())
    assert is_open(candidate)
    assert {gene.weight_bits for gene in candidate.groups[1:-1]} == {min(CHOICES)}  # a lower limit of the size
    done = run(candidate, bench, tmp_path)
    assert done.candidate is not None
    assert done.candidate.allocation.settled
    assert done.measurement.accuracy > 0.7
    uniform = OPEN.model_copy(
        update={"groups": tuple(gene.model_copy(update={"weight_bits": 4}) for gene in OPEN.groups), "quantiser": "ptq"}
    )
    largest = run(uniform, still(bench), tmp_path / "uniform").measurement.size_bytes
    assert done.measurement.size_bytes <= largest
    again = shape_of(done.candidate, bench)[1]  # as an export or a refinement shapes it anew
    assert again.mean_bits == done.measurement.mean_bits


def test_different_budgets_of_learned_bits_are_different_networks(bench: Workbench) -> None:
    candidates = [settle(asked("sdq", budget_bits=bits), bench, Stages()) for bits in (3.0, 4.0)]
    assert len({fingerprint_of(each, shape_of(each, bench)[1]) for each in candidates}) == 2


def test_an_unreachable_budget_ends_before_any_training_of_the_candidate(bench: Workbench) -> None:
    with pytest.raises(InfeasibleCandidate, match=r"budget_kb 0\.2"):
        settle(asked("haq", budget_bits=None, budget_kb=0.2, actions=(1.0,)), bench, Stages())


@pytest.mark.parametrize("importance", ["l1", "bn_scale", "taylor"])
@pytest.mark.slow
def test_a_globally_pruned_candidate_has_a_ratio_for_each_layer_and_exact_shapes(
    importance: str,
    bench: Workbench,
    tmp_path: Path,
) -> None:
    open_ratio = OPEN.model_copy(update={"groups": (GroupPlan(prune_ratio=0.4),), "prune_scope": "global", "importance": importance})
    found = settle(open_ratio.model_copy(update={"quantiser": "ptq"}), bench, Stages())
    assert not is_open(found)
    assert len({gene.prune_ratio for gene in found.groups}) > 2
    done = run(found, still(bench), tmp_path)  # `evaluate` compares the shapes of parent and draft
    dense = run(OPEN.model_copy(update={"groups": (GroupPlan(),), "quantiser": "ptq"}), still(bench), tmp_path / "dense").measurement
    assert done.measurement.parameters < dense.parameters
    assert done.measurement.macs < dense.macs


def test_the_criterion_counts_where_something_is_pruned_and_inherited(bench: Workbench) -> None:
    def of(candidate: Candidate) -> str:
        return fingerprint_of(candidate, shape_of(candidate, bench)[1])

    by_taylor = OPEN.model_copy(update={"importance": "taylor"})
    assert of(by_taylor) != of(OPEN)
    whole = [each.model_copy(update={"groups": (GroupPlan(),)}) for each in (OPEN, by_taylor)]
    scratch = [each.model_copy(update={"distil": each.distil.model_copy(update={"init": "scratch"})}) for each in (OPEN, by_taylor)]
    assert of(whole[0]) == of(whole[1])
    assert of(scratch[0]) == of(scratch[1])


@pytest.mark.parametrize("strategy", ["haq", "sqnr", "sensitivity", "sdq"])
def test_a_dry_run_foresees_the_size_without_a_parent(strategy: str, bench: Workbench) -> None:
    dense = bench.network("resnet8", 0.5)
    candidate = asked(strategy, actions=(1.0,) if strategy == "haq" else ()).model_copy(update={"student": "resnet8", "width": 0.5})
    rough = settle_roughly(candidate, dense, bench.input_shape, bench.engines.runtime)
    assert len(rough.groups) == 10
    assert not (bench.folder / "parents").exists() or not list((bench.folder / "parents").glob("resnet8*"))
