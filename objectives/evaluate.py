"""The path of a trial: a candidate in, its three measured objectives out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path

from torch import Tensor, nn

from core.candidate import Candidate, DistilPlan, EngineArtifact, LatencyReport, Measurement, ShapePlan, fingerprint
from core.checkpoint import SUFFIX, forget
from core.compress import CompressedModel, calibration_indices, draft, least_size, prune, quantise, recoded, resolve
from core.distil import distil
from core.methods import FEATURE_LOSSES, METHODS, method_of
from core.quantise.setting import GENES, Finetune, Penalty, setting_of
from objectives.accuracy import Score, score
from objectives.bench import Stages, Workbench
from objectives.budget import Gate, Known, Limits
from objectives.outlook import traits_of
from objectives.rungs import Watch


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
    return fingerprint(plan, _what_acts(candidate.distil), candidate.quantiser, *_quantiser_genes(candidate))


def _quantiser_genes(candidate: Candidate) -> list[dict[str, object]]:
    """What the candidate's quantiser looks at beside bits."""
    genes = GENES.get(candidate.quantiser)
    return [candidate.model_dump(include=genes)] if genes else []


def _what_acts(plan: DistilPlan) -> DistilPlan:
    """The plan with everything that its loss does not look at as it stands by default."""
    facts, plain = method_of(plan.loss), DistilPlan(loss=plan.loss)
    idle = {
        ("temperature", "weight", "ce_weight"): plan.loss == "ce",
        ("temperature",): plan.loss in FEATURE_LOSSES,
        ("grid", "complementary_weight"): plan.loss in METHODS and not facts.regions,
        ("alpha", "beta"): plan.loss in METHODS and not facts.decoupled,
    }
    return plan.model_copy(update={key: getattr(plain, key) for keys, unused in idle.items() if unused for key in keys})


def evaluate(
    candidate: Candidate,
    pruned: nn.Module,
    plan: ShapePlan,
    bench: Workbench,
    limits: Limits,
    stages: Stages,
    folder: Path,
    gate: Gate | None = None,
) -> Evaluation:
    """Measure size and latency first, then train, compress and score the engine. `folder` gets the candidate's files.

    `gate` is asked before training and at every rung.

    Raises InfeasibleCandidate, TrainingDiverged, EngineBuildError, EngineMismatch or MeasurementError.
    """
    with stages("engine"):
        drafted = draft(pruned, plan, bench.input_shape, bench.engines.runtime, candidate.quantiser)
        least_bytes = least_size(drafted, bench.coding)
        limits.check_size(least_bytes)
        latency = _latency(drafted, bench)
        limits.check_latency(latency)
    known = Known(traits_of(candidate, drafted.parameters, drafted.macs), least_bytes, latency)
    if gate is not None:
        gate.before_training(known)
    watch = Watch(bench) if gate is None else Watch(bench, partial(gate.at_rung, known))
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
            on_epoch=watch(student, "distil", bench.config.finetune, on_epoch),
            checkpoint=folder / f"distil{SUFFIX}",
        )
    with stages("quantise") as on_epoch:
        finetune, calibration = _finetune(candidate, bench, watch, on_epoch, folder), _calibration(bench)
        setting = setting_of(candidate, bench.config.quantise)
        compressed, graph = quantise(student, drafted, candidate.quantiser, finetune, calibration, bench.engines.runtime, setting)
        compressed = recoded(compressed, bench.coding)
        limits.check_size(len(compressed.packed))
    with stages("accuracy"):
        model = compressed.save(folder)
        forget(folder)
        images = map(bench.teacher.normalise, bench.data.search.chunks())
        scored = score(bench.engines, model, graph, images, bench.data.search.labels)
        limits.check_accuracy(scored.accuracy)
    return Evaluation(_measurement(scored, compressed, latency, bench), scored.artifact, folder)


def _measurement(scored: Score, compressed: CompressedModel, latency: LatencyReport, bench: Workbench) -> Measurement:
    return Measurement(
        accuracy=scored.accuracy,
        judged_by="labels" if bench.data.info.labelled else "teacher",
        images=scored.images,
        size_bytes=len(compressed.packed),
        latency=latency,
        agreement=scored.agreement,
        parameters=compressed.parameters,
        macs=compressed.macs,
        mean_bits=compressed.plan.mean_bits,
    )


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


def _finetune(candidate: Candidate, bench: Workbench, watch: Watch, on_epoch: Callable[..., None], folder: Path) -> Finetune:
    """Training with quantised weights: the same loss, its own recipe. A quantiser may ask for several, one after the other."""
    stages = chain(["quantise"], (f"quantise {n}" for n in count(2)))

    def finetune(model: nn.Module, penalty: Penalty | None = None) -> nn.Module:
        recipe, stage = bench.config.quantise.train, next(stages)
        watched, kept = watch(model, stage, recipe, on_epoch), folder / f"{stage}{SUFFIX}"
        data, answers, device, seed = bench.train_set, bench.logits, bench.device, _seed(bench, 3)
        distil(model, candidate.distil, data, answers, recipe, device, seed=seed, on_epoch=watched, penalty=penalty, checkpoint=kept)
        return model.cpu()

    return finetune


def _calibration(bench: Workbench) -> Tensor:
    """Normalised training images without augmentation, evenly spread: float32 (N, C, H, W) on the CPU."""
    indices = calibration_indices(len(bench.train_set), bench.config.quantise.calibration_images)
    return bench.train_set.plain(indices.to(bench.train_set.labels.device)).cpu()


def _seed(bench: Workbench, stage: int) -> int:
    return bench.config.seed * 100 + stage
