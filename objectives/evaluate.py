"""The path of a trial: a candidate in, its three measured objectives out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from core.candidate import (
    BuildReport,
    Candidate,
    DistilPlan,
    EngineArtifact,
    LatencyReport,
    Measurement,
    Rung,
    ShapePlan,
    fingerprint,
    milliseconds,
)
from core.checkpoint import forget
from core.compress import CompressedModel, draft, least_size, quantise, recoded, resolve
from core.errors import InfeasibleCandidate
from core.methods import FEATURE_LOSSES, METHODS, method_of
from core.quantise.setting import genes_of, setting_of
from objectives.accuracy import Score, score
from objectives.allocation import at_best, images_of, learn_bits, learns_bits
from objectives.bench import Stages, Workbench
from objectives.budget import UNTRAINED, Gate, Known, Limits
from objectives.first_look import first_look
from objectives.journal import Journal
from objectives.outlook import traits_of
from objectives.rungs import Watch
from objectives.training import distilled, last_finetune, quantises_first, start

ENGINE = "model.engine"
"""In a candidate's folder, in a study that only builds engines: the trained model's, for GPUs that are not here."""


@dataclass(frozen=True)
class Evaluation:
    """What a finished candidate is: its numbers, what really ran, and the folder of its files."""

    measurement: Measurement
    artifact: EngineArtifact
    folder: Path
    candidate: Candidate | None = None
    """With the bits that its training found; None where they were known before."""
    simulation: nn.Module | None = None
    """What the engine was compared with, on the CPU."""


def shape_of(candidate: Candidate, bench: Workbench) -> tuple[nn.Module, ShapePlan]:
    """The pruned but untrained network and its exact plan."""
    dense = bench.network(candidate.student, candidate.width)
    return resolve(dense, candidate, bench.input_shape, bench.engines.runtime)


def fingerprint_of(candidate: Candidate, plan: ShapePlan) -> str:
    """Equal for candidates that resolve to the same network trained in the same way; 16 hex digits."""
    genes = (*_quantiser_genes(candidate), *_channel_genes(candidate), *_bit_genes(candidate))
    return fingerprint(plan, _what_acts(candidate.distil), candidate.quantiser, *genes)


def _quantiser_genes(candidate: Candidate) -> list[dict[str, object]]:
    """What the candidate's quantiser looks at beside bits."""
    genes = genes_of(candidate)
    return [genes] if genes else []


def _channel_genes(candidate: Candidate) -> list[str]:
    """What decides which channels remain, where any go and their weights are inherited, and the order; defaults are not stated."""
    cuts = any(group.prune_ratio for group in candidate.groups) and candidate.distil.init == "inherit"
    by: list[str] = [candidate.importance] if cuts and candidate.importance != "l2" else []
    return [*by, candidate.order] if quantises_first(candidate) else by


def _bit_genes(candidate: Candidate) -> list[dict[str, object]]:
    """What decides the bits that the training finds."""
    plan = candidate.allocation
    return [plan.model_dump(include={"strategy", "choices", "budget_bits", "budget_kb"})] if learns_bits(candidate) else []


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

    `gate` is told size and latency when they are known, and asked before training and at every rung.

    Raises InfeasibleCandidate, TrainingDiverged, EngineBuildError, EngineMismatch or MeasurementError.
    """
    note: Callable[..., None] = gate.note if gate is not None else lambda **facts: None
    final = None
    with stages("engine"):
        drafted, known = _drafted(candidate, pruned, plan, bench, limits, note)
        latency = known.latency
    if gate is not None:
        gate.before_training(known)

    def at_rung(rung: Rung) -> None:
        """With what is known by then."""
        if gate is not None:
            gate.at_rung(known, rung)

    watch, journal = Watch(bench, at_rung), Journal(bench, stages, folder)
    student = start(candidate, pruned, bench, stages, folder, journal)
    if gate is not None and candidate.distil.init == "inherit" and not learns_bits(candidate):
        with stages("prune"):
            looked = first_look(student, plan, bench)
        at_rung(looked)
    distilled(candidate, student, bench, watch, stages, folder, journal)
    finetune = last_finetune(candidate, bench, watch, partial(stages.on_epoch, "quantise"), folder)
    if learns_bits(candidate):
        with stages("quantise"):
            final, plan = learn_bits(candidate, student, bench, finetune)
            drafted = draft(pruned, plan, bench.input_shape, bench.engines.runtime, candidate.quantiser)
            known = _known(final, drafted, least_size(drafted, bench.coding), latency)
            note(size_bytes=known.size_bytes)
            limits.check_size(known.size_bytes, "its bits are learned")
        journal.note("learn bits", student, plan, candidate.quantiser)
    with stages("quantise"):
        setting, calibration = setting_of(candidate, bench.config.quantise), images_of(bench)
        compressed, graph = quantise(student, drafted, candidate.quantiser, finetune, calibration, bench.engines.runtime, setting)
        compressed = recoded(compressed, bench.coding)
        limits.check_size(len(compressed.packed), "trained and coded")
    with stages("accuracy"):
        model = compressed.save(folder)
        scored = _scored(model, compressed, graph, latency, bench, limits, note)
    if isinstance(latency, BuildReport):
        with stages("build"):
            latency = bench.engines.build_report(model, folder / ENGINE)
    measured = _measurement(scored, compressed, latency, bench)
    journal.finish(measured, graph)
    forget(folder)  # until here an interrupted trial goes on from its last epoch
    return Evaluation(measured, _artifact(scored, latency, model), folder, final, graph)


def _drafted(
    candidate: Candidate, pruned: nn.Module, plan: ShapePlan, bench: Workbench, limits: Limits, note: Callable[..., None]
) -> tuple[CompressedModel, Known]:
    """The untrained candidate as a file, and what it tells. Raises InfeasibleCandidate for what is too large or too slow."""
    drafted = draft(pruned, plan, bench.input_shape, bench.engines.runtime, candidate.quantiser)
    least_bytes = least_size(drafted, bench.coding)
    note(size_bytes=least_bytes)
    limits.check_size(least_bytes, UNTRAINED)
    latency = _latency(drafted, bench)
    note(latency_ms=next(iter(milliseconds(latency)), None))
    limits.check_latency(latency, UNTRAINED)
    return drafted, _known(candidate, drafted, least_bytes, latency)


def _known(candidate: Candidate, drafted: CompressedModel, size_bytes: int, latency: LatencyReport | BuildReport) -> Known:
    """What the draft tells."""
    return Known(traits_of(at_best(candidate), drafted.parameters, drafted.macs), size_bytes, latency)


def _scored(
    model: Path,
    compressed: CompressedModel,
    simulation: nn.Module,
    latency: LatencyReport | BuildReport,
    bench: Workbench,
    limits: Limits,
    note: Callable[..., None],
) -> Score:
    """The saved model's score on the search split. Raises InfeasibleCandidate below the limit of accuracy."""
    images = map(bench.teacher.normalise, bench.data.search.chunks())
    scored = score(bench.engines, model, simulation, images, bench.data.search.labels)
    try:
        limits.check_accuracy(scored.accuracy)
    except InfeasibleCandidate:
        note(missed=_measurement(scored, compressed, latency, bench))  # what it reached is learned from
        raise
    return scored


def _artifact(scored: Score, latency: LatencyReport | BuildReport, model: Path) -> EngineArtifact:
    """What runs on the study's device: the engine that was scored, or the one that was built for it."""
    if isinstance(latency, LatencyReport):
        return scored.artifact
    facts = latency.model_dump(include={"runtime", "precision", "int8_layers", "layers"})
    return EngineArtifact(model_path=str(model), **facts)


def _measurement(scored: Score, compressed: CompressedModel, latency: LatencyReport | BuildReport, bench: Workbench) -> Measurement:
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


def _latency(drafted: CompressedModel, bench: Workbench) -> LatencyReport | BuildReport:
    """Latency depends on the structure alone, so it is measured on untrained weights, and once per structure.

    Drafts lie apart: a candidate's own folder never holds untrained weights.
    """
    return bench.engines.latency(drafted.save(bench.engines.scratch / "draft"), key=drafted.structure)
