"""`--dry-run`: check everything, measure candidates and a few steps, print the plan; writes nothing below runs/<study>."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import yaml
from torch import nn

from core.cli import required
from core.config import Config
from core.data.types import DataInfo
from core.engines import EngineHost
from core.layers import count_macs, count_parameters
from core.teacher import build_network
from search.digest import space_digest
from search.foresee import MEASURING_S, drawn, foresee, short
from search.methods import check_networks
from search.preflight import Inputs, load_inputs
from search.sample import live_parameters
from search.space import Space, options
from search.students import check_students
from search.study import check_space, count_finished, find_study


def dry_run(space: Space, config: Config, name: str, url: str, trials: int, cache: Path, *, fresh: bool = False) -> None:
    """Print the resolved plan; `fresh`: of a run that begins anew. Raises UserError for the first thing that would stop the run."""
    digest, content = space_digest(space, config)
    finished = 0 if fresh else _finished(url, name, digest, content)
    inputs = load_inputs(space, config, cache)
    info, data = inputs.data.info, inputs.data
    _line(
        "study", f"{name}: {trials} trials, {finished} of them finished; seed {config.seed}; {live_parameters(space)} parameters to search"
    )
    shape = f"{info.channels} x {info.image_size} x {info.image_size}"
    _line("data", f"{info.name}: {len(data.train)} training images, {len(data.search)} to choose on, {len(info.classes)} classes, {shape}")
    check_students(space, config, info)
    check_networks(space, config, info)
    for teacher, network in zip(config.teachers, inputs.teachers, strict=True):
        _line("teacher", f"{teacher.model or teacher.name}: {_size(network, info)}")
    for student in options(space.student.name):
        for width in options(space.student.width):
            _line("student", f"{student} at width {width:g}: {_size(build_network(student, width, config.teacher, info), info)}")
    budget = f"parent {config.parent.train.epochs:g}, distil {config.finetune.epochs:g}, quantise {config.quantise.train.epochs:g} epochs"
    _line("budget", f"{budget} on {inputs.device.device} ({inputs.device.amp or 'float32'})")
    with required("a candidate of the space must build and run"):
        _measure(space, config, inputs, max(0, trials - finished))
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


def _measure(space: Space, config: Config, inputs: Inputs, trials: int) -> None:
    """Build and time engines of candidates, in a folder that goes away, and say what a run would take."""
    deadline = time.monotonic() + MEASURING_S
    with tempfile.TemporaryDirectory() as folder, EngineHost(short(config.runtime), Path(folder)) as engines:
        draws = drawn(space, config, inputs, engines, Path(folder))
        runtime = engines.runtime
    _line(
        "runtime",
        f"{runtime.name} {runtime.version}, batch {config.runtime.batch}, {config.runtime.threads} thread(s), {config.runtime.precision}",
    )
    for head, text in foresee(space, config, inputs, trials, draws, deadline):
        _line(head, text)


def _line(head: str, text: str) -> None:
    print(f"{head:10} {text}")
