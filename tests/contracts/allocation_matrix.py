"""Every strategy on every student of the zoo, at full depth: python -m tests.contracts.allocation_matrix (part of `make matrix`)

For each pair: a candidate with 40 % of its channels pruned is settled at the bytes of uniform 3 bits, and its file, made as a trial makes
its draft, must be no larger than that one's. `sdq` learns for a few steps. Prints a line per pair; ends with 1 where one fails.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from core.allocate import STRATEGIES, settled
from core.allocate.problem import problem_of
from core.allocate.sdq import learned_bits
from core.candidate import AllocationPlan, Candidate, GroupPlan
from core.compress import Shape, plan_of, resolve, rough_bytes
from core.errors import ParetopressError
from core.layers import layer_infos
from core.quantise.setting import Penalty
from core.runtimes import RUNTIMES
from core.students import STUDENTS
from objectives.allocation import settle_roughly

SHAPE: Shape = (3, 32, 32)
CHOICES = (2, 3, 4, 6, 8)
BITS = 3
STEPS = 4


def main() -> int:
    """Try the pairs; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--students", nargs="+", default=list(STUDENTS), choices=list(STUDENTS), metavar="NAME")
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES), metavar="NAME")
    args = parser.parse_args()
    failed = 0
    for student in args.students:
        torch.manual_seed(0)
        model = STUDENTS[student](classes=10, width=0.25).eval()
        for strategy in args.strategies:
            begun = time.perf_counter()
            verdict = tried(student, strategy, model)
            failed += verdict != "ok"
            print(f"{student:22} {strategy:12} {verdict} ({time.perf_counter() - begun:.1f} s)", flush=True)
    return int(failed > 0)


def tried(student: str, strategy: str, model: nn.Module) -> str:
    """`ok`, or what is wrong."""
    runtime, layers = RUNTIMES["onnxruntime"](), len(layer_infos(model, SHAPE))
    plan = AllocationPlan(strategy=strategy, choices=CHOICES, budget_bits=None if strategy == "per_layer" else BITS)  # type: ignore[arg-type]
    genes = {"actions": (1.0, 0.6, 0.9)} if strategy == "haq" else {"layers": ((BITS, "int8"),) * layers} if strategy == "per_layer" else {}
    group = GroupPlan(weight_bits=BITS, prune_ratio=0.4)
    uniform = Candidate(student=student, width=0.25, groups=(group,), round_to=4)
    asked = uniform.model_copy(update={"allocation": plan.model_copy(update=genes)})
    try:
        pruned, _ = resolve(model, uniform, SHAPE, runtime)
        found = learned(asked, pruned) if strategy == "sdq" else settle_roughly(asked, model, SHAPE, runtime)
        sizes = [rough_bytes(*resolve(model, each, SHAPE, runtime), SHAPE, runtime, "ptq") for each in (found, uniform)]
    except ParetopressError as error:
        return f"{type(error).__name__}: {error}"
    return "ok" if sizes[0] <= sizes[1] else f"{sizes[0]} bytes for {sizes[1]}"


def learned(asked: Candidate, pruned: nn.Module) -> Candidate:
    """The bits that a few steps on noise find."""
    infos = layer_infos(pruned, SHAPE)

    def finetune(model: nn.Module, penalty: Penalty | None = None) -> None:
        model.train()
        for step in range(STEPS):
            images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(step))
            loss = model(images).square().mean() + (penalty((step + 1) / STEPS) if penalty else 0.0)
            torch.autograd.backward(loss)
        model.eval()

    runtime = RUNTIMES["onnxruntime"]()
    problem = problem_of(asked, infos, lambda bits: 0, lambda bits: plan_of(settled(asked, infos, bits), infos, runtime))
    return settled(asked, infos, learned_bits(pruned, problem, finetune))


if __name__ == "__main__":
    raise SystemExit(main())
