"""`--dry-run`: check everything a run needs, measure one candidate, print the plan; trains nothing, writes nothing below runs/<study>."""

from __future__ import annotations

import tempfile
from pathlib import Path

import optuna
import yaml
from torch import nn

from core.candidate import KB, Candidate
from core.cli import required
from core.compress import draft, resolve
from core.config import Config
from core.data.types import DataInfo
from core.engines import EngineHost
from core.layers import count_macs, count_parameters
from core.teacher import build_network
from search.preflight import Inputs, load_inputs
from search.sample import live_parameters, sample
from search.space import Space, options, space_digest
from search.study import check_space, count_finished, find_study


def dry_run(space: Space, config: Config, name: str, url: str, trials: int, cache: Path) -> None:
    """Print the resolved plan. Raises UserError for the first thing that would stop the run."""
    digest, content = space_digest(space, config)
    finished = _finished(url, name, digest, content)
    inputs = load_inputs(config, cache)
    info, data = inputs.data.info, inputs.data
    _line(
        "study", f"{name}: {trials} trials, {finished} of them finished; seed {config.seed}; {live_parameters(space)} parameters to search"
    )
    shape = f"{info.channels} x {info.image_size} x {info.image_size}"
    _line("data", f"{info.name}: {len(data.train)} training images, {len(data.search)} to choose on, {len(info.classes)} classes, {shape}")
    _line("teacher", f"{config.teacher.model or config.teacher.name}: {_size(inputs.teacher, info)}")
    for student in options(space.student.name):
        for width in options(space.student.width):
            _line("student", f"{student} at width {width:g}: {_size(build_network(student, width, config.teacher, info), info)}")
    budget = f"parent {config.parent.train.epochs:g}, distil {config.finetune.epochs:g}, quantise {config.quantise.train.epochs:g} epochs"
    _line("budget", f"{budget} on {inputs.device.device} ({inputs.device.amp or 'float32'})")
    with required("a candidate of the space must build and run"):
        _measure_one(space, config, inputs)
    print(yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=140), end="")


def _finished(url: str, name: str, digest: str, content: dict[str, object]) -> int:
    """Finished trials of a study that this run would continue."""
    study = find_study(url, name)
    if study is None:
        return 0
    check_space(study, digest, content)
    return count_finished(study)


def _size(model: nn.Module, info: DataInfo) -> str:
    return f"{count_parameters(model):,} parameters, {count_macs(model, info.shape):,} MACs"


def _measure_one(space: Space, config: Config, inputs: Inputs) -> None:
    """Build and time the engine of one random candidate, in a folder that goes away."""
    info = inputs.data.info
    candidate = _random_candidate(space, config.seed)
    with tempfile.TemporaryDirectory() as folder, EngineHost(config.runtime, Path(folder)) as engines:
        dense = build_network(candidate.student, candidate.width, config.teacher, info).eval()
        pruned, plan = resolve(dense, candidate, info.shape, engines.runtime)
        drafted = draft(pruned, plan, info.shape, engines.runtime)
        latency = engines.latency(drafted.save(Path(folder)))
        runtime = (
            f"{engines.runtime.name} {engines.runtime.version}, batch {latency.batch}, {latency.threads} thread(s), {latency.precision}"
        )
    _line("runtime", runtime)
    numbers = f"{len(drafted.packed) / KB:.1f} KB, {latency.p50_ms:.3f} ms, {plan.mean_bits:.1f} bits a layer"
    _line("one draw", f"{candidate.student} at width {candidate.width:g}: {numbers}")


def _random_candidate(space: Space, seed: int) -> Candidate:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed % 2**32))
    return sample(space, study.ask())


def _line(head: str, text: str) -> None:
    print(f"{head:10} {text}")
