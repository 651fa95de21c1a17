"""A study whose objective is a formula: the real sampler, runner, gate and records, and no training.

    python -m benchmarks.simulated_search --trials 2000

Every case is run twice from its seed, and `reproduced` says whether both gave the same records, but for seconds. Writes
results/simulated_search.json: per sampler the trials by how they ended, the training that was not spent, hypervolume, and seconds per
trial of sampler and bookkeeping. `gp` takes seconds a trial, so it has --gp-trials of them; a row says how many. Finished rows are kept.
The formula (`final_accuracy`) is not a claim about networks: it checks the logic.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import joblib
import optuna

from core.candidate import Candidate, EngineArtifact, LatencyReport, LayerPlan, Measurement, Rung, ShapePlan, fingerprint
from core.cli import run_main
from core.config import StoppingConfig
from core.errors import InfeasibleCandidate
from core.files import write_atomically
from objectives.bench import Stages, Workbench
from objectives.budget import Gate, Known, Limits
from objectives.evaluate import Evaluation
from objectives.outlook import traits_of
from results.analysis import reference_of
from results.record import TeacherReport, TrialRecord
from search.baselines import all_baselines
from search.progress import Progress
from search.samplers import SAMPLERS, make_sampler
from search.space import load_space
from search.stopping import Judge
from search.study import DIRECTIONS
from search.trial import TrialRunner

ROOT = Path(__file__).resolve().parents[1]
OUT = Path(__file__).parent / "results" / "simulated_search.json"
EPOCHS = {"distil": 4, "quantise": 2}
IMAGES = 5000
CLASSES = 10
CONFIDENCE = 0.7
"""Of the gate, as the figures were made; what they say of seeds and logic does not depend on it."""
CAPACITY = {"resnet8": 78_000, "resnet14": 175_000, "resnet20": 272_000, "resnet8x4": 1_230_000}
"""Parameters of the students at width 1."""


@dataclass(frozen=True)
class SimulatedBench:
    """What the runner itself looks at."""

    folder: Path
    seed: int
    limited: float
    """Share of candidates that break a hard limit."""


def simulate(
    sampler: str,
    trials: int,
    seed: int,
    folder: Path,
    *,
    limited: float = 0.0,
    size_kb: float | None = None,
    stopping: StoppingConfig | None = None,
    positions: int = 22,
) -> TrialRunner:
    """A study of `trials` in memory, below `folder`; its runner holds the records, and the seconds of sampler and loop."""
    limits = [] if size_kb is None else [f"constraints.size_kb={size_kb}"]
    space = load_space(ROOT / "spaces" / "cifar10.yaml", [f"quantise.positions={positions}", *limits])
    study = optuna.create_study(directions=list(DIRECTIONS))
    for parameters in all_baselines(space, CAPACITY):
        study.enqueue_trial(parameters)
    teacher = TeacherReport(accuracy=0.93, size_bytes=4 * 2_000_000, latency=latency_of(4.0))
    judge = Judge(stopping or StoppingConfig(confidence=CONFIDENCE))
    with Progress(trials, quiet=True) as progress:
        bench = cast(Workbench, SimulatedBench(folder, seed, limited))
        runner = TrialRunner(space, bench, progress, [], judge=judge, reference=reference_of(teacher, CLASSES))
        runner.shape, runner.measure = shape, measure
        clocked = make_sampler(sampler, seed, 0, trials)
        study.sampler = clocked
        start = time.perf_counter()
        for _ in range(trials):
            study.optimize(runner, n_trials=1)
            runner.release()
        runner.loop_seconds, runner.sampler_seconds = time.perf_counter() - start, clocked.seconds
    return runner


def shape(candidate: Candidate, bench: SimulatedBench) -> tuple[float, ShapePlan]:
    """(parameters, a plan with a layer per depth position)"""
    groups = candidate.groups
    kept = sum(round(1 - group.prune_ratio, 3) ** 2 for group in groups) / len(groups)
    layers = tuple(
        LayerPlan(
            name=f"layer{i}", out_channels=round(64 * (1 - group.prune_ratio)), weight_bits=group.weight_bits, execution=group.execution
        )
        for i, group in enumerate(groups)
    )
    return CAPACITY[candidate.student] * candidate.width**2 * kept, ShapePlan(
        student=candidate.student, width=candidate.width, layers=layers
    )


def measure(
    candidate: Candidate,
    parameters: float,
    plan: ShapePlan,
    bench: SimulatedBench,
    limits: Limits,
    stages: Stages,
    folder: Path,
    gate: Gate,
) -> Evaluation:
    """What `evaluate` does, from formulas: the same gate at the same moments."""
    luck = random.Random(f"{bench.seed} {fingerprint(plan, candidate.distil)}")
    if luck.random() < bench.limited:
        raise InfeasibleCandidate("simulated: beyond a hard limit")
    in_int8 = sum(layer.execution == "int8" for layer in plan.layers) / len(plan.layers)
    size = round(parameters * plan.mean_bits / 8)
    latency = latency_of(0.05 + parameters * (1 - 0.6 * in_int8) / 400_000)
    traits = traits_of(candidate, round(parameters), round(40 * parameters))
    known = Known(traits, size, latency)
    gate.note(size_bytes=size, latency_ms=latency.p50_ms)
    limits.check_size(size, "not trained")
    gate.before_training(known)
    final = final_accuracy(candidate, parameters, luck)
    for stage, epochs in EPOCHS.items():
        with stages(stage):
            for epoch in range(1, epochs + 1):
                done = epoch if stage == "distil" else EPOCHS["distil"] + epoch
                reached = final * (1 - 0.35 * math.exp(-0.7 * done)) + luck.gauss(0, 0.008)
                gate.at_rung(known, Rung(stage=stage, epoch=epoch, accuracy=min(1.0, max(0.0, reached))))
    measurement = Measurement(
        accuracy=final, images=IMAGES, size_bytes=size, latency=latency, agreement=1.0, parameters=round(parameters),
        macs=round(40 * parameters), mean_bits=plan.mean_bits,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    return Evaluation(measurement, EngineArtifact(runtime="simulated", model_path="", precision="f32"), folder)


def final_accuracy(candidate: Candidate, parameters: float, luck: random.Random) -> float:
    """Grows with parameters, falls with the rounding noise of the weights; a little of it is the temperature, and luck."""
    noise = sum(4.0**-group.weight_bits for group in candidate.groups) / len(candidate.groups)
    log_odds = 2.2 + 0.55 * math.log2(parameters / 270_000) - 25 * noise - 0.1 * abs(math.log2(candidate.distil.temperature / 4))
    return 1 / (1 + math.exp(-log_odds - luck.gauss(0, 0.08)))


def latency_of(ms: float) -> LatencyReport:
    """A stable report with an interval of 1 %."""
    return LatencyReport(
        p50_ms=ms, p95_ms=1.05 * ms, ci_ms=(0.995 * ms, 1.005 * ms), samples=1000, batch=1, threads=1, runtime="simulated",
        precision="f32", fingerprint="simulated", stable=True,
    )  # fmt: skip


def told(runner: TrialRunner) -> dict[str, Any]:
    """What a simulated study says for a table."""
    records, trials = runner.records, len(runner.records)
    epochs = sum(len(record.rungs) for record in records if record.ending != "reused")
    return {
        "trials": dict(Counter(record.ending or record.state.lower() for record in records)),
        "epochs_saved": round(1 - epochs / (trials * sum(EPOCHS.values())), 4),
        "hypervolume": records[-1].hypervolume,
        "front": len(runner.best),
        "sampler_s_per_trial": round(runner.sampler_seconds / trials, 4),
        "bookkeeping_s_per_trial": round((runner.loop_seconds - runner.sampler_seconds) / trials, 4),
    }


def plain(records: Sequence[TrialRecord]) -> list[dict[str, Any]]:
    """Records without their clock: what a seed must give again."""
    return [record.model_dump(mode="json", exclude={"seconds"}) for record in records]


NEVER = StoppingConfig(skip=False, stop=False)
CASES: dict[str, dict[str, Any]] = {
    "everything trained": {"stopping": NEVER},
    "skip and stop": {},
    "30 % beyond a limit": {"limited": 0.3},
    "4 KB at most": {"size_kb": 4.0, "stopping": NEVER},
}
AT_MOST = {"4 KB at most": 200}
"""Trials: whether a sampler finds what keeps a limit is seen in the first."""
ENDINGS = {"limit": "refused"}


def once(sampler: str, trials: int, seed: int, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What one run says, and the digest of its records."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # here, for it may be another process
    with tempfile.TemporaryDirectory() as folder:
        runner = simulate(sampler, trials, seed, Path(folder), **settings)
    return told(runner), hashlib.sha256(json.dumps(plain(runner.records), sort_keys=True).encode()).hexdigest()[:16]


def made(sampler: str, trials: int, seed: int, settings: Mapping[str, Any], jobs: int = 1) -> dict[str, Any]:
    """A row of the result: two runs of one seed, with the seconds of the first."""
    run = joblib.delayed(once)
    (row, first), (_, again) = joblib.Parallel(n_jobs=jobs)(run(sampler, trials, seed, settings) for _ in range(2))
    return {"asked": trials, "survived": sum(row["trials"].values()) == trials, "reproduced": first == again, "records": first, **row}


def section(result: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of docs/protocol.md: what became of the trials of every sampler and case."""
    held = sum(row["survived"] and row["reproduced"] for row in result.values())
    lines, samplers = [], list(dict.fromkeys(key.partition(",")[0] for key in result))
    for key, row in sorted(result.items(), key=lambda item: samplers.index(item[0].partition(",")[0])):
        sampler, case, trials, _ = key.split(", ")
        ends = ", ".join(f"{count:,} {ENDINGS.get(ending, ending)}" for ending, count in row["trials"].items())
        lines.append(f"| {sampler} | {case} | {trials.partition(' ')[0]} | {ends} | {100 * row['epochs_saved']:.0f} % |")
    return (
        "The real sampler, runner, gate and records, with a formula in place of training (`benchmarks/simulated_search.py`; what is "
        f"skipped and stopped, with a confidence of {CONFIDENCE}). Each study "
        f"is run twice from its seed: {held} of {len(result)} have all of their trials and gave the same records again, but for seconds. "
        "`30 % beyond a limit` refuses so many candidates; under `4 KB at most` nearly all that are drawn at random are refused, "
        "and of the rest none is skipped. The formula is no claim about networks.\n\n"
        "| sampler | case | trials | how they ended | epochs not trained |\n|---|---|---|---|---|\n" + "\n".join(lines)
    )


def main(argv: list[str] | None = None) -> int:
    """Make the rows that are missing; 1 where a seed was not reproduced or trials are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--gp-trials", type=int, default=60)
    parser.add_argument("--samplers", nargs="+", default=[name for name in SAMPLERS if name != "grid"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="2: both runs of a case at once, which makes their seconds longer")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for name in args.samplers:
        asked = args.gp_trials if name == "gp" else args.trials
        for case, settings in CASES.items():
            trials = min(asked, AT_MOST.get(case, asked))
            key = f"{name}, {case}, {trials} trials, seed {args.seed}"
            if key not in result:
                result[key] = made(name, trials, args.seed, settings, args.jobs)
                print(key, result[key], flush=True)
                write_atomically(args.out, json.dumps(result, indent=1) + "\n")
    wrong = [key for key, row in result.items() if not (row["reproduced"] and row["survived"])]
    print("every seed gave its study again, and every sampler all of its trials" if not wrong else f"not so: {', '.join(wrong)}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
