"""PyTorch as the reference: timed by the protocol of the engines, and the process is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.config import RuntimeConfig
from core.eager import time_eager
from core.errors import MeasurementError
from core.measuring import measuring

QUICK = RuntimeConfig(warmup_s=0.0, max_s=0.1, batch=3)


class Counting(nn.Module):
    """Counts its calls and remembers what they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.shapes.append(images.shape)
        assert torch.is_inference_mode_enabled()
        assert torch.get_num_threads() == 1
        return images.mean((1, 2, 3))


def test_eager_is_timed_by_the_same_protocol_on_the_batch_asked_for() -> None:
    network = Counting().train()
    report = time_eager(network, (1, 8, 8), QUICK)
    assert set(network.shapes) == {torch.Size((3, 1, 8, 8))}
    assert len(network.shapes) > report.samples > 0
    assert not network.training
    assert (report.runtime, report.precision, report.batch, report.threads) == ("torch", "f32", 3, 1)
    assert 0 < report.ci_ms[0] <= report.p50_ms <= report.ci_ms[1]
    assert report.reference_ms is not None


def test_a_larger_network_takes_longer() -> None:
    wide = nn.Sequential(*(nn.Conv2d(64, 64, 3) for _ in range(8)))
    reports = [time_eager(network, (64, 24, 24), QUICK) for network in (wide[:1], wide)]
    assert reports[1].p50_ms > reports[0].p50_ms


def test_the_process_is_left_as_it_was() -> None:
    threads, denormal = torch.get_num_threads(), torch.tensor([1e-40])
    time_eager(nn.Identity(), (1, 4, 4), QUICK.model_copy(update={"threads": 1}))
    assert torch.get_num_threads() == threads
    assert float(denormal * 1) > 0
    assert not torch.is_inference_mode_enabled()


def test_it_waits_for_another_measurement_as_engines_do() -> None:
    with measuring(60.0), pytest.raises(MeasurementError):
        time_eager(nn.Identity(), (1, 4, 4), QUICK.model_copy(update={"wait_s": 0.0}))
