"""What a run would take and what its space can reach: measured in at most half a minute, before anything is trained."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna

from core.allocate import TRAINED
from core.candidate import KB, SELF, BuildReport, Candidate, fingerprint
from core.compress import draft, least_size, resolve
from core.config import Config, RuntimeConfig
from core.engines import EngineHost
from core.errors import InfeasibleCandidate, TrialError
from core.pack import Coding
from core.teacher import build_network
from core.teacher_logits import is_kept, view_bytes
from objectives.allocation import settle_roughly
from results.table import duration
from search.methods import finest_grid
from search.preflight import Inputs
from search.sample import EXECUTIONS, genes, sample
from search.space import Constraints, Range, Space, options
from search.speed import Dense, Speed, dense_of, training_speed, whole_epochs

MEASURING_S = 30.0
"""For all that is measured. One candidate is, however long it takes; of what is not measured in time the plan says so."""
DRAWS_S, TIMING_S = 16.0, 0.3
"""For candidates of the space, and for the latency of each of them: a search measures longer."""


@dataclass(frozen=True)
class Draw:
    """A candidate, measured but not trained."""

    candidate: Candidate
    size_bytes: int
    """Bit-packed."""
    least_bytes: int
    """What the trained candidate's file takes at least: fewer where it is entropy-coded."""
    latency_ms: float | None
    """None where engines are only built."""
    macs: int
    file_bytes: int
    seconds: float
    """To prune, export and build it, without the timing."""
    corner: bool = False
    """An end of the space, and not drawn at random."""


def foresee(
    space: Space, config: Config, inputs: Inputs, trials: int, draws: Sequence[Draw], deadline: float | None = None
) -> list[tuple[str, str]]:
    """Lines of the plan: what is within reach, and hours and disk of `trials` more trials.

    Nothing is timed after the `deadline`, in seconds of this machine's monotonic clock; None: MEASURING_S from now.
    """
    deadline, dense = time.monotonic() + MEASURING_S if deadline is None else deadline, dense_of(space, config, inputs.data.info)
    speed, teacher = training_speed(dense, config, inputs, deadline)
    hours = hours_text(parts_of(space, config, inputs, trials, draws, dense, speed, teacher))
    return [*reach(draws, space.constraints, len(corners(space))), ("hours", hours), disk(space, config, inputs, trials, draws, dense)]


def drawn(space: Space, config: Config, inputs: Inputs, engines: EngineHost, folder: Path) -> list[Draw]:
    """The corners of the space, then random candidates, until another one would take too long. One is measured, or it raises."""
    begun, found, seen, beyond = time.monotonic(), list[Draw](), set[str](), InfeasibleCandidate("the space must have a candidate")
    longest, ends = 0.0, corners(space)
    for candidate in _candidates(space, ends, config.seed):
        if found and time.monotonic() - begun + longest > DRAWS_S:
            break
        if (key := fingerprint(candidate)) in seen:
            continue
        seen.add(key)
        last = time.monotonic()
        try:
            draw = _measured(candidate, config, inputs, engines, folder, space.objectives.size)
            found.append(replace(draw, corner=candidate in ends))
        except InfeasibleCandidate as error:
            beyond = error  # this budget is out of reach, others may not be
        except TrialError:
            if not found:
                raise
        if len(seen) > 1:  # the first one also pays for what is loaded once
            longest = max(longest, time.monotonic() - last)
    if not found:
        raise beyond
    return found


def short(config: RuntimeConfig) -> RuntimeConfig:
    """The same engine, timed for a moment."""
    return config.model_copy(update={"max_s": min(TIMING_S, config.max_s)})


def _candidates(space: Space, ends: Sequence[Candidate], seed: int) -> Iterator[Candidate]:
    """`ends` first, then random ones. A bounded number: a small space has few."""
    yield from ends
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


def _measured(candidate: Candidate, config: Config, inputs: Inputs, engines: EngineHost, folder: Path, coding: Coding) -> Draw:
    info, start = inputs.data.info, time.perf_counter()
    dense = build_network(candidate.student, candidate.width, config.teacher, info).eval()
    candidate = settle_roughly(candidate, dense, info.shape, engines.runtime)
    pruned, plan = resolve(dense, candidate, info.shape, engines.runtime)
    drafted = draft(pruned, plan, info.shape, engines.runtime, candidate.quantiser)
    path = drafted.save(folder)
    latency = engines.latency(path)
    seconds, file_bytes = time.perf_counter() - start, path.stat().st_size
    sizes = (len(drafted.packed), least_size(drafted, coding))
    if isinstance(latency, BuildReport):
        return Draw(candidate, *sizes, None, drafted.macs, file_bytes + latency.engine_bytes, seconds)
    seconds -= config.runtime.warmup_s + min(TIMING_S, config.runtime.max_s)
    return Draw(candidate, *sizes, latency.p50_ms, drafted.macs, file_bytes, max(0.0, seconds))


def reach(draws: Sequence[Draw], limits: Constraints, ends: int = 0) -> list[tuple[str, str]]:
    """The range of size and latency, and every limit that nothing drawn keeps. `ends`: how many corners the space has."""
    sizes, times = [draw.size_bytes / KB for draw in draws], _times(draws)
    least = min(draw.least_bytes for draw in draws)
    coded = " bit-packed, less once they are trained and coded" if any(draw.least_bytes < draw.size_bytes for draw in draws) else ""
    speed = f"{min(times):.3f} to {max(times):.3f} ms" if times else "latency not measurable: engines are only built"
    numbers = f"{min(sizes):.1f} to {max(sizes):.1f} KB{coded}, {speed}"
    all_ends = not draws[-1].corner or sum(draw.corner for draw in draws) >= ends  # they come first; some may be beyond a budget
    among = "the corners of the space among them" if all_ends else f"of {ends} corners of the space; no time for the others"
    lines = [("reach", f"{numbers} ({len(draws)} candidates measured, {among})")]
    if times and limits.latency_ms is not None and limits.latency_ms < min(times):
        lines.append(("warning", f"{limits.latency_ms:g} ms {_floor(f'{min(times):.3f} ms on this device', all_ends)}"))
    if limits.size_kb is not None and limits.size_kb < least / KB:
        lines.append(("warning", f"{limits.size_kb:g} KB {_floor(f'{least / KB:.1f} KB', all_ends)}"))
    return lines


def _floor(least: str, known: bool) -> str:
    """What is said of a limit below all that was measured. Only where no corner is missing it is the floor."""
    return f"is out of reach: the floor is {least}" if known else f"may be out of reach: the least that was measured is {least}"


def _times(draws: Sequence[Draw]) -> list[float]:
    """Milliseconds, where they were measured."""
    return [draw.latency_ms for draw in draws if draw.latency_ms is not None]


def hours_text(parts: Mapping[str, float | None]) -> str:
    """The prediction and its parts, without what skipping, stopping and earlier runs save."""
    known = [seconds for seconds in parts.values() if seconds is not None]
    about = "about" if len(known) == len(parts) else "at least"
    listed = ", ".join(f"{name} {'not timed' if seconds is None else duration(seconds)}" for name, seconds in parts.items())
    late = "" if len(known) == len(parts) else f"; training takes too long to be timed in what is left of {MEASURING_S:g} s"
    return f"{about} {duration(sum(known))}: {listed}{late}; before skipping and stopping, with nothing kept from earlier runs"


def parts_of(
    space: Space,
    config: Config,
    inputs: Inputs,
    trials: int,
    draws: Sequence[Draw],
    dense: Sequence[Dense],
    speed: Speed | None,
    taught: Sequence[float | None],
) -> Mapping[str, float | None]:
    """Part -> seconds; None where training was not timed. `taught`: seconds per image of each teacher."""
    images, side = len(inputs.data.train), inputs.data.info.image_size
    random_draws = [draw for draw in draws if not draw.corner] or draws
    epochs = whole_epochs(config.finetune, side) + whole_epochs(config.quantise.train, side)
    times = _times(random_draws)
    engine = statistics.mean(draw.seconds for draw in random_draws) + (config.runtime.warmup_s + config.runtime.max_s if times else 0.0)
    scoring = len(inputs.data.search) * statistics.mean(times or [0.0]) / 1000
    lessons = zip(taught, config.teachers, strict=True)
    once = [None if each is None else each * images * whole_epochs(teacher.train, side) for each, teacher in lessons]
    parents: float | None = 0.0
    if inherits(space):
        per_image = None if speed is None else sum(speed.at(each.macs) for each in dense if each.student != SELF)
        parents = None if per_image is None else per_image * images * whole_epochs(config.parent.train, side)
    return {
        "teacher": None if None in once else sum(each or 0.0 for each in once),
        "parents": parents,
        "training": None if speed is None else trials * epochs * images * statistics.mean(speed.at(draw.macs) for draw in random_draws),
        "engines": trials * (engine + scoring),
    }


def inherits(space: Space) -> bool:
    """Whether a trial may ask for a trained parent."""
    return "inherit" in options(space.distil.init) or space.allocation.strategy in TRAINED or space.prune.scope == "global"


def disk(space: Space, config: Config, inputs: Inputs, trials: int, draws: Sequence[Draw], dense: Sequence[Dense]) -> tuple[str, str]:
    """Models of the candidates, parents, and the teachers' answers, each view of which is kept when an epoch first asks for it."""
    epochs = max(recipe.epochs for recipe in (config.parent.train, config.finetune, config.quantise.train))
    views = config.views.number if config.views.average else min(config.views.number, math.ceil(epochs))
    info, kept = inputs.data.info, is_kept(config.views, inputs.data.info.image_size)
    parts = {
        "models": trials * statistics.mean(draw.file_bytes + draw.size_bytes for draw in draws),
        "parents": sum(each.file_bytes for each in dense if each.student != SELF) if inherits(space) else 0,
        "kept answers": len(config.teachers) * views * view_bytes(len(inputs.data.train), len(info.classes), finest_grid(space)) * kept,
    }
    listed = ", ".join(f"{name} {count / 1e6:.1f}" for name, count in parts.items())
    return "disk", f"about {sum(parts.values()) / 1e6:.1f} MB: {listed}"
