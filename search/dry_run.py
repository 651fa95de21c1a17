"""`--dry-run`: check everything a run needs, measure one candidate, print the plan, train nothing, write nothing below runs/<study>."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import optuna

from core.candidate import Candidate
from core.compress import draft, resolve
from core.config import Config
from core.data import load_search_data
from core.data.types import SearchData
from core.engines import EngineHost
from core.errors import UserError
from core.layers import count_macs, count_parameters
from core.students import STUDENTS
from core.students.own import load_weights
from core.tables import lookup
from core.teacher import build_teacher_network
from core.train import open_device
from results.front import KB
from search.sample import live_parameters, sample
from search.space import SELF, Space, options

NEEDED_MB = 500


def dry_run(space: Space, config: Config, name: str, trials: int, cache: Path) -> int:
    """Print the resolved plan; exit code 0. Raises UserError for the first thing that would stop the run."""
    device = open_device(config.hardware)
    _check_disk(Path())
    data = load_search_data(config.data, cache)
    info = data.info
    shape = (info.channels, info.image_size, info.image_size)
    teacher = build_teacher_network(config.teacher, info)
    if config.teacher.weights:
        load_weights(teacher, config.teacher.weights)
    print(f"study      {name}: {trials} trials, seed {config.seed}, {live_parameters(space)} live parameters")
    print(f"data       {info.name}: {_splits(data)}, {len(info.classes)} classes, {info.channels} x {info.image_size} x {info.image_size}")
    print(f"teacher    {config.teacher.model or config.teacher.name}: {count_parameters(teacher):,} parameters, {count_macs(teacher, shape):,} MACs")
    for student in options(space.student.name):
        build = build_teacher_network(config.teacher, info) if student == SELF else _build(student, config, data)
        print(f"student    {student} at width 1: {count_parameters(build):,} parameters, {count_macs(build, shape):,} MACs")
    budget = f"parent {config.parent.train.epochs:g}, distil {config.finetune.epochs:g}, quantise {config.quantise.train.epochs:g} epochs"
    print(f"budget     {budget} on {device.device} ({device.amp or 'float32'})")
    _measure_one(space, config, data)
    return 0


def _splits(data: SearchData) -> str:
    return f"{len(data.train)} training images, {len(data.search)} to choose on"


def _build(student: str, config: Config, data: SearchData):  # type: ignore[no-untyped-def]
    info = data.info
    return lookup(STUDENTS, "student", student)(classes=len(info.classes), channels=info.channels, image_size=info.image_size)


def _measure_one(space: Space, config: Config, data: SearchData) -> None:
    """Build and time the engine of one random candidate, in a folder that goes away."""
    info = data.info
    candidate = _random_candidate(space, config)
    with tempfile.TemporaryDirectory() as folder, EngineHost(config.runtime, Path(folder)) as engines:
        dense = build_teacher_network(config.teacher, info) if candidate.student == SELF else _build(candidate.student, config, data)
        shape = (info.channels, info.image_size, info.image_size)
        pruned, plan = resolve(dense.eval(), candidate, shape, engines.runtime)
        drafted = draft(pruned, plan, shape, engines.runtime)
        latency = engines.latency(drafted.save(Path(folder)))
        print(f"runtime    {engines.runtime.name} {engines.runtime.version}, batch {latency.batch}, {latency.threads} thread(s), {latency.precision}")
        print(f"one draw   {candidate.student}: {len(drafted.packed) / KB:.1f} KB, {latency.p50_ms:.3f} ms, {plan.mean_bits:.1f} mean bits")


def _random_candidate(space: Space, config: Config) -> Candidate:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.seed), directions=["maximize", "minimize"])
    return sample(space, study.ask())


def _check_disk(folder: Path) -> None:
    free_mb = shutil.disk_usage(folder).free / 1e6
    if free_mb < NEEDED_MB:
        raise UserError(f"a run needs {NEEDED_MB} MB of free disk, but {folder.resolve()} has {free_mb:.0f}; free some, or run elsewhere")
