"""A trial that trains through quantised activations, from the configuration to the engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.candidate import Candidate, DistilPlan, GroupPlan
from objectives.bench import Stages, Workbench
from objectives.budget import Limits
from objectives.evaluate import evaluate, shape_of


@pytest.mark.parametrize("loss", ["kd", "sdd"])
def test_a_candidate_learns_through_its_activations_with_every_kind_of_loss(loss: str, bench: Workbench, tmp_path: Path) -> None:
    quantise = bench.config.quantise.model_copy(update={"simulate_activations": True})
    simulating = replace(bench, config=bench.config.model_copy(update={"quantise": quantise}), folder=bench.folder)
    candidate = Candidate(
        student="light_cnn",
        width=0.25,
        groups=(GroupPlan(weight_bits=4, prune_ratio=0.5), GroupPlan(weight_bits=3), GroupPlan(weight_bits=8, execution="float")),
        round_to=4,
        distil=DistilPlan(loss=loss, grid=2),
    )
    pruned, plan = shape_of(candidate, simulating)
    done = evaluate(candidate, pruned, plan, simulating, Limits(), Stages(), tmp_path)
    assert done.measurement.agreement >= 0.95
    assert done.measurement.accuracy > 0.8
