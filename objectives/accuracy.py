"""Accuracy of the engine, and its agreement with PyTorch on the same images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.candidate import EngineArtifact
from core.engines import EngineHost
from core.errors import EngineMismatch
from core.train import share

TOLERANCE = 0.02
"""Share of images whose top-1 may differ beyond near ties."""
NEAR_TIE = 0.1
"""Logits closer than this share of the standard deviation of all logits are a tie, which requantisation or bf16 may turn."""


@dataclass(frozen=True)
class Score:
    """Shares in [0, 1] of `images` images."""

    accuracy: float
    agreement: float
    images: int
    artifact: EngineArtifact


def score(engines: EngineHost, model: Path, graph: nn.Module, images: Iterable[Tensor], labels: Tensor) -> Score:
    """Accuracy of the engine of `model` on normalised images with labels (N,); `images` come in parts, float32 (B, C, H, W).

    Raises EngineMismatch when more than 2 % of the images (at least 2 images) get another top-1 from `graph` in PyTorch, near
    ties apart. `Score.agreement` counts every difference.
    """
    answers = list(_answers(engines, model, graph, images))
    top1 = torch.cat([torch.from_numpy(np.asarray(logits)).argmax(1) for logits, _, _ in answers])
    expected = torch.cat([simulated for _, _, simulated in answers])
    differing = int((top1 != expected.argmax(1)).sum())
    refused = int(contradicts(expected, top1).sum())
    allowed = max(2, math.ceil(TOLERANCE * len(labels)))
    if refused > allowed:
        raise EngineMismatch(
            f"engine and PyTorch must agree on the top-1 of all but {allowed} of {len(labels)} images, but differ on {refused}; "
            "the exported model was refused"
        )
    accuracy = share(top1 == labels)
    return Score(accuracy, 1.0 - differing / len(labels), len(labels), answers[0][1])


def _answers(
    engines: EngineHost, model: Path, graph: nn.Module, images: Iterable[Tensor]
) -> Iterator[tuple[np.ndarray, EngineArtifact, Tensor]]:
    """Engine's logits, what ran, and the simulation's logits of each part; both compute at the same time, the engine in its child."""
    beside = ThreadPoolExecutor(1)
    try:
        for part in images:
            simulated = beside.submit(simulate, graph, part)
            yield (*engines.predict(model, part.numpy()), simulated.result())
    finally:
        beside.shutdown(wait=False, cancel_futures=True)


def contradicts(expected: Tensor, top1: Tensor) -> Tensor:
    """Where the class `top1` (N,) is clearly not that of the logits `expected` (N, K); bool (N,).

    Not at a near tie: there rounding may choose, and a barely trained network has many.
    """
    gap = expected.amax(1) - expected.gather(1, top1[:, None]).squeeze(1)
    return gap > NEAR_TIE * expected.std()


@torch.inference_mode()
def simulate(graph: nn.Module, images: Tensor, batch: int = 64) -> Tensor:
    """Logits (N, K) of the quantised graph in PyTorch. Small parts in channels-last stay in the processor's caches: half of the time."""
    graph.to(memory_format=torch.channels_last)
    return torch.cat([graph(part.contiguous(memory_format=torch.channels_last)) for part in images.split(batch)])
