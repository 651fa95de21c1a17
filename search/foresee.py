"""What a run would take and what its space can reach: measured in at most half a minute, before anything is trained."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from torch import nn

from core.allocate import TRAINED
from core.candidate import KB, SELF, BuildReport, Candidate, fingerprint
from core.compress import draft, resolve
from core.config import Config, RuntimeConfig, TrainConfig
from core.engines import EngineHost
from core.errors import InfeasibleCandidate, TrialError
from core.layers import count_macs
from core.teacher import build_network, build_teacher_network, normalisation_of
from core.train import fit
from core.views import ViewedSet, viewed
from objectives.allocation import settle_roughly
from search.preflight import Inputs
from search.progress import duration
from search.sample import EXECUTIONS, genes, sample
from search.space import Constraints, Range, Space, options

DRAWS_S, TIMING_S = 16.0, 0.3
"""For candidates of the space, and for the latency of each of them: a search measures longer."""
STEPS, ROUNDS = 3, 2
"""Steps of a training that is timed, and how often; the first time also pays for what is set up once."""


@dataclass(frozen=True)
class Draw:
    """A candidate, measured but not trained."""

    candidate: Candidate
    size_bytes: int
    latency_ms: float | None
    """None where engines are only built."""
    macs: int
    file_bytes: int
    seconds: float
    """To prune, export and build it, without the timing."""


@dataclass(frozen=True)
class Speed:
    """Seconds of training per image, as a line through the smallest and the largest network."""

    macs: tuple[int, int]
    seconds: tuple[float, float]

    def at(self, macs: int) -> float:
        """Never below the smaller network's: a step has its price."""
        low, high = self.macs
        share = (macs - low) / (high - low) if high > low else 0.0
        return max(self.seconds[0], self.seconds[0] + share * (self.seconds[1] - self.seconds[0]))


def foresee(space: Space, config: Config, inputs: Inputs, trials: int, draws: Sequence[Draw]) -> list[tuple[str, str]]:
    """Lines of the plan: what is within reach, and hours and disk of `trials` more trials."""
    speed = training_speed(space, config, inputs)
    return [*reach(draws, space.constraints), ("hours", hours_text(space, config, inputs, trials, draws, speed)), disk(draws, trials)]


def drawn(space: Space, config: Config, inputs: Inputs, engines: EngineHost, folder: Path) -> list[Draw]:
    """The corners of the space, then random candidates, until the time is over. At least the first is measured, or it raises."""
    begun, found, seen, beyond = time.monotonic(), list[Draw](), set[str](), InfeasibleCandidate("the space must have a candidate")
    for candidate in _candidates(space, config.seed):
        if found and time.monotonic() - begun > DRAWS_S:
            break
        if (key := fingerprint(candidate)) in seen:
            continue
        seen.add(key)
        try:
            found.append(_measured(candidate, config, inputs, engines, folder))
        except InfeasibleCandidate as error:
            beyond = error  # this budget is out of reach, others may not be
        except TrialError:
            if not found:
                raise
    if not found:
        raise beyond
    return found


def short(config: RuntimeConfig) -> RuntimeConfig:
    """The same engine, timed for a moment."""
    return config.model_copy(update={"max_s": min(TIMING_S, config.max_s)})


def _candidates(space: Space, seed: int) -> Iterator[Candidate]:
    """A bounded number: a small space has few."""
    yield from corners(space)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed % 2**32))
    for _ in range(100):
        yield sample(space, study.ask())


def corners(space: Space) -> list[Candidate]:
    """Every student at its narrowest, with the fewest bits and channels, in INT8 and in float; and at its widest with the most."""
    asked = {name: value for name, value in genes(space, EXECUTIONS).items() if isinstance(value, tuple | Range)}
    ends = [(0, "int8", -1), (0, "float", -1), (-1, "int8", 0), (-1, "float", 0)]
    found = []
    for student in options(space.student.name):
        for end, execution, ratio in ends:
            answers = {name: _answer(name, value, student, end, execution, ratio) for name, value in asked.items()}
            candidate = sample(space, optuna.trial.FixedTrial(answers))
            found += [candidate] if candidate not in found else []
    return found


def _answer(name: str, value: Any, student: str, end: int, execution: str, ratio: int) -> Any:
    if name == "student":
        return student
    if name.startswith("exec_"):
        return execution if execution in value else value[0]
    index = ratio if name.startswith("ratio_") else end
    if name == "sqnr_loss_db":  # the less may be lost, the more bits
        index = -1 - end
    if isinstance(value, Range):
        return (value.low, value.high)[index]
    # bits and ratios are asked as an index of the sorted choices
    return range(len(value))[index] if name.startswith(("bits_", "ratio_")) else value[index]


def _measured(candidate: Candidate, config: Config, inputs: Inputs, engines: EngineHost, folder: Path) -> Draw:
    info, start = inputs.data.info, time.perf_counter()
    dense = build_network(candidate.student, candidate.width, config.teacher, info).eval()
    candidate = settle_roughly(candidate, dense, info.shape, engines.runtime)
    pruned, plan = resolve(dense, candidate, info.shape, engines.runtime)
    drafted = draft(pruned, plan, info.shape, engines.runtime, candidate.quantiser)
    path = drafted.save(folder)
    latency = engines.latency(path)
    seconds, file_bytes = time.perf_counter() - start, path.stat().st_size
    if isinstance(latency, BuildReport):
        return Draw(candidate, len(drafted.packed), None, drafted.macs, file_bytes + latency.engine_bytes, seconds)
    seconds -= config.runtime.warmup_s + min(TIMING_S, config.runtime.max_s)
    return Draw(candidate, len(drafted.packed), latency.p50_ms, drafted.macs, file_bytes, max(0.0, seconds))


def reach(draws: Sequence[Draw], limits: Constraints) -> list[tuple[str, str]]:
    """The range of size and latency, and every limit that nothing drawn keeps."""
    sizes, times = [draw.size_bytes / KB for draw in draws], _times(draws)
    speed = f"{min(times):.3f} to {max(times):.3f} ms" if times else "latency not measurable: engines are only built"
    numbers = f"{min(sizes):.1f} to {max(sizes):.1f} KB, {speed}"
    lines = [("reach", f"{numbers} ({len(draws)} candidates measured, the corners of the space among them)")]
    if times and limits.latency_ms is not None and limits.latency_ms < min(times):
        lines.append(("warning", f"{limits.latency_ms:g} ms is out of reach on this device: the floor is {min(times):.3f} ms"))
    if limits.size_kb is not None and limits.size_kb < min(sizes):
        lines.append(("warning", f"{limits.size_kb:g} KB is out of reach: the floor is {min(sizes):.1f} KB"))
    return lines


def _times(draws: Sequence[Draw]) -> list[float]:
    """Milliseconds, where they were measured."""
    return [draw.latency_ms for draw in draws if draw.latency_ms is not None]


def training_speed(space: Space, config: Config, inputs: Inputs) -> Speed:
    """Timed on a few steps of the smallest and the largest network of the space."""
    networks = [build_network(name, width, config.teacher, inputs.data.info) for name, width in pairs(space)]
    networks.sort(key=lambda network: count_macs(network, inputs.data.info.shape))
    ends = [networks[0], networks[-1]]
    seconds = [seconds_per_image(network, config.finetune, config, inputs) for network in ends]
    low, high = (count_macs(network, inputs.data.info.shape) for network in ends)
    return Speed((low, high), (seconds[0], max(seconds)))


def seconds_per_image(network: nn.Module, recipe: TrainConfig, config: Config, inputs: Inputs) -> float:
    """Of a training step on labels; the teacher's kept answers cost next to nothing beside it."""
    few = _few_steps(recipe, config, inputs)
    rates: list[float] = []
    timed = recipe.model_copy(update={"epochs": float(ROUNDS), "lora": None, "early_sizes": ()})

    def loss(outputs: Any, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs.float(), batch.labels.clamp_min(0))

    fit(network, few, loss, timed, inputs.device, seed=0, on_epoch=lambda done, epochs, rate, mean: rates.append(rate))
    return 1.0 / rates[-1]


def _few_steps(recipe: TrainConfig, config: Config, inputs: Inputs) -> ViewedSet:
    images = min(len(inputs.data.train), STEPS * recipe.batch_size)
    subset = inputs.data.train.subset(torch.arange(images))
    return viewed(subset, normalisation_of(inputs.data.info), config.views, config.seed, inputs.device.device)


def pairs(space: Space) -> list[tuple[str, float]]:
    """(student, width) of every parent."""
    names, widths = options(space.student.name), options(space.student.width)
    return [(name, width) for name in names for width in (widths if name != SELF else (1.0,))]


def hours_text(space: Space, config: Config, inputs: Inputs, trials: int, draws: Sequence[Draw], speed: Speed) -> str:
    """The prediction and its parts, without what skipping, stopping and earlier runs save."""
    parts = parts_of(space, config, inputs, trials, draws, speed)
    listed = ", ".join(f"{name} {duration(seconds)}" for name, seconds in parts.items())
    return f"about {duration(sum(parts.values()))}: {listed}; before skipping and stopping, with nothing kept from earlier runs"


def parts_of(space: Space, config: Config, inputs: Inputs, trials: int, draws: Sequence[Draw], speed: Speed) -> Mapping[str, float]:
    """Part -> seconds."""
    info, images = inputs.data.info, len(inputs.data.train)
    side, teacher = info.image_size, 0.0
    for each in config.teachers:
        if not (each.weights or each.pretrained):
            seconds = seconds_per_image(build_teacher_network(each, info), each.train, config, inputs)
            teacher += whole_epochs(each.train, side) * images * seconds
    dense = [count_macs(build_network(name, width, config.teacher, info), info.shape) for name, width in pairs(space) if name != SELF]
    inherits = "inherit" in options(space.distil.init) or space.allocation.strategy in TRAINED or space.prune.scope == "global"
    random_draws = draws[len(corners(space)) :] or draws
    per_trial = statistics.mean(speed.at(draw.macs) for draw in random_draws) * images
    epochs = whole_epochs(config.finetune, side) + whole_epochs(config.quantise.train, side)
    times = _times(random_draws)
    engine = statistics.mean(draw.seconds for draw in random_draws) + (config.runtime.warmup_s + config.runtime.max_s if times else 0.0)
    scoring = len(inputs.data.search) * statistics.mean(times or [0.0]) / 1000
    return {
        "teacher": teacher,
        "parents": sum(speed.at(macs) for macs in dense) * images * whole_epochs(config.parent.train, side) if inherits else 0.0,
        "training": trials * epochs * per_trial,
        "engines": trials * (engine + scoring),
    }


def whole_epochs(recipe: TrainConfig, side: int) -> float:
    """Epochs on images of `side` pixels that take as long as the recipe's: the time of a step goes with the pixels."""
    share, before = 0.0, 0.0
    for size, until in recipe.early_sizes:
        share, before = share + (until - before) * min(1.0, size / side) ** 2, until
    return recipe.epochs * (share + 1.0 - before)


def disk(draws: Sequence[Draw], trials: int) -> tuple[str, str]:
    """Models of the candidates; the teacher's kept answers are checked apart."""
    each = statistics.mean(draw.file_bytes + draw.size_bytes for draw in draws)
    return "disk", f"about {trials * each / 1e6:.1f} MB of models"
