"""The stages in which a candidate learns, in its order: pruned, then quantised, or the other way round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

from torch import nn

from core.candidate import Candidate, ShapePlan
from core.checkpoint import SUFFIX
from core.compress import plan_of, prune
from core.config import TrainConfig
from core.distil import distil
from core.layers import layer_infos
from core.quantise import QUANTISERS
from core.quantise.setting import Finetune, Penalty, plain_layer, setting_of, weight_of
from core.tables import lookup
from objectives.allocation import images_of, parent_of, scores_of
from objectives.bench import Stages, Workbench
from objectives.journal import Journal
from objectives.rungs import Watch, with_rate


def quantises_first(candidate: Candidate) -> bool:
    """Whether the dense network is quantised, and its quantised weights decide what is pruned."""
    return candidate.order == "quantise, prune"


def start(candidate: Candidate, pruned: nn.Module, bench: Workbench, stages: Stages, folder: Path, journal: Journal) -> nn.Module:
    """The pruned network with the parent's best channels, or as initialised with `init: scratch`."""
    if candidate.distil.init == "scratch":
        journal.note("prune", pruned)
        return pruned
    parent = parent_of(candidate, bench, stages)
    journal.note("parent", parent)
    if quantises_first(candidate):
        quantise_dense(parent, candidate, bench, stages, folder, journal)
    with stages("prune"):
        student = prune(parent, candidate, bench.input_shape, scores_of(candidate, parent, bench))
    # by layer, not by state: one that was quantised first is no longer computed by weight norm
    shapes, expected = (layer_infos(model, bench.input_shape) for model in (student, pruned))
    assert shapes == expected, "shapes must not depend on the weights"
    journal.note("prune", student)
    return student


def quantise_dense(parent: nn.Module, candidate: Candidate, bench: Workbench, stages: Stages, folder: Path, journal: Journal) -> None:
    """Train the dense network in place with its weights on their grids, where they stay: `quantise.train` is the recipe."""
    infos = layer_infos(parent, bench.input_shape)
    plan = plan_of(candidate, infos, bench.engines.runtime)
    setting = replace(setting_of(candidate, bench.config.quantise), images=images_of(bench))
    with stages("quantise dense") as on_epoch:
        finetune = finetune_of(candidate, bench, None, on_epoch, folder, bench.config.quantise.train, "quantise dense")
        stored = lookup(QUANTISERS, "quantiser", candidate.quantiser)(parent, _bits(plan), finetune, setting)
        for name, weight in sorted(stored.items(), key=lambda item: item[1].bits):  # of layers that share a weight the finest grid stays
            plain_layer(parent, name)
            weight_of(parent, name).data.copy_(weight.dequantised())
    journal.note("quantise dense", parent, plan, candidate.quantiser)


def distilled(
    candidate: Candidate, student: nn.Module, bench: Workbench, watch: Watch, stages: Stages, folder: Path, journal: Journal
) -> None:
    """Train the pruned network in float, by `finetune`. One that was quantised first trains on its grids alone, later."""
    if quantises_first(candidate):
        return
    recipe = bench.config.finetune
    with stages("distil") as on_epoch:
        watched, kept = watch(student, "distil", recipe, on_epoch), folder / f"distil{SUFFIX}"
        seed, plan, data = seed_of(bench, 2), candidate.distil, bench.train_set
        distil(student, plan, data, bench.logits, recipe, bench.device, seed=seed, on_epoch=watched, checkpoint=kept)
    journal.note("distil", student)


def last_finetune(candidate: Candidate, bench: Workbench, watch: Watch, on_epoch: Callable[..., None], folder: Path) -> Finetune:
    """Training with quantised weights: `quantise.train`; `finetune` after pruning of what was quantised before."""
    recipe = bench.config.finetune if quantises_first(candidate) else bench.config.quantise.train
    return finetune_of(candidate, bench, watch, on_epoch, folder, recipe, "quantise")


def finetune_of(
    candidate: Candidate,
    bench: Workbench,
    watch: Watch | None,
    on_epoch: Callable[..., None],
    folder: Path,
    recipe: TrainConfig,
    name: str,
) -> Finetune:
    """Training with the candidate's own loss. A quantiser may ask for several, one after the other: `name`, `name` 2 ..."""
    numbers = count(1)

    def finetune(model: nn.Module, penalty: Penalty | None = None) -> nn.Module:
        number = next(numbers)
        stage = name if number == 1 else f"{name} {number}"
        data, answers, device, seed = bench.train_set, bench.logits, bench.device, seed_of(bench, 3)
        watched = watch(model, stage, recipe, on_epoch) if watch else with_rate(on_epoch, recipe, len(data))
        kept = folder / f"{stage}{SUFFIX}"
        distil(model, candidate.distil, data, answers, recipe, device, seed=seed, on_epoch=watched, penalty=penalty, checkpoint=kept)
        return model.cpu()

    return finetune


def seed_of(bench: Workbench, stage: int) -> int:
    """Of a stage's order of images."""
    return bench.config.seed * 100 + stage


def _bits(plan: ShapePlan) -> dict[str, int]:
    return {layer.name: layer.weight_bits for layer in plan.layers}
