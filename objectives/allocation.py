"""A candidate's open choices are settled before it is shaped: ratios of a global ranking, and the bits of its layers.

What depends on weights is read from the trained parent, which every trial of the same (student, width) shares. So size and structure
are exact before the candidate itself is trained (docs/architecture.md, decision 15).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from core.allocate import TRAINED, allocate, in_bytes, settled
from core.allocate.latency import in_time
from core.allocate.problem import Evidence, Losses, problem_of
from core.allocate.sdq import learned_bits
from core.allocate.sensitivity import expected_losses, measure_losses
from core.candidate import Candidate, ShapePlan, fingerprint
from core.compress import Shape, calibration_indices, plan_of, prune, rough_bytes
from core.config import PtqConfig
from core.files import made_once, write_atomically
from core.importance import Scores, taylor_scores
from core.layers import LayerInfo, layer_infos
from core.plan import genes
from core.prune_global import global_ratios
from core.quantise.setting import Finetune
from core.runtimes.types import Runtime
from objectives.bench import Stages, Workbench
from objectives.layer_times import layer_times
from objectives.rungs import with_rate

TAYLOR_BATCH = 64


def settle(candidate: Candidate, bench: Workbench, stages: Stages) -> Candidate:
    """The candidate with a group for each layer, where bits or ratios were open; else as it is. May train the parent.

    Raises InfeasibleCandidate when no bits, or no executions, keep the budget.
    """
    if not is_open(candidate):
        return candidate
    reads_weights = candidate.allocation.strategy in TRAINED or candidate.prune_scope == "global"
    dense = parent_of(candidate, bench, stages) if reads_weights else bench.network(candidate.student, candidate.width)
    with stages("allocate"):
        scores = scores_of(candidate, dense, bench) if reads_weights else None
        candidate = ranked_globally(candidate, dense, bench.input_shape, scores)
        pruned = prune(dense, candidate, bench.input_shape, scores)
        losses = partial(losses_of, candidate, dense, bench)
        found = _allocated(candidate, pruned, bench.input_shape, bench.engines.runtime, losses, bench.config.quantise.ptq)
        return found if found.allocation.budget_ms is None else _in_time(found, pruned, bench)


def settle_roughly(candidate: Candidate, dense: nn.Module, input_shape: Shape, runtime: Runtime) -> Candidate:
    """What may come out before there is a parent: rounding errors of untrained weights stand for what is measured.

    Executions stay as sampled, also where there is a latency budget: layers are timed when a study needs it.
    """
    if not is_open(candidate):
        return candidate
    candidate = ranked_globally(candidate, dense, input_shape, None)
    pruned = prune(dense, candidate, input_shape)
    names = [info.name for info in layer_infos(dense, input_shape)]
    rule = PtqConfig()
    return _allocated(
        candidate, pruned, input_shape, runtime, lambda: expected_losses(pruned, names, candidate.allocation.choices, rule), rule
    )


def is_open(candidate: Candidate) -> bool:
    """Whether something remains to be settled."""
    plan = candidate.allocation
    return candidate.prune_scope == "global" or (plan.strategy != "per_position" and not plan.settled)


def parent_of(candidate: Candidate, bench: Workbench, stages: Stages) -> nn.Module:
    """The trained parent of the candidate, on the CPU."""
    bench.await_parent(candidate.student, candidate.width, stages)
    with stages("parent") as on_epoch:
        rated = with_rate(on_epoch, bench.config.parent.train, len(bench.train_set))
        return bench.parent(candidate.student, candidate.width, rated)


def learns_bits(candidate: Candidate) -> bool:
    """Whether the candidate's own training decides its bits. Before it the groups hold the fewest, so the size is a lower limit."""
    return candidate.allocation.strategy == "sdq" and not candidate.allocation.settled


def at_best(candidate: Candidate) -> Candidate:
    """The candidate with the most bits that its training may leave it."""
    if not learns_bits(candidate):
        return candidate
    most = {"weight_bits": max(candidate.allocation.choices)}
    return candidate.model_copy(update={"groups": tuple(group.model_copy(update=most) for group in candidate.groups)})


def learn_bits(candidate: Candidate, student: nn.Module, bench: Workbench, finetune: Finetune) -> tuple[Candidate, ShapePlan]:
    """Train `student` in place by `finetune` with drawn bits; the candidate with the bits that it found, and its plan."""
    infos, shape = layer_infos(student, bench.input_shape), bench.input_shape
    student.cpu()
    as_settled, as_planned = partial(settled, candidate, infos), partial(plan_of, infos=infos, runtime=bench.engines.runtime)
    file_bytes = partial(_file_bytes, student, infos, shape, bench.engines.runtime)
    problem = problem_of(candidate, infos, lambda bits: file_bytes(as_settled(bits)), lambda bits: as_planned(as_settled(bits)))
    problem.check_feasible()
    bits = learned_bits(student, problem, finetune, bench.config.seed)
    found = settled(candidate, infos, bits)
    return found, plan_of(found, infos, bench.engines.runtime)


def scores_of(candidate: Candidate, parent: nn.Module, bench: Workbench) -> Scores | None:
    """What `taylor` ranks by: one pass over the calibration images with their labels. None where nothing is ranked by it."""
    if candidate.importance != "taylor" or not any(group.prune_ratio for group in candidate.groups):
        return None
    return taylor_scores(parent, labelled_images(bench))


def ranked_globally(candidate: Candidate, dense: nn.Module, input_shape: Shape, scores: Scores | None) -> Candidate:
    """With the ratios that a ranking of all channels of `dense` gives its layers, one group for each; a local scope is left as it is."""
    if candidate.prune_scope == "local":
        return candidate
    infos = layer_infos(dense, input_shape)
    ratio = candidate.groups[0].prune_ratio
    by, step = candidate.importance, candidate.round_to
    found = global_ratios(dense, ratio, input_shape, round_to=step, importance=by, scores=scores)
    by_layer = genes(candidate, infos)
    groups = tuple(by_layer[info.name].model_copy(update={"prune_ratio": found.get(info.name, 0.0)}) for info in infos)
    return candidate.model_copy(update={"groups": groups, "prune_scope": "local"})


def losses_of(candidate: Candidate, parent: nn.Module, bench: Workbench) -> Losses:
    """What each layer's bits cost the dense parent, measured once per study and kept in its folder; a pruned layer has its dense one's.

    The key is the parent's weights, so a new parent is measured anew.
    """
    names, choices = [info.name for info in layer_infos(parent, bench.input_shape)], candidate.allocation.choices
    config = bench.config.quantise
    path = bench.folder / "sensitivity" / f"{candidate.student.replace(':', '-')}-{candidate.width:g}-{_key(parent, choices, bench)}.json"
    if not path.exists():
        with made_once(path, bench.on_wait):
            if not path.exists():  # it may have been made while waiting
                losses = measure_losses(parent, names, choices, images_of(bench), config.ptq)
                write_atomically(path, json.dumps(losses, indent=1) + "\n")
    return _read(path)


def _read(path: Path) -> Losses:
    table = json.loads(path.read_text(encoding="utf-8"))
    return {name: {int(bits): value for bits, value in row.items()} for name, row in table.items()}


def _key(parent: nn.Module, choices: tuple[int, ...], bench: Workbench) -> str:
    weights = [[name, hashlib.sha256(value.cpu().numpy().tobytes()).hexdigest()] for name, value in parent.state_dict().items()]
    config = bench.config.quantise
    return fingerprint(weights, choices, config.ptq, config.calibration_images, bench.data.info.digest, bench.config.seed)


def _allocated(
    candidate: Candidate, pruned: nn.Module, shape: Shape, runtime: Runtime, losses: Callable[[], Losses], rule: PtqConfig
) -> Candidate:
    infos = layer_infos(pruned, shape)
    file_bytes, planned = partial(_file_bytes, pruned, infos, shape, runtime), partial(plan_of, infos=infos, runtime=runtime)
    return allocate(candidate, infos, Evidence(pruned, candidate.student, losses, file_bytes, planned, rule))


def _file_bytes(pruned: nn.Module, infos: Sequence[LayerInfo], shape: Shape, runtime: Runtime, settled: Candidate) -> int:
    return rough_bytes(pruned, plan_of(settled, infos, runtime), shape, runtime, settled.quantiser)


def _in_time(settled: Candidate, pruned: nn.Module, bench: Workbench) -> Candidate:
    infos, table = layer_infos(pruned, bench.input_shape), layer_times(settled.student, settled.width, bench)
    shape, runtime = bench.input_shape, bench.engines.runtime
    planned = partial(plan_of, infos=infos, runtime=runtime)
    return in_bytes(in_time(settled, infos, table, planned), infos, partial(_file_bytes, pruned, infos, shape, runtime), planned)


def images_of(bench: Workbench) -> Tensor:
    """Normalised training images without augmentation, evenly spread, for calibration: float32 (N, C, H, W) on the CPU."""
    return bench.train_set.plain(_indices(bench)).cpu()


def _indices(bench: Workbench) -> Tensor:
    indices = calibration_indices(len(bench.train_set), bench.config.quantise.calibration_images)
    return indices.to(bench.train_set.labels.device)


def labelled_images(bench: Workbench) -> Iterator[tuple[Tensor, Tensor]]:
    """(normalised images, labels) of the calibration images on the CPU, in batches; labels are negative where nobody has labelled them."""
    labels = bench.train_set.labels[_indices(bench)].cpu()
    yield from zip(images_of(bench).split(TAYLOR_BATCH), torch.split(labels, TAYLOR_BATCH), strict=True)
