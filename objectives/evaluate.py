"""The path of a trial: a candidate in, its three measured objectives out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from core.candidate import Candidate, EngineArtifact, LatencyReport, Measurement, ShapePlan, fingerprint
from core.compress import CompressedModel, draft, prune, quantise, resolve
from core.distil import distil
from core.losses import REGION_LOSSES
from objectives.accuracy import score
from objectives.bench import Stages, Workbench
from objectives.budget import Limits


@dataclass(frozen=True)
class Evaluation:
    """What a finished candidate is: its numbers, what really ran, and the folder of its files."""

    measurement: Measurement
    artifact: EngineArtifact
    folder: Path


def shape_of(candidate: Candidate, bench: Workbench) -> tuple[nn.Module, ShapePlan]:
    """The pruned but untrained network and its exact plan."""
    dense = bench.network(candidate.student, candidate.width)
    return resolve(dense, candidate, bench.input_shape, bench.engines.runtime)


def fingerprint_of(candidate: Candidate, plan: ShapePlan) -> str:
    """Equal for candidates that resolve to the same network trained in the same way; 16 hex digits."""
    method = candidate.distil
    if method.loss == "ce":
        method = method.model_copy(update={"temperature": 1.0, "weight": 0.0, "ce_weight": 1.0})
    if method.loss not in REGION_LOSSES:
        method = method.model_copy(update={"grid": 1})
    return fingerprint(plan, method, candidate.quantiser)


def evaluate(
    candidate: Candidate, pruned: nn.Module, plan: ShapePlan, bench: Workbench, limits: Limits, stages: Stages, folder: Path
) -> Evaluation:
    """Measure size and latency first, then train, compress and score the engine. `folder` gets the candidate's files.

    Raises InfeasibleCandidate, TrainingDiverged, EngineBuildError, EngineMismatch or MeasurementError.
    """
    with stages("engine"):
        drafted = draft(pruned, plan, bench.input_shape, bench.engines.runtime)
        limits.check_size(len(drafted.packed))
        latency = _latency(drafted, bench)
        limits.check_latency(latency)
    student = _start(candidate, pruned, bench, stages)
    with stages("distil") as on_epoch:
        distil(
            student,
            candidate.distil,
            bench.train_set,
            bench.logits,
            bench.config.finetune,
            bench.device,
            seed=_seed(bench, 2),
            on_epoch=on_epoch,
        )
    with stages("quantise") as on_epoch:
        compressed, graph = quantise(
            student, drafted, candidate.quantiser, _finetune(candidate, bench, on_epoch), _calibration(bench), bench.engines.runtime
        )
        limits.check_size(len(compressed.packed))
    with stages("accuracy"):
        model = compressed.save(folder)
        images = bench.teacher.normalise(bench.data.search.images)
        scored = score(bench.engines, model, graph, images, bench.data.search.labels)
        limits.check_accuracy(scored.accuracy)
    measurement = Measurement(
        accuracy=scored.accuracy,
        images=scored.images,
        size_bytes=len(compressed.packed),
        latency=latency,
        agreement=scored.agreement,
        parameters=compressed.parameters,
        macs=compressed.macs,
        mean_bits=plan.mean_bits,
    )
    return Evaluation(measurement, scored.artifact, folder)


def _latency(drafted: CompressedModel, bench: Workbench) -> LatencyReport:
    """Latency depends on the structure alone, so it is measured on untrained weights, and once per structure.

    Drafts lie apart: a candidate's own folder never holds untrained weights.
    """
    return bench.engines.latency(drafted.save(bench.folder / "drafts" / str(os.getpid())), key=drafted.structure)


def _start(candidate: Candidate, pruned: nn.Module, bench: Workbench, stages: Stages) -> nn.Module:
    """The pruned network with the parent's best channels, or as initialised with `init: scratch`."""
    if candidate.distil.init == "scratch":
        return pruned
    with stages("parent") as on_epoch:
        parent = bench.parent(candidate.student, candidate.width, on_epoch)
    with stages("prune"):
        student = prune(parent, candidate, bench.input_shape)
    shapes = [tuple(value.shape) for value in student.state_dict().values()]
    assert shapes == [tuple(value.shape) for value in pruned.state_dict().values()], "shapes must not depend on the weights"
    return student


def _finetune(candidate: Candidate, bench: Workbench, on_epoch: Callable[..., None]) -> Callable[[nn.Module], nn.Module]:
    """Training with quantised weights: the same loss, its own recipe."""

    def finetune(model: nn.Module) -> nn.Module:
        recipe = bench.config.quantise.train
        distil(model, candidate.distil, bench.train_set, bench.logits, recipe, bench.device, seed=_seed(bench, 3), on_epoch=on_epoch)
        return model.cpu()

    return finetune


def _calibration(bench: Workbench) -> Tensor:
    """Normalised training images without augmentation, evenly spread: float32 (N, C, H, W) on the CPU."""
    count = min(bench.config.quantise.calibration_images, len(bench.train_set))
    indices = torch.linspace(0, len(bench.train_set) - 1, count).long()
    return bench.train_set.plain(indices.to(bench.train_set.labels.device)).cpu()


def _seed(bench: Workbench, stage: int) -> int:
    return bench.config.seed * 100 + stage
