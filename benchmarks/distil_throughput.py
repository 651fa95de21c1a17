"""Distillation, images per second: python benchmarks/distil_throughput.py [--data-dir FOLDER] [--rounds 5]

Side by side in one process, in turn (plain, plain, ours, bare; again; ...), so that a drift of the machine meets all of them:

    plain   the loop of mdistiller and of the tutorials: torchvision transforms in a DataLoader (0 and 2 workers, the faster one
            counts), float32, NCHW, the teacher's forward in every step, SGD with momentum, KD at T = 4
    ours    core.distil.distil with the teacher's answers kept
    bare    forward and backward of the same student in ours' precision and layout on one resident batch: no data, no optimiser

ResNet-18 teaches ResNet-20. Speed does not depend on what is in the images: without --data-dir they are random bytes.
Writes benchmarks/results/distil_throughput.json.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset, RandomSampler  # noqa: E402
from torchvision import transforms  # noqa: E402

from core.candidate import DistilPlan  # noqa: E402
from core.config import DataConfig, HardwareConfig, TrainConfig, ViewsConfig  # noqa: E402
from core.data import load_search_data  # noqa: E402
from core.data.types import ImageSet  # noqa: E402
from core.distil import distil  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.hardware import device_facts  # noqa: E402
from core.losses import kd_loss  # noqa: E402
from core.students import STUDENTS  # noqa: E402
from core.teacher import Teacher, weights_digest  # noqa: E402
from core.teacher_logits import TeacherLogits  # noqa: E402
from core.train import Device, open_device  # noqa: E402
from core.views import Normalisation, ResidentViews, ViewedSet, viewed  # noqa: E402
from search.summary import versions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "distil_throughput.json"
CACHE = Path("runs", ".cache")
CLASSES, SIZE = 10, 32
CIFAR10 = Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
RECIPE: dict[str, float] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
"""mdistiller's, for both loops."""
PLAN = DistilPlan(loss="kd", temperature=4.0, weight=0.9, ce_weight=0.1)
BARS = {"ours/plain": 8.0, "ours/bare": 0.9}


@dataclass(frozen=True)
class Sizes:
    """Steps per round of each loop, and images per step. Every round begins with `warm` steps that are not timed."""

    rounds: int
    plain: int
    ours: int
    warm: int
    batch: int


Timed = Callable[[], float]
"""One round: images per second."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write the result."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    sizes = Sizes(args.rounds, args.plain_steps, args.steps, args.warm_steps, args.batch)
    device = open_device(HardwareConfig(device=args.device, amp=args.amp))
    images = load_images(args.data_dir, sizes.ours * sizes.batch)
    torch.manual_seed(0)
    teacher = network("resnet18").to(device.device).eval().requires_grad_(False)
    loops, count_teacher = build_loops(images, teacher, device, sizes)
    rates = measure(loops, sizes.rounds)
    result = {**account(args, device, sizes, len(images)), **summary(rates), "teacher_forward_images_while_timed": count_teacher()}
    write_atomically(args.out, json.dumps(result, indent=1) + "\n")
    print(report(result))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10 (archive or image folder); default: random bytes of its shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="timed steps per round, ours and bare")
    parser.add_argument("--plain-steps", type=int, default=20, help="timed steps per round of the plain loops, which take longer")
    parser.add_argument("--warm-steps", type=int, default=6, help="untimed first steps: they empty the workers' queue")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--amp", default="auto")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser


def load_images(folder: Path | None, count: int) -> ImageSet:
    """`count` images uint8 (N, 3, 32, 32) with labels."""
    if folder is not None:
        images = load_search_data(DataConfig(name="cifar10", dir=folder, train_limit=count), CACHE).train
        assert isinstance(images, ImageSet), "CIFAR-10 fits into memory"
        return images
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.randint(0, CLASSES, (count,), generator=generator))


def network(name: str) -> nn.Module:
    return STUDENTS[name](classes=CLASSES, channels=3, image_size=SIZE)


def build_loops(images: ImageSet, teacher: nn.Module, device: Device, sizes: Sizes) -> tuple[dict[str, Timed], Callable[[], int]]:
    """The timed loops by name, in the order of a round, and the count of images that the teacher saw for ours while timed."""
    loops = {f"plain_{workers}_workers": plain_loop(images, teacher, device, sizes, workers) for workers in (0, 2)}
    train_set = viewed(images, CIFAR10, ViewsConfig(number=1, flip=True, shift=4), 0, device.device)
    assert isinstance(train_set, ResidentViews)
    ours, count_teacher = our_loop(train_set, teacher, device, sizes)
    return {**loops, "ours": ours, "bare": bare_loop(train_set, device, sizes)}, count_teacher


class Pictures(Dataset[tuple[Tensor, int]]):
    """torchvision's CIFAR10 as everybody trains on it: an array, turned into a PIL image and transformed one by one."""

    def __init__(self, images: ImageSet, normalise: Normalisation = CIFAR10) -> None:
        self.pixels: np.ndarray = np.ascontiguousarray(images.images.permute(0, 2, 3, 1).numpy())
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(SIZE, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(normalise.mean, normalise.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def plain_loop(images: ImageSet, teacher: nn.Module, device: Device, sizes: Sizes, workers: int) -> Timed:
    """mdistiller's loop; its loader is opened once, so that no round pays for the start of the workers."""
    student = network("resnet20").to(device.device).train()
    optimiser = torch.optim.SGD(student.parameters(), **RECIPE)  # type: ignore[arg-type]
    data = Pictures(images)
    steps = sizes.rounds * (sizes.warm + sizes.plain)
    sampler = RandomSampler(data, replacement=True, num_samples=steps * sizes.batch)
    pinned = device.device.type == "cuda"
    batches: Iterator[list[Tensor]] = iter(DataLoader(data, sizes.batch, sampler=sampler, num_workers=workers, pin_memory=pinned))

    def step() -> None:
        inputs, labels = (part.to(device.device, non_blocking=True) for part in next(batches))
        logits = student(inputs)
        with torch.no_grad():
            target = teacher(inputs)
        loss = PLAN.ce_weight * F.cross_entropy(logits, labels) + PLAN.weight * kd_loss(logits, target, PLAN.temperature)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return stepwise(step, sizes.plain, sizes, device)


def our_loop(train_set: ResidentViews, teacher: nn.Module, device: Device, sizes: Sizes) -> tuple[Timed, Callable[[], int]]:
    """`distil` for one epoch a round, all that it does included: optimiser, schedule, order of the images."""
    frozen = Teacher(teacher, train_set.normalise, weights_digest(teacher, train_set.normalise), 0.0, "resnet18")
    content = hashlib.sha256(train_set.padded.cpu().numpy().tobytes()).hexdigest()[:16]
    logits = TeacherLogits(frozen, train_set, content, device, CACHE)
    logits(torch.arange(1, device=device.device), 0)  # warm
    before = logits.forward_images
    student = network("resnet20")
    warm = TrainConfig(epochs=sizes.warm / sizes.ours, batch_size=sizes.batch, **RECIPE)  # type: ignore[arg-type]
    recipe = warm.model_copy(update={"epochs": 1.0})

    def one_round() -> float:
        distil(student, PLAN, train_set, logits, warm, device, seed=0)
        synchronise(device)
        start = time.perf_counter()
        distil(student, PLAN, train_set, logits, recipe, device, seed=0)
        synchronise(device)
        return len(train_set) / (time.perf_counter() - start)

    return one_round, lambda: logits.forward_images - before


def bare_loop(train_set: ViewedSet, device: Device, sizes: Sizes) -> Timed:
    """Forward and backward alone, on the first batch."""
    student = network("resnet20").to(device.device).to(memory_format=torch.channels_last).train()
    indices = torch.arange(sizes.batch, device=device.device)
    inputs, labels = train_set.batch(indices, 0), train_set.labels[indices]

    def step() -> None:
        with device.autocast():
            loss = F.cross_entropy(student(inputs).float(), labels)
        student.zero_grad(set_to_none=True)
        loss.backward()

    return stepwise(step, sizes.ours, sizes, device)


def stepwise(step: Callable[[], None], steps: int, sizes: Sizes, device: Device) -> Timed:
    """A round of `warm` untimed and `steps` timed steps."""

    def one_round() -> float:
        for _ in range(sizes.warm):
            step()
        synchronise(device)
        start = time.perf_counter()
        for _ in range(steps):
            step()
        synchronise(device)
        return steps * sizes.batch / (time.perf_counter() - start)

    return one_round


def synchronise(device: Device) -> None:
    if device.device.type == "cuda":
        torch.cuda.synchronize(device.device)


def measure(loops: dict[str, Timed], rounds: int) -> dict[str, list[float]]:
    """Images per second of every loop in every round."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    for number in range(rounds):
        for name, timed in loops.items():
            rates[name].append(timed())
        print(f"round {number + 1}/{rounds}: " + ", ".join(f"{name} {values[-1]:.0f}" for name, values in rates.items()), flush=True)
    return rates


def summary(rates: dict[str, list[float]]) -> dict[str, Any]:
    """Median and spread per loop; ratios are medians over rounds of numbers from the same round."""
    best = max((name for name in rates if name.startswith("plain")), key=lambda name: statistics.median(rates[name]))
    pairs = {"ours/plain": best, "ours/bare": "bare"}
    ratios = {name: spread([a / b for a, b in zip(rates["ours"], rates[other], strict=True)]) for name, other in pairs.items()}
    return {"images_per_second": {name: spread(values) for name, values in rates.items()}, "plain": best, "ratios": ratios}


def spread(values: list[float]) -> dict[str, Any]:
    digits = [round(value, 3) for value in values]
    return {"median": round(statistics.median(values), 3), "min": min(digits), "max": max(digits), "rounds": digits, "n": len(values)}


def account(args: argparse.Namespace, device: Device, sizes: Sizes, count: int) -> dict[str, Any]:
    """What the numbers depend on."""
    gpu = torch.cuda.get_device_name(device.device) if device.device.type == "cuda" else None
    return {
        "device": {**device_facts(), "gpu": gpu, "threads": torch.get_num_threads()},
        "versions": versions(),
        "teacher": "resnet18",
        "student": "resnet20",
        "batch": sizes.batch,
        "image": [3, SIZE, SIZE],
        "images": count,
        "data": "random bytes" if args.data_dir is None else "cifar10",
        "precision_ours": str(device.amp or torch.float32),
        "steps_per_round": {"plain": sizes.plain, "ours": sizes.ours, "bare": sizes.ours, "warm": sizes.warm},
    }


def report(result: dict[str, Any]) -> str:
    lines = []
    for name, values in result["images_per_second"].items():
        lines.append(f"{name:18} {values['median']:8.0f} images/s ({values['min']:.0f}-{values['max']:.0f}, n = {values['n']})")
    for name, values in result["ratios"].items():
        verdict = "met" if values["median"] >= BARS[name] else "MISSED"
        spread_text = f"{values['min']:.2f}-{values['max']:.2f}"
        lines.append(f"{name:18} {values['median']:8.2f} ({spread_text}); bar {BARS[name]:g}: {verdict} (plain: {result['plain']})")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
