"""Laws of the one counter."""

import torch
from torch import Tensor, nn

from core.layers import LayerInfo, count_macs, count_parameters, dry_run, evaluating, layer_infos
from core.students import light_cnn


def test_a_convolution_costs_its_weights_at_every_output_position() -> None:
    conv = nn.Conv2d(4, 6, (3, 1), stride=2, padding=(1, 0), groups=2)
    assert layer_infos(nn.Sequential(conv), (4, 8, 6)) == (
        LayerInfo(
            name="0", kind="conv", in_channels=4, out_channels=6, kernel=(3, 1), groups=2, weights=36, macs=36 * 4 * 3, out_hw=(4, 3)
        ),
    )


def test_a_linear_layer_costs_its_weights_once_per_token() -> None:
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(4, 5))
    (info,) = layer_infos(tokens, (3, 2, 2))
    assert (info.kind, info.weights, info.macs, info.kernel, info.out_hw) == ("linear", 20, 60, (), (1, 1))


class Backwards(nn.Module):
    """Defined in the opposite of its order of execution; one layer runs twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Conv2d(3, 3, 1)
        self.last = nn.Linear(3, 2)
        self.twice = nn.Conv2d(3, 3, 1, bias=False)
        self.first = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.twice(self.twice(self.first(x))).mean((2, 3)))
        return out


def test_layers_come_in_order_of_execution_without_those_that_never_run() -> None:
    assert [info.name for info in layer_infos(Backwards(), (3, 4, 4))] == ["first", "twice", "last"]


def test_a_layer_that_runs_twice_is_listed_once_and_counted_twice() -> None:
    infos = {info.name: info for info in layer_infos(Backwards(), (3, 4, 4))}
    assert (infos["twice"].weights, infos["twice"].macs) == (9, 2 * 9 * 16)
    assert count_macs(Backwards(), (3, 4, 4)) == sum(info.macs for info in infos.values())


def test_parameters_include_biases_and_norms_and_count_shared_ones_once() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    assert count_parameters(model) == 9 + 3 + 6 + 3


def test_counting_leaves_the_model_as_it_was() -> None:
    model = light_cnn(classes=3, channels=1, image_size=8, width=0.125).train()
    model.body[1].eval()  # a user may keep one norm frozen
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    layer_infos(model, (1, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_error() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1)).train()
    try:
        layer_infos(model, (2, 4, 4))
    except RuntimeError:
        assert model.training
        assert not model[0]._forward_hooks
    with evaluating(model):
        assert not model[0].training
    assert model[0].training


def test_counts_follow_the_models_own_dtype() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1)).double()
    assert count_macs(model, (1, 3, 3)) == 18
    assert dry_run(model, (1, 3, 3)).dtype == torch.float64
