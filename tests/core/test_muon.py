import pytest
import torch
from torch import nn

from core.config import TrainConfig
from core.muon import Muon, is_orthogonal, orthogonalise
from core.train import _optimiser


@pytest.mark.parametrize("shape", [(5, 16, 144), (2, 64, 27), (1, 150, 300)], ids=str)
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_orthogonalising_keeps_the_singular_directions() -> None:
    matrix = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)
    turned = left.T @ orthogonalise(matrix)[0] @ right.T
    assert torch.allclose(turned, torch.diag(turned.diagonal()), atol=1e-3)


def test_a_cpu_that_does_not_multiply_bfloat16_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would emulate it, at a tenth of the speed. In float32 the singular directions of large matrices are kept to its precision."""
    matrix = torch.randn(1, 150, 300, generator=torch.Generator().manual_seed(1))
    left, _, right = torch.linalg.svd(matrix[0], full_matrices=False)

    def error(bf16: bool) -> float:
        monkeypatch.setattr("core.muon.multiplies_bf16", lambda: bf16)
        turned = left.T @ orthogonalise(matrix)[0] @ right.T
        return float((turned - torch.diag(turned.diagonal())).abs().max())

    assert error(bf16=False) < 1e-4
    assert error(bf16=True) > 1e-3


def test_orthogonalising_does_not_depend_on_the_length() -> None:
    matrix = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(orthogonalise(matrix), orthogonalise(1e4 * matrix), atol=1e-4)


def test_a_weight_keeps_its_length_and_moves_by_the_learning_rate() -> None:
    conv = nn.Conv2d(8, 16, 3)
    before = conv.weight.detach().clone()
    conv(torch.randn(2, 8, 6, 6)).square().sum().backward()
    Muon([{"params": [conv.weight], "lr": 0.01, "momentum": 0.6, "orthogonal": True}]).step()
    assert torch.allclose(conv.weight.detach().norm(), before.norm(), rtol=1e-5)
    assert 0.005 < float((conv.weight.detach() - before).norm() / before.norm()) < 0.0101


def test_the_other_parameters_move_as_torch_moves_them_by_sgd() -> None:
    torch.manual_seed(0)
    mine, theirs = nn.Linear(6, 3), nn.Linear(6, 3)
    theirs.load_state_dict(mine.state_dict())
    muon = Muon([{"params": list(mine.parameters()), "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "orthogonal": False}])
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(5):
        images = torch.randn(4, 6)
        for model, optimiser in ((mine, muon), (theirs, sgd)):
            optimiser.zero_grad()
            model(images).square().sum().backward()
            optimiser.step()
    for a, b in zip(mine.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_a_zero_gradient_leaves_finite_weights() -> None:
    conv = nn.Conv2d(4, 8, 3)
    before = conv.weight.detach().clone()
    conv.weight.grad = torch.zeros_like(conv.weight)
    Muon([{"params": [conv.weight], "lr": 0.1, "momentum": 0.6, "orthogonal": True}]).step()
    assert torch.allclose(conv.weight, before, atol=1e-6)


def test_a_convolution_that_starts_at_zero_trains_and_so_does_a_network_without_biases() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 2, 3, bias=False))
    nn.init.zeros_(model[1].weight)
    optimiser = _optimiser(model, TrainConfig(optimiser="muon", lr=0.05, rest_lr=0.3, momentum=0.6))
    model(torch.randn(2, 3, 8, 8)).square().sum().add(model(torch.ones(2, 3, 8, 8)).sum()).backward()
    optimiser.step()
    assert bool(model[1].weight.detach().any())


def test_depthwise_filters_linear_layers_and_biases_go_by_sgd() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 2))
    optimiser = _optimiser(model, TrainConfig(optimiser="muon", lr=0.05, rest_lr=0.3, momentum=0.6))
    groups = {group["orthogonal"]: [] for group in optimiser.param_groups}
    for group in optimiser.param_groups:
        groups[group["orthogonal"]] += group["params"]
        assert group["lr"] == (0.05 if group["orthogonal"] else 0.3)
    assert [p is model[0].weight for p in groups[True]] == [True]
    assert len(groups[False]) == len(list(model.parameters())) - 1
    assert not is_orthogonal(model[1].weight)
