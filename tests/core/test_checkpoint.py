"""A training that was interrupted ends as if it had not been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.checkpoint import forget
from core.config import TrainConfig
from core.train import Batch, Device, fit
from tests.tiny_data import CLASSES, view_set

CPU = Device(torch.device("cpu"), None)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES))


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits.float(), batch.labels)


def train(
    model: nn.Module, checkpoint: Path | None = None, until: float = 99.0, seed: int = 3, taught_by: str = "", **options: object
) -> list[float]:
    """The epochs that were trained; interrupted when `until` epochs are reported."""
    epochs: list[float] = []

    def on_epoch(done: float, *numbers: float) -> None:
        epochs.append(done)
        if done >= until:
            raise KeyboardInterrupt

    config = TrainConfig(**{"epochs": 4.0, "batch_size": 16, "lr": 0.05, **options})  # type: ignore[arg-type]
    kept: dict[str, Any] = {"checkpoint": checkpoint, "taught_by": taught_by}
    fit(model, view_set(), cross_entropy, config, CPU, seed=seed, on_epoch=on_epoch, **kept)
    return epochs


@pytest.mark.parametrize("options", [{}, {"optimiser": "adamw", "lr": 0.01}, {"optimiser": "muon", "lr": 0.02}, {"ema": 0.9}])
def test_an_interrupted_training_goes_on_from_its_last_epoch_and_gives_the_same_weights(options: dict[str, object], tmp_path: Path) -> None:
    whole, broken = network(), network()
    train(whole, **options)
    path = tmp_path / "folder" / "distil.part"
    with pytest.raises(KeyboardInterrupt):
        train(broken, path, until=3.0, **options)
    again = network()
    assert train(again, path, **options) == [3.0, 4.0]
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


def test_a_training_that_was_complete_is_not_done_again(tmp_path: Path) -> None:
    first, second = network(), network()
    train(first, tmp_path / "distil.part")
    assert train(second, tmp_path / "distil.part") == []
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert not second.training


def test_a_checkpoint_of_another_version_counts_as_none(tmp_path: Path) -> None:
    path = tmp_path / "distil.part"
    torch.save({"step": 5, "generator": torch.get_rng_state(), "model": network().state_dict()}, path)
    assert train(network(), path) == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("other", [{"lr": 0.01}, {"label_smoothing": 0.1}, {"epochs": 5.0}, {"seed": 4}, {"taught_by": "another"}])
def test_a_checkpoint_of_another_training_counts_as_none(other: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "distil.part"
    with pytest.raises(KeyboardInterrupt):
        train(network(), path, until=3.0)
    alone, beside = network(), network()
    epochs = train(alone, **other)
    assert train(beside, path, **other) == epochs
    assert epochs[0] == 1.0
    assert all(torch.equal(a, b) for a, b in zip(alone.state_dict().values(), beside.state_dict().values(), strict=True))


def test_checkpoints_are_forgotten_and_nothing_else_is(tmp_path: Path) -> None:
    train(network(), tmp_path / "distil.part", epochs=1.0)
    (tmp_path / "model.onnx").write_bytes(b"x")
    forget(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
