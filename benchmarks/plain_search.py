"""The search that a user writes by hand: Optuna's TPE around a plain PyTorch loop, every trial in full. search_efficiency.py's first arm.

Training is what tutorials and mdistiller do: torchvision transforms in a DataLoader, float32, SGD, the teacher's forward in every
step. A trial trains its pruned shapes from scratch, the last epoch with quantised weights, then builds, scores and times an ONNX
Runtime session with 10 warm-up calls and the median of 50. TPE draws its first 10 trials at random, as it does by default: in a
search of 12 it chooses two. What the two arms share is what their numbers must have in common: the space, the networks, the export
and the bytes of the weight file.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import optuna
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.distil_throughput import Pictures
from core.candidate import Candidate, DistilPlan
from core.compress import draft, quantise, resolve
from core.config import Config
from core.data.types import ImageSet, SearchData
from core.errors import TrialError
from core.losses import kd_loss
from core.quantise.setting import Penalty
from core.runtimes import running_runtime
from core.teacher import Teacher, build_network
from search.sample import sample
from search.space import Space

CALLS = (10, 50)
"""To warm up, and timed."""
QUANTISED_EPOCHS = 1
EVALUATED = 250
"""Images per call when a session is scored."""


@dataclass(frozen=True)
class Budget:
    """Of one arm of one seed. A trial's last epoch trains quantised weights."""

    trials: int
    epochs: int
    lr: float = 0.1
    quantised_lr: float = 0.01
    batch_size: int = 128
    workers: int = 2


@dataclass(frozen=True)
class PlainSearch:
    """`points` gets (seconds since `start`, accuracy, bytes, ms) of every finished trial; the folder `models` its ONNX file."""

    space: Space
    config: Config
    data: SearchData
    teacher: Teacher
    budget: Budget
    start: float
    points: list[tuple[float, float, float, float]]
    models: Path

    def run(self, seed: int, on_point: Callable[[], None]) -> None:
        """All trials."""
        study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed))
        torch.manual_seed(seed)

        def objective(trial: optuna.Trial) -> tuple[float, float, float]:
            model, accuracy, size, ms = self.trial(sample(self.space, trial))
            (self.models / name_of(len(self.points))).write_bytes(model)
            self.points.append((time.perf_counter() - self.start, accuracy, size, ms))
            on_point()
            return accuracy, size, ms

        study.optimize(objective, n_trials=self.budget.trials, catch=(TrialError,))

    def trial(self, candidate: Candidate) -> tuple[bytes, float, float, float]:
        """(ONNX file, accuracy, bytes, ms)"""
        shape, runtime = self.data.info.shape, running_runtime(self.config.runtime.name)
        dense = build_network(candidate.student, candidate.width, self.config.teacher, self.data.info)
        network, plan = resolve(dense.eval(), candidate, shape, runtime)
        images = self.data.train
        assert isinstance(images, ImageSet)
        self.train(network, images, candidate.distil, self.budget.epochs - QUANTISED_EPOCHS, self.budget.lr)

        def finetune(model: nn.Module, penalty: Penalty | None = None) -> None:
            self.train(model, images, candidate.distil, QUANTISED_EPOCHS, self.budget.quantised_lr)

        calibration = self.teacher.normalise(images.images[: self.config.quantise.calibration_images])
        model, _ = quantise(network, draft(network, plan, shape, runtime), "lsq", finetune, calibration, runtime)
        exported = model.model.SerializeToString()
        session = open_session(exported, self.config.runtime.threads)
        return exported, self.accuracy(session), float(len(model.packed)), milliseconds(session, (self.config.runtime.batch, *shape))

    def train(self, network: nn.Module, images: ImageSet, plan: DistilPlan, epochs: int, lr: float) -> None:
        """mdistiller's loop with cosine decay."""
        loader = DataLoader(Pictures(images, self.teacher.normalise), self.budget.batch_size, shuffle=True, num_workers=self.budget.workers)
        optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, math.ceil(len(images) / self.budget.batch_size) * epochs)
        teacher: nn.Module = self.teacher.model
        network.train()
        for _ in range(epochs):
            for inputs, labels in loader:
                logits = network(inputs)
                with torch.no_grad():
                    target = teacher(inputs)
                loss = plan.ce_weight * F.cross_entropy(logits, labels) + plan.weight * kd_loss(logits, target, plan.temperature)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        network.eval()

    def accuracy(self, session: onnxruntime.InferenceSession) -> float:
        """On the search split."""
        split = self.data.search
        assert isinstance(split, ImageSet)
        parts = [call(session, self.teacher.normalise(part)) for part in split.images.split(EVALUATED)]
        return float((torch.from_numpy(np.concatenate(parts)).argmax(1) == split.labels).float().mean())


def name_of(point: int) -> str:
    """The ONNX file of an arm's `point`-th point."""
    return f"{point:03}.onnx"


def open_session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def call(session: onnxruntime.InferenceSession, images: Tensor) -> np.ndarray:
    logits: np.ndarray = session.run(None, {"images": images.contiguous().numpy()})[0]
    return logits


def milliseconds(session: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> float:
    """Median of one call's."""
    images, times = torch.zeros(shape), []
    for number in range(sum(CALLS)):
        begin = time.perf_counter()
        call(session, images)
        if number >= CALLS[0]:
            times.append(1000 * (time.perf_counter() - begin))
    return statistics.median(times)
