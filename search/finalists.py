"""The points that a refinement trains and times, and what statistics say of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
from pydantic import ValidationError

from core.bundle import Preprocessing
from core.candidate import DENSE, LatencyReport, Measurement, milliseconds
from core.config import Config
from core.engines import EngineHost
from core.errors import TrialError, UserError
from core.files import write_atomically
from core.quantise import MODEL_QUANTISERS, QUANTISERS
from core.runtimes import building_runtime
from core.tables import lookup
from core.yaml_io import parse
from objectives.bench import Stages, Workbench
from objectives.budget import Limits
from objectives.evaluate import evaluate, shape_of
from results.front import front
from results.record import CANDIDATE_FILES, TeacherReport, TrialRecord, candidate_file, file_digests
from results.refined import Finalist, Refinement, accuracy_ties, latency_ties
from search.elsewhere import suited
from search.export_best import run_facts
from search.final_score import answers, heldout_accuracy, wilson
from search.progress import Progress
from search.session import measure_teacher, open_bench
from search.space import Space
from search.study import CONTENT_KEY

MEASURED = "measurement.json"


@dataclass(frozen=True)
class Plan:
    """What to do with each point; None: as in the search."""

    epochs: float | None
    seeds: int
    rounds: int
    quantiser: str | None
    command: tuple[str, ...]


def by_quantiser(point: TrialRecord, name: str | None) -> TrialRecord:
    """The point with its weights rounded by the quantiser `name`, at the same bits; None: by its own.

    Raises UserError for an unknown name, and where that quantiser cannot do what the point asks for.
    """
    candidate = point.candidate
    assert candidate is not None
    if name is None:
        return point
    lookup(QUANTISERS | MODEL_QUANTISERS, "quantiser", name)
    dense, trained = candidate.sparsity > 0, candidate.order == "quantise, prune"
    if name in DENSE and (dense or trained):
        why = "keeps weights at zero" if dense else "is quantised before it is pruned"
        raise UserError(f"a quantiser must do what the point asks for, but trial {point.number} {why} and {name} does not; leave it out")
    return point.model_copy(update={"candidate": candidate.model_copy(update={"quantiser": name})})


def retime(points: Sequence[TrialRecord], folder: Path, plan: Plan, config: Config) -> Refinement:
    """The stored models of `points` timed on this machine, in turn; accuracies stay. UserError when the runtime is another one."""
    with EngineHost(_timed_here(config).runtime, folder) as engines:
        for point in points:
            assert point.measurement is not None
            if point.measurement.latency.runtime != engines.runtime.name:
                known = point.measurement.latency.runtime
                raise UserError(
                    f"stored models run in {known}, but runtime.name is {engines.runtime.name} here; refine with --runtime instead"
                )
        models = [_model(folder, point) for point in points]
        rounds = timed_in_turn(engines, models, plan.rounds)
        teacher = _teacher(folder, engines)
        records = [_with(point, latency=combined(reports)) for point, reports in zip(points, rounds, strict=True)]
        return _judged(plan, engines, teacher, points, range(len(points)), records, rounds, [{} for _ in points], [], {})


def retrain(
    study: optuna.Study, points: Sequence[TrialRecord], folder: Path, cache: Path, plan: Plan, config: Config, runtime: str | None
) -> Refinement:
    """Train every point with every seed (finished ones are kept), keep the best of each, time all in turn, score on the test split.

    A seed that diverges, or whose engine is refused, is left out, and a point without any; UserError where no point is left.
    """
    elsewhere = runtime is not None or bool(config.runtime.build_for)
    config = _timed_here(config, runtime)
    if plan.epochs is not None:
        config = config.model_copy(update={"finetune": config.finetune.model_copy(update={"epochs": plan.epochs})})
    space = parse(Space, dict(study.user_attrs[CONTENT_KEY]["space"]), f"the study {study.study_name!r}")
    with (
        Progress(len(points) * plan.seeds, epochs_csv=folder / "refined" / "epochs.csv") as progress,
        EngineHost(config.runtime, folder) as host,
    ):
        bench = open_bench(space, config, host, folder, cache, progress, study, elsewhere=elsewhere)
        tried = [_best_seed(point, bench, plan, progress) for point in points]
        ranks, trained = [rank for rank, found in enumerate(tried) if found], [found for found in tried if found]
        if not trained:
            raise UserError(
                "a refinement must train a point with a seed at least, but none could be trained; see what is said of each above"
            )
        rounds = timed_in_turn(host, [_model(folder, record) for record, _ in trained], plan.rounds)
        records = [_with(record, latency=combined(reports)) for (record, _), reports in zip(trained, rounds, strict=True)]
        inputs = _preprocessing(bench)
        right = [_right(bench, _model(folder, record), inputs) for record in records]
        variants = [Path(str(record.path)).name.removeprefix(str(record.fingerprint)) for record in records]
        tests = {
            record.number: heldout_accuracy(study, record, config, inputs, host, _model(folder, record), variant)
            for record, variant in zip(records, variants, strict=True)
        }
        teacher = measure_teacher(bench)
        points = [points[rank] for rank in ranks]
        return _judged(plan, host, teacher, points, ranks, records, rounds, [seeds for _, seeds in trained], right, tests)


def _timed_here(config: Config, runtime: str | None = None) -> Config:
    """With the runtime asked for, and with engines that run: finalists are timed also where the search only built engines."""
    own = config.runtime
    name = runtime or (building_runtime(own.name, own.build_for).name if own.build_for else own.name)
    return config.model_copy(update={"runtime": suited(own, name)})


def timed_in_turn(engines: EngineHost, models: Sequence[Path], rounds: int) -> list[list[LatencyReport]]:
    """`rounds` reports per model. In turn, so that whatever changes with time meets every model alike."""
    reports: list[list[LatencyReport]] = [[] for _ in models]
    for _ in range(rounds):
        for model, mine in zip(models, reports, strict=True):
            mine.append(engines.time_model(model)[0])
    return reports


def combined(reports: Sequence[LatencyReport]) -> LatencyReport:
    """The round in the middle by its median, with an interval that spans those of all rounds."""
    ordered = sorted(reports, key=lambda report: report.p50_ms)
    lows, highs = zip(*(report.ci_ms for report in reports), strict=True)
    changed = {"ci_ms": (min(lows), max(highs)), "samples": sum(report.samples for report in reports)}
    return ordered[len(ordered) // 2].model_copy(update=changed | {"stable": all(report.stable for report in reports)})


def _best_seed(point: TrialRecord, bench: Workbench, plan: Plan, progress: Progress) -> tuple[TrialRecord, dict[int, float]] | None:
    """The record of the seed that is best on the search split, and every seed's accuracy there; None where every seed failed."""
    seeds = range(bench.config.seed, bench.config.seed + plan.seeds)
    trained = {}
    for seed in seeds:
        try:
            trained[seed] = _train(point, replace(bench, config=bench.config.model_copy(update={"seed": seed})), plan, progress)
        except TrialError as error:
            progress.message(f"trial {point.number} with seed {seed} is left out, {type(error).__name__}: {error}")
        progress.done += 1
    if not trained:
        progress.message(f"trial {point.number} is left out of the refinement: no seed could be trained")
        return None
    accuracies = {seed: measurement.accuracy for seed, measurement in trained.items()}
    best = max(accuracies, key=lambda seed: (accuracies[seed], -seed))
    place = _place(point, bench, best, plan)
    files = {"path": str(place.relative_to(bench.folder)), "files": file_digests(place)}
    record = point.model_copy(update={**files, "measurement": trained[best]})
    return record, accuracies


def _train(point: TrialRecord, bench: Workbench, plan: Plan, progress: Progress) -> Measurement:
    """One candidate trained with one seed; kept where an earlier refinement has finished it."""
    assert point.candidate is not None
    place = _place(point, bench, bench.config.seed, plan)
    if (kept := finished(place)) is not None:
        return kept
    stages = Stages(lambda name: progress.stage(point.number, name), lambda name, *numbers: progress.epoch(point.number, name, *numbers))
    pruned, shapes = shape_of(point.candidate, bench)
    measurement = evaluate(point.candidate, pruned, shapes, bench, Limits(), stages, place).measurement
    write_atomically(place / MEASURED, measurement.model_dump_json(indent=1) + "\n")
    return measurement


def finished(place: Path) -> Measurement | None:
    """What an earlier refinement measured of the model in `place`; None where it, or the model, is not there or not whole."""
    if not all((place / name).is_file() for name in (MEASURED, *CANDIDATE_FILES)):
        return None
    try:
        return Measurement.model_validate_json((place / MEASURED).read_bytes())
    except ValidationError:
        return None


def _place(point: TrialRecord, bench: Workbench, seed: int, plan: Plan) -> Path:
    """One folder per point, quantiser, runtime, budget and seed."""
    rounded = "" if plan.quantiser is None else f"-{plan.quantiser}"
    how = f"{bench.engines.runtime.name}-e{bench.config.finetune.epochs:g}-s{seed}{rounded}"
    return bench.folder / "refined" / f"{point.fingerprint}-{how}"


def _judged(
    plan: Plan,
    engines: EngineHost,
    teacher: TeacherReport,
    points: Sequence[TrialRecord],
    ranks: Sequence[int],
    records: Sequence[TrialRecord],
    rounds: Sequence[Sequence[LatencyReport]],
    seeds: Sequence[dict[int, float]],
    right: Sequence[np.ndarray],
    tests: dict[int, dict[str, object]],
) -> Refinement:
    """Everything in the order of the refined front, points off it last; ties are among those on it. `ranks` are those of the search."""
    best = front(records)
    order = [records.index(record) for record in best] + [index for index, record in enumerate(records) if record not in best]
    on_front = order[: len(best)]
    close = accuracy_ties([right[index] for index in on_front]) if right else [()] * len(best)
    near = latency_ties([combined(rounds[index]).bounds_ms for index in on_front])
    finalists = []
    for place, index in enumerate(order):
        before, now = _measured(points[index]), _measured(records[index])
        finalists.append(
            Finalist(
                searched_rank=ranks[index],
                seeds=seeds[index],
                searched_accuracy=before.accuracy,
                searched_latency_ms=next(iter(milliseconds(before.latency)), None),
                search_interval=wilson(round(now.accuracy * now.images), now.images),
                test=tests.get(records[index].number),
                rounds_ms=tuple(report.p50_ms for report in rounds[index]),
                tied_accuracy=close[place] if place < len(best) else (),
                tied_latency=near[place] if place < len(best) else (),
            )
        )
    return Refinement(
        command=plan.command,
        runtime=engines.runtime.name,
        device=engines.device,
        fingerprint=engines.fingerprint,
        epochs=plan.epochs,
        teacher=teacher,
        records=tuple(records[index] for index in order),
        finalists=tuple(finalists),
    )


def _right(bench: Workbench, model: Path, inputs: Preprocessing) -> np.ndarray:
    """Which images of the search split the engine answers rightly; bool (N,)."""
    return answers(bench.engines, model, inputs, bench.data.search).argmax(1) == bench.data.search.labels.numpy()


def _preprocessing(bench: Workbench) -> Preprocessing:
    info, normalise = bench.data.info, bench.teacher.normalise
    return Preprocessing(image_size=info.image_size, channels=1 if info.channels == 1 else 3, mean=normalise.mean, std=normalise.std)


def _teacher(folder: Path, engines: EngineHost) -> TeacherReport:
    """The study's own account of its teacher, timed here. UserError when the run's folder lacks it."""
    known = TeacherReport.model_validate(run_facts(folder)["teacher"])
    return known.model_copy(update={"latency": engines.time_model(folder / "teacher" / "model.onnx")[0]})


def _with(record: TrialRecord, latency: LatencyReport) -> TrialRecord:
    return record.model_copy(update={"measurement": _measured(record).model_copy(update={"latency": latency})})


def _measured(record: TrialRecord) -> Measurement:
    assert record.measurement is not None
    return record.measurement


def _model(folder: Path, record: TrialRecord) -> Path:
    return candidate_file(folder, record, "model.onnx")
