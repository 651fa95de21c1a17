"""What a quantisation-aware step costs: python benchmarks/qat_step.py [--student resnet20] [--batch 128] [--rounds 9]

One network as each quantiser trains it, on one resident batch, in turn, round after round, so that a drift of the machine meets all:

    float       forward, backward and SGD of the plain network, eager, in the precision that training has here
    lsq         weights on learned grids        rate      the same, with the coded bits in the loss
    codebook    shared values
    simulated   lsq through activations of 8 bits (`quantise.simulate_activations`)
    compiled    the same with the activations rounded by a kernel of torch.compile (one pass in place of four), with the seconds of
                its first step; --eager leaves it out

Prints the ratio of each to `float` of the same round, as median and range over the rounds, and the bars of the project: lsq <= 1.1,
simulated <= 2.0, compiled <= 1.5; of `compiled` also after how many steps its first one is repaid, against `simulated`. Trainings do
not compile: a candidate's shape is its own, so every trial would pay for it. Writes benchmarks/results/qat_step.json, which keeps one
measurement of each processor and precision.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import fx, nn  # noqa: E402

from core.candidate import Candidate  # noqa: E402
from core.compress import calibrate  # noqa: E402
from core.config import HardwareConfig  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.hardware import device_facts  # noqa: E402
from core.layers import layer_infos  # noqa: E402
from core.plan import shape_plan  # noqa: E402
from core.quantise import QUANTISERS, simulate  # noqa: E402
from core.quantise.graph import build_graph  # noqa: E402
from core.quantise.setting import Penalty, Setting, untrained  # noqa: E402
from core.students import STUDENTS  # noqa: E402
from core.train import Device, open_device  # noqa: E402

SHAPE = (3, 32, 32)
TRAINED = ("lsq", "rate", "codebook", "simulated")
BAR = {"lsq": 1.1, "simulated": 2.0, "compiled": 1.5}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet20", choices=sorted(STUDENTS))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each way in a round")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "qat_step.json")
    args = parser.parse_args(argv)
    device = open_device(HardwareConfig())
    # the steps run inside one another's fine-tuning, so that every way is set up as a trial sets it up
    ways: dict[str, Callable[[int], float]] = {"float": step_timer(network(args.student), device, args.batch)}
    collect(list(TRAINED), ways, args, device, lambda: measure(ways, args, device))
    return 0


def collect(
    names: list[str], ways: dict[str, Callable[[int], float]], args: argparse.Namespace, device: Device, run: Callable[[], None]
) -> None:
    """Enter the fine-tuning of every way of `names`, note how to time its step, then `run`."""
    if not names:
        run()
        return
    name, *others = names
    model = network(args.student)

    def finetune(model: nn.Module, penalty: Penalty | None = None) -> None:
        ways[name] = step_timer(model, device, args.batch, penalty)
        if name == "simulated" and not args.eager:
            ways["compiled"] = with_compiled_rounding(ways[name])
        collect(others, ways, args, device, run)

    layers = {info.name: args.bits for info in layer_infos(model, SHAPE)}
    if name == "simulated":
        QUANTISERS["lsq"](model, layers, simulate.through(calibrated(model, args), finetune, layers, SHAPE), Setting())
    else:
        QUANTISERS[name](model, layers, finetune, Setting(rate_weight=0.1))


def calibrated(model: nn.Module, args: argparse.Namespace) -> fx.GraphModule:
    """The graph of the export, all layers in INT8, on the grid of most runtimes, with scales for noise."""
    plan = shape_plan(Candidate(student=args.student), layer_infos(model, SHAPE), depthwise_int8=True)
    weights = QUANTISERS["float"](model, {layer.name: layer.weight_bits for layer in plan.layers}, untrained)
    graph = build_graph(model, weights, plan, "uint8_relu", SHAPE)
    calibrate(graph, torch.randn(args.batch, *SHAPE, generator=torch.Generator().manual_seed(0)))
    return graph


def network(student: str) -> nn.Module:
    """With the same weights every time."""
    torch.manual_seed(0)
    return STUDENTS[student](classes=10)


def with_compiled_rounding(way: Callable[[int], float]) -> Callable[[int], float]:
    """The same steps, with activations rounded by one compiled kernel, which takes every shape."""
    kernel = torch.compile(simulate.on_grid, dynamic=True)

    def timed(steps: int) -> float:
        with patch.object(simulate, "on_grid", kernel):
            return way(steps)

    return timed


def step_timer(model: nn.Module, device: Device, batch: int, penalty: Penalty | None = None) -> Callable[[int], float]:
    """fn(steps) -> seconds of a training step, on one batch that is there already."""
    model = model.to(device.device).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.SGD(
        [each for each in model.parameters() if each.requires_grad], lr=1e-4, momentum=0.9, nesterov=True, fused=True
    )
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *SHAPE, generator=generator).to(device.device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), generator=generator).to(device.device)

    def timed(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with device.autocast():
                loss = F.cross_entropy(model(images).float(), labels)
                if penalty is not None:
                    loss = loss + penalty(0.0)  # the rate acts from the first step on
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        if device.device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps

    return timed


def measure(ways: dict[str, Callable[[int], float]], args: argparse.Namespace, device: Device) -> None:
    """Time all ways in turn, print the ratios and write them."""
    first = {name: way(1) for name, way in ways.items()}
    for way in ways.values():
        way(2)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, way in ways.items():
            seconds[name].append(way(args.steps))
    rows = {name: row(name, found, seconds["float"]) for name, found in seconds.items()}
    for name, found in rows.items():
        low, high = found["ratio_range"]
        bar = f"  bar {found['bar']:.1f}" if found["bar"] else ""
        print(f"{name:10} {found['ms']:8.2f} ms  {found['ratio']:.3f} x float ({low:.3f} to {high:.3f}){bar}")
    if "compiled" in rows:
        rows["compiled"] |= repaid(first["compiled"], statistics.median(seconds["simulated"]), statistics.median(seconds["compiled"]))
        print(f"{'':10} {rows['compiled']['first_step_s']:.0f} s to compile, repaid after {rows['compiled']['repaid_after_steps']} steps")
    facts = {"student": args.student, "batch": args.batch, "bits": args.bits, "rounds": args.rounds, "steps": args.steps}
    threads, precision = torch.get_num_threads(), str(device.amp or torch.float32)
    result = {**facts, "threads": threads, "precision": precision, "torch": torch.__version__, "device": device_facts(), "rows": rows}
    before = json.loads(args.out.read_text())["machines"] if args.out.exists() else []
    others = [each for each in before if (each["device"], each["precision"]) != (result["device"], precision)]
    print(write_atomically(args.out, json.dumps({"machines": [*others, result]}, indent=1) + "\n"))


def repaid(first_s: float, eager_s: float, compiled_s: float) -> dict[str, object]:
    """What the first step took, and how many steps bring that back; None where none ever do."""
    gain = eager_s - compiled_s
    return {"first_step_s": round(first_s, 1), "repaid_after_steps": math.ceil((first_s - compiled_s) / gain) if gain > 0 else None}


def row(name: str, found: list[float], plain: list[float]) -> dict[str, Any]:
    """Median step in ms, and its ratio to the float step of the same round."""
    ratios = [one / other for one, other in zip(found, plain, strict=True)]
    return {
        "ms": round(1e3 * statistics.median(found), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratio_range": [round(min(ratios), 4), round(max(ratios), 4)],
        "bar": BAR.get(name),
    }


def section(measured: dict[str, Any]) -> str:
    """What docs/methods.md says."""
    return "\n\n".join(_of_machine(result) for result in measured["machines"])


def _of_machine(result: dict[str, Any]) -> str:
    head = "| step | ms | of the float step (range over the rounds) | bar |\n|---|---|---|---|"
    device, rows = result["device"], result["rows"]
    lines = []
    for name, found in rows.items():
        low, high = found["ratio_range"]
        bar = f"{found['bar']:.1f}, {'met' if found['ratio'] <= found['bar'] else 'not met'}" if found["bar"] else "-"
        lines.append(f"| {name} | {found['ms']:.1f} | {found['ratio']:.2f} ({low:.2f} to {high:.2f}) | {bar} |")
    compiled = rows.get("compiled")
    steps = compiled and compiled["repaid_after_steps"]
    repaid = (
        ""
        if compiled is None
        else f", {compiled['first_step_s']:.0f} s to compile, " + ("never repaid" if steps is None else f"repaid after {steps:,} steps")
    )
    return (
        f"{head}\n" + "\n".join(lines) + f"\n\n{result['student']}, batch {result['batch']}, weights of {result['bits']} bits, "
        f"{result['rounds']} rounds in turn{repaid}. {device['cpu']} ({', '.join(device['isa'])}), {result['threads']} threads, "
        f"{result['precision'].removeprefix('torch.')}, torch {result['torch']}."
    )


if __name__ == "__main__":
    raise SystemExit(main())
