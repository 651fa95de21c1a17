"""What does each way to compress keep? python benchmarks/compression.py --data-dir FOLDER [--threads 1 --shard 0/2]

Every row (network:kind:seed) takes one trained FP32 network, the parent of its seed, through a trial's own path (settle, quantise,
export, engine): files are real, and accuracies are the engine's. Fine-tunes have 3 epochs. `mixed` rows get the bytes of uniform W4 or W3
and choose each layer's bits by a strategy. What Optuna is asked for (actions of `haq`, bits of `per_layer`, bits of POSITIONS positions
for `per_position`) is searched without training: TRIALS draws, judged by the loss on calibration images; the best is fine-tuned. Bytes are
of two files with the same weights: bit-packed and entropy-coded. Each row also says on how many images of the search split OpenVINO, with
float layers in f32 and (where the processor has it) in bf16, agrees with the simulation in PyTorch.

A row is written as soon as it is finished, and a finished row is not made again: start the command again after an interruption, or start
two with --shard 0/2 and --shard 1/2. --markdown prints the table of the rows that there are, and whether the project's bars are met.
Rows of one network and seed stand on one teacher, one parent and one precision of training; other networks and seeds may be made in
another session, on another machine, with a teacher of the same recipe. Parents that are in benchmarks/parents/ are taken from there where
data, teacher and recipe are those that they were trained with, so that rows can be added to them later. A row that fails says why, and the
next start tries it again. A row that takes the very training of another one, as a strategy does that chooses uniform bits, is a copy of it.
Nothing is chosen by the test split; it is scored once per row.
Writes benchmarks/results/compression.json.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import optuna
import torch
from torch import nn

from benchmarks.compression_bars import LONGER
from benchmarks.compression_kinds import KIND_OF, ROWS, Kind, Row
from benchmarks.compression_markdown import markdown
from benchmarks.distil_table import GRID
from benchmarks.rows import CACHE, ROOT, Ground, Table, build_parser, open_ground, read
from core.candidate import AllocationPlan, Candidate, Execution, GroupPlan, ShapePlan, fingerprint
from core.cli import run_main
from core.config import Config, TrainConfig
from core.data.types import Images
from core.engines import EngineHost
from core.files import write_atomically
from core.hardware import device_facts
from core.layers import layer_infos
from core.pack import pack, unpack
from core.quantise.ptq import rounded
from core.quantise.setting import weight_of
from core.runtimes import RUNTIMES
from core.teacher_logits import open_answers
from core.views import viewed
from objectives.accuracy import simulate
from objectives.allocation import labelled_images, settle
from objectives.bench import Stages, Workbench
from objectives.budget import Limits
from objectives.evaluate import Evaluation, evaluate, fingerprint_of, shape_of

RESULT = ROOT / "benchmarks" / "results" / "compression.json"
FOLDER = Path("runs", "compression")
PARENTS = ROOT / "benchmarks" / "parents"
"""Trained FP32 networks. Their names hold the digest of all that they depend on."""
EPOCHS, FLOAT_EPOCHS = 3.0, 12.0
CHOICES = (2, 3, 4, 5, 6, 8)
TRIALS = 60
POSITIONS = 6
SEARCHED = ("haq", "per_layer", "per_position")
"""Strategies that ask Optuna."""
OVER = 100.0
"""Nats, of bits that take more than the budget: more than any loss."""


@dataclass(frozen=True)
class Bench(Ground):
    """What every row shares."""

    work: Workbench
    openvino: Mapping[str, EngineHost]
    """By the precision of float layers."""
    teacher_test: float
    """Accuracy of the teacher on the test split, to compare with."""
    out: Path
    """Where finished rows are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Make the rows that are missing, then print the table."""
    parser = build_parser(__doc__, TABLE.form, RESULT)
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="of every fine-tuning")
    parser.add_argument("--float-epochs", type=float, default=FLOAT_EPOCHS, help="of the FP32 networks, distilled from the teacher")
    return TABLE.run(parser.parse_args(argv))


@contextmanager
def open_bench(args: argparse.Namespace) -> Iterator[Bench]:
    """The workbench that a study of the same configuration would have, and the test split."""
    epochs = {"parent.train.epochs": args.float_epochs, "finetune.epochs": 0.0, "quantise.train.epochs": args.epochs}
    ground = open_ground(args, epochs)
    config, data, teacher, device = ground.config, ground.data, ground.teacher, ground.device
    for kept in PARENTS.glob("*.safetensors"):
        write_atomically(FOLDER / "parents" / kept.name, kept.read_bytes())
    views = viewed(data.train, teacher.normalise, config.views, config.seed, device.device)
    logits = open_answers([teacher], config, views, data.info, device, CACHE, GRID)
    with ExitStack() as hosts:
        engines = hosts.enter_context(EngineHost(config.runtime, FOLDER))
        plain = {"name": "openvino", "agent": None, "build_for": ()}
        openvino: dict[str, EngineHost] = {
            precision: hosts.enter_context(EngineHost(config.runtime.model_copy(update=plain | {"precision": precision}), FOLDER))
            for precision in RUNTIMES["openvino"]().precisions
        }
        work = Workbench(config, data, views, teacher, logits, device, engines, FOLDER)
        yield Bench(**vars(ground), work=work, openvino=openvino, teacher_test=teacher_accuracy(ground), out=args.out)


@torch.inference_mode()
def teacher_accuracy(ground: Ground) -> float:
    """Share of the test images that the teacher gets right, in float32."""
    parts = [ground.teacher.normalise(part).to(ground.device.device) for part in ground.test.chunks()]
    top1 = torch.cat([simulate(ground.teacher.model, part).argmax(1).cpu() for part in parts])
    return float((top1 == ground.test.labels.cpu()).double().mean())


def compress(row: Row, shared_bench: Bench) -> dict[str, Any]:
    """One row through a trial's path, and its engine on the test split."""
    kind, stages, start = KIND_OF[row], Stages(), time.perf_counter()
    bench = replace(shared_bench.work, config=recipe_of(row, shared_bench.config))
    candidate = settle(candidate_of(row, bench), bench, stages)
    pruned, plan = shape_of(candidate, bench)
    trained = fingerprint(row.student, row.seed, fingerprint_of(candidate, plan), recipes_of(bench.config))
    own = {"row": row.name, "student": row.student, "kind": row.kind, "seed": row.seed, "trained": trained}
    if twin := next((made for made in read(shared_bench.out).get("rows", []) if made.get("trained") == trained), None):
        return twin | own | {"bits": stated_bits(plan, kind), "same_as": twin.get("same_as", twin["row"])}
    done = evaluate(candidate, pruned, plan, bench, Limits(), stages, folder_of(row, candidate, bench))
    seconds, measured = time.perf_counter() - start, done.measurement
    packed = (done.folder / "weights.pack").read_bytes()
    return own | {
        "test_accuracy": engine_accuracy(bench, done.folder / "model.onnx", shared_bench.test),
        "search_accuracy": measured.accuracy,
        "teacher_test_accuracy": shared_bench.teacher_test,
        "agreement": measured.agreement,
        "openvino": compared(shared_bench.openvino, done, bench),
        "packed_bytes": len(packed),
        "coded_bytes": len(pack(unpack(packed), "coded")),
        "mean_bits": measured.mean_bits,
        "pruned": kind.pruned,
        "width": kind.width,
        "bits": stated_bits(shape_of(done.candidate, bench)[1] if done.candidate else plan, kind),
        "stage_seconds": {stage: value for stage, value in stages.seconds.items() if stage != "parent"},
        "parameters": measured.parameters,
        "seconds": round(seconds - stages.seconds.get("parent", 0.0), 1),
        "runtime": done.artifact.runtime,
        "precision": done.artifact.precision,
        "int8_layers": done.artifact.int8_layers,
        "threads": torch.get_num_threads(),
        "device": device_facts(),
        "recipe": bench.config.quantise.train.model_dump(mode="json"),
        "parent_recipe": bench.config.parent.model_dump(mode="json"),
    }


def stated_bits(plan: ShapePlan, kind: Kind) -> int | list[int]:
    """Of every layer where a strategy chose them."""
    return [layer.weight_bits for layer in plan.layers] if kind.strategy else kind.bits


def recipes_of(config: Config) -> dict[str, Any]:
    """What a row's trainings depend on."""
    return config.model_dump(mode="json", include={"parent", "finetune", "quantise", "views"})


def recipe_of(row: Row, config: Config) -> Config:
    """With the row's seed. `sdq` trains twice, so it has half of the epochs each time: what it is compared with has them once."""
    kind, parent = KIND_OF[row], config.parent
    share = LONGER if kind.longer else 0.5 if kind.strategy == "sdq" else 1.0

    def times(train: TrainConfig, factor: float) -> TrainConfig:
        return train.model_copy(update={"epochs": train.epochs * factor})

    if kind.longer:
        parent = parent.model_copy(update={"distil": kind.distil, "train": times(parent.train, LONGER)})
    quantise = config.quantise.model_copy(update={"train": times(config.quantise.train, share).model_copy(update=kind.train)})
    finetune = quantise.train if kind.finetuned else config.finetune
    return config.model_copy(update={"seed": row.seed, "parent": parent, "finetune": finetune, "quantise": quantise})


def folder_of(row: Row, candidate: Candidate, bench: Workbench) -> Path:
    """Of the row's files. An interrupted training goes on there, so another recipe has another folder."""
    recipe = fingerprint(candidate.model_dump(mode="json"), recipes_of(bench.config))
    return FOLDER / "candidates" / f"{row.name.replace(':', '-')}-{recipe}"


def compared(engines: Mapping[str, EngineHost], done: Evaluation, bench: Workbench) -> dict[str, Any]:
    """The engines of a finished row against its simulation, on the search split: share of equal top-1, and both accuracies."""
    assert done.simulation is not None
    parts = [bench.teacher.normalise(part) for part in bench.data.search.chunks()]
    simulated = torch.cat([simulate(done.simulation, part).argmax(1) for part in parts])
    labels = bench.data.search.labels.cpu()

    def against(host: EngineHost) -> dict[str, Any]:
        answers = [host.predict(done.folder / "model.onnx", part.numpy()) for part in parts]
        top1, artifact = torch.cat([torch.from_numpy(logits).argmax(1) for logits, _ in answers]), answers[0][1]
        return {
            "agreement": float((top1 == simulated).double().mean()),
            "accuracy": float((top1 == labels).double().mean()),
            "simulated_accuracy": float((simulated == labels).double().mean()),
            "images": len(labels),
            **artifact.model_dump(include={"precision", "int8_layers", "layers"}),
        }

    return {precision: against(host) for precision, host in engines.items()}


def candidate_of(row: Row, bench: Workbench) -> Candidate:
    """The row as a point of a space. What Optuna is asked for is searched here."""
    kind = KIND_OF[row]
    execution: Execution = "float" if kind.quantiser == "float" else "int8"
    group = GroupPlan(prune_ratio=kind.pruned, weight_bits=kind.bits, execution=execution)  # type: ignore[arg-type]
    candidate = Candidate(
        student=row.student, width=kind.width, distil=kind.distil, groups=(group,), quantiser=kind.quantiser, **kind.genes
    )
    if kind.strategy in SEARCHED:
        return searched(candidate, kind, bench)
    if kind.strategy is None:
        return candidate
    plan = AllocationPlan(strategy=kind.strategy, choices=CHOICES, budget_bits=kind.bits)  # type: ignore[arg-type]
    return candidate.model_copy(update={"allocation": plan})


def searched(candidate: Candidate, kind: Kind, bench: Workbench) -> Candidate:
    """With the best of TRIALS draws, the first of them uniform, by the loss of the rounded parent on calibration images."""
    parent = bench.parent(candidate.student, candidate.width)
    names = [info.name for info in layer_infos(parent, bench.input_shape)]
    loss, weights = rounded_loss(parent, bench), [weight_of(parent, name).numel() for name in names]
    count = POSITIONS if kind.strategy == "per_position" else len(names)

    def drawn(answers: Mapping[str, Any]) -> Candidate:
        values = [answers[f"of_{index}"] for index in range(count)]
        if kind.strategy == "haq":
            plan = AllocationPlan(strategy="haq", choices=CHOICES, budget_bits=kind.bits, actions=tuple(values))  # type: ignore[arg-type]
            return settle(candidate.model_copy(update={"allocation": plan}), bench, Stages())
        return candidate.model_copy(update={"groups": tuple(GroupPlan(weight_bits=bits) for bits in values)})

    def bits_of(found: Candidate) -> list[int]:
        return [layer.weight_bits for layer in shape_of(found, bench)[1].layers]

    def size(bits: Sequence[int]) -> int:
        return sum(depth * weight for depth, weight in zip(bits, weights, strict=True))

    def objective(trial: optuna.Trial) -> float:
        ask = trial.suggest_float if kind.strategy == "haq" else trial.suggest_categorical
        limits = (0.0, 1.0) if kind.strategy == "haq" else (CHOICES,)
        bits = bits_of(drawn({f"of_{index}": ask(f"of_{index}", *limits) for index in range(count)}))
        over = size(bits) / budget - 1
        return loss(bits) if over <= 0 else OVER + over

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    budget, uniform = size(bits_of(candidate)), (CHOICES.index(kind.bits) + 0.5) / len(CHOICES) if kind.strategy == "haq" else kind.bits
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=bench.config.seed))
    study.enqueue_trial({f"of_{index}": uniform for index in range(count)})
    study.optimize(objective, n_trials=TRIALS)
    return drawn(study.best_params)


def rounded_loss(parent: nn.Module, bench: Workbench) -> Callable[[Sequence[int]], float]:
    """Bits of every layer -> mean cross-entropy of the parent on calibration images, its weights rounded to so many bits."""
    batches = list(labelled_images(bench))
    names = [info.name for info in layer_infos(parent, bench.input_shape)]
    kept = {name: weight_of(parent, name).detach().clone() for name in names}
    lossy = copy.deepcopy(parent).eval()

    @torch.inference_mode()
    def loss(bits: Sequence[int]) -> float:
        for name, depth in zip(names, bits, strict=True):
            weight_of(lossy, name).copy_(rounded(kept[name], depth, bench.config.quantise.ptq).dequantised())
        found = [nn.functional.cross_entropy(lossy(images), labels, reduction="sum") for images, labels in batches]
        return float(sum(found)) / sum(len(labels) for _, labels in batches)

    return loss


def engine_accuracy(bench: Workbench, model: Path, images: Images) -> float:
    """Share of `images` that the engine gets right."""
    answers = [bench.engines.predict(model, bench.teacher.normalise(part).numpy())[0] for part in images.chunks()]
    top1 = torch.cat([torch.from_numpy(part).argmax(1) for part in answers])
    return float((top1 == images.labels.cpu()).float().mean())


def shared(bench: Bench) -> dict[str, Any]:
    """What must be equal in all rows of a file."""
    recipes = {"parent": bench.config.parent.model_dump(mode="json"), "finetune": bench.config.quantise.train.model_dump(mode="json")}
    return bench.facts() | recipes


TABLE = Table(
    ROWS,
    "network:kind:seed",
    open_bench,
    shared,
    compress,
    markdown,
    together=lambda row: f"{row.student}:{row.seed}{':long' if KIND_OF[row].longer else ''}",
    own=("teacher", "precision"),
)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
