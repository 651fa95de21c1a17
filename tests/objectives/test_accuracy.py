"""The engine is scored, not the simulation, and refused when the two disagree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from core.config import RuntimeConfig
from core.engines import EngineHost
from core.errors import EngineMismatch
from core.export import export_onnx
from objectives.accuracy import contradicts, score, simulate
from tests.tiny_nets import CLASSES, SHAPE, Residual, images, plan_of, quantised, settled

X = images(100, seed=9)


@pytest.fixture(scope="module")
def graph() -> nn.Module:
    torch.manual_seed(0)
    model = settled(Residual())
    return quantised(model, plan_of(model))


@pytest.fixture(scope="module")
def model(graph: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    path.write_bytes(export_onnx(graph, SHAPE).SerializeToString())
    return path


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineHost]:
    with EngineHost(RuntimeConfig(timeout_s=60.0), tmp_path_factory.mktemp("engines")) as host:
        yield host


def test_accuracy_is_the_share_of_labels_that_the_engine_meets(engines: EngineHost, model: Path, graph: nn.Module) -> None:
    labels = simulate(graph, X).argmax(1)
    labels[:25] = (labels[:25] + 1) % CLASSES
    scored = score(engines, model, graph, X.split(70), labels)
    assert scored.images == 100
    assert scored.agreement >= 0.98
    assert scored.accuracy == pytest.approx(0.75, abs=0.02)
    assert scored.artifact.model_path == str(model)
    assert scored.artifact.int8_layers is not None
    assert scored.artifact.int8_layers > 0


class Shifted(nn.Module):
    """A simulation that is wrong about a given number of images."""

    def __init__(self, graph: nn.Module, wrong: int) -> None:
        super().__init__()
        self.graph, self.wrong = graph, wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.graph(x)
        logits[: self.wrong] = logits[: self.wrong].roll(1, 1)
        return logits


def test_disagreement_beyond_the_tolerance_is_refused(engines: EngineHost, model: Path, graph: nn.Module) -> None:
    labels = torch.zeros(100, dtype=torch.int64)
    with pytest.raises(EngineMismatch, match=r"all but 2 of 100 images, but differ on \d+"):
        score(engines, model, Shifted(graph, 10), [X], labels)


def test_two_images_may_always_differ(engines: EngineHost, model: Path, graph: nn.Module) -> None:
    scored = score(engines, model, Shifted(graph, 2), [X[:20]], torch.zeros(20, dtype=torch.int64))
    assert scored.agreement == pytest.approx(0.9)


def test_the_simulation_does_not_depend_on_its_batch(graph: nn.Module) -> None:
    torch.testing.assert_close(simulate(graph, X, batch=7), simulate(graph, X))


def test_a_near_tie_contradicts_nothing_and_a_clear_gap_does() -> None:
    logits = torch.tensor([[5.0, 4.99, 0.0], [5.0, 3.0, 0.0], [5.0, 4.99, 0.0]])
    assert contradicts(logits, torch.tensor([1, 1, 0])).tolist() == [False, True, False]
