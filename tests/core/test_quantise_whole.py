"""8 bits in one call: integers really stored, the same answers, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import TrainConfig
from core.errors import UserError
from core.quantise.layers import ActivationQuantiser, integer_layers
from core.simple import dequantize_model, quantize_model
from core.students import STUDENTS
from core.students.own import load_weights, save_weights
from core.train import Batch, Device, fit
from core.views import normalisation_of
from tests.tiny_data import CLASSES, SIZE, search_data, view_set
from tests.tiny_nets import PATTERNS, Pattern, Residual, conv, images, settled

CPU = Device(torch.device("cpu"), None)


def network() -> nn.Module:
    torch.manual_seed(0)
    return STUDENTS["resnet8"](classes=CLASSES, channels=1, image_size=SIZE)


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    def loss(logits: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(logits, batch.labels)

    return fit(network(), view_set(256), loss, TrainConfig(epochs=3, batch_size=32, lr=0.05), CPU, seed=0)


@pytest.fixture(scope="module")
def held() -> tuple[Tensor, Tensor]:
    """Normalised images that trained nothing, and their labels."""
    data = search_data(256)
    return normalisation_of(data.info)(data.search.images), data.search.labels


@torch.no_grad()
def top1(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs).argmax(1)


def test_every_weight_is_stored_as_int8_and_the_file_is_a_quarter(trained: nn.Module, tmp_path: Path) -> None:
    quantised = quantize_model(trained)
    assert len(integer_layers(quantised)) == sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in trained.modules())
    assert all(layer.weight.dtype == torch.int8 for layer in integer_layers(quantised).values())
    for model, name in ((trained, "float"), (quantised, "int8")):
        save_weights(model, tmp_path / name)
        torch.save(model.state_dict(), tmp_path / f"{name}.pt")
    assert (tmp_path / "int8").stat().st_size < 0.3 * (tmp_path / "float").stat().st_size
    assert (tmp_path / "int8.pt").stat().st_size < 0.4 * (tmp_path / "float.pt").stat().st_size


def test_a_stored_file_loads_into_a_network_quantised_anew(trained: nn.Module, tmp_path: Path, held: tuple[Tensor, Tensor]) -> None:
    quantised = quantize_model(trained)
    save_weights(quantised, tmp_path / "w.safetensors")
    torch.manual_seed(9)
    other = quantize_model(STUDENTS["resnet8"](classes=CLASSES, channels=1, image_size=SIZE))
    load_weights(other, tmp_path / "w.safetensors")
    with torch.no_grad():
        torch.testing.assert_close(other(held[0]), quantised(held[0]))


def test_a_trained_network_answers_as_before(trained: nn.Module, held: tuple[Tensor, Tensor]) -> None:
    inputs, labels = held
    before = top1(trained, inputs)
    assert (before == labels).float().mean() > 0.9  # else agreement would say little
    assert (top1(quantize_model(trained), inputs) == before).float().mean() > 0.97
    assert (top1(quantize_model(trained, inputs), inputs) == before).float().mean() > 0.95


def test_the_original_is_left_as_it_was(trained: nn.Module) -> None:
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    quantize_model(trained)
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    assert not integer_layers(trained)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: pattern.name)
def test_dequantising_gives_the_original_shape_and_the_quantised_answers(pattern: Pattern) -> None:
    model = settled(pattern.build())
    quantised = quantize_model(model)
    back = dequantize_model(quantised)
    assert {key: value.shape for key, value in back.state_dict().items()} == {key: value.shape for key, value in model.state_dict().items()}
    assert all(value.dtype != torch.int8 for value in back.state_dict().values())
    with torch.no_grad():
        expected, found, original = quantised(images(8)), back(images(8)), model(images(8))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - original).norm() < 0.05 * original.norm() + 1e-3


def test_calibrated_activations_lie_on_256_levels_and_leave_with_dequantising() -> None:
    model = settled(Residual())
    quantised = quantize_model(model, images(64))
    points = [module for module in quantised.modules() if isinstance(module, ActivationQuantiser)]
    assert points
    assert all(len(torch.unique(point(torch.linspace(-50, 50, 10_000)))) <= 256 for point in points)
    back = dequantize_model(quantised)
    assert not any(isinstance(module, ActivationQuantiser) for module in back.modules())
    with torch.no_grad():
        original = model(images(8))
        assert (back(images(8)) - original).norm() < 0.05 * original.norm()
        assert (quantised(images(8)) - original).norm() < 0.1 * original.norm()


def test_layers_are_dequantised_where_their_integers_are_whatever_device_is_the_default() -> None:
    quantised = quantize_model(settled(Residual()), images(16))
    with torch.device("meta"):
        back = dequantize_model(quantised)
    assert {value.device.type for value in back.state_dict().values()} == {"cpu"}


@pytest.mark.parametrize(
    "attention", [nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.MultiheadAttention(8, 2, batch_first=True)]
)
def test_modules_that_read_the_weights_of_their_layers_stay_in_float(attention: nn.Module) -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.attention, self.head = nn.Conv2d(3, 8, 4, stride=4), attention, nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patch(x).flatten(2).transpose(1, 2)
            mixed = (
                self.attention(tokens, tokens, tokens)[0] if isinstance(self.attention, nn.MultiheadAttention) else self.attention(tokens)
            )
            return self.head(mixed.mean(1))

    quantised = quantize_model(Tokens())
    assert set(integer_layers(quantised)) == {"patch", "head"}
    with torch.no_grad():
        assert quantised(images(2)).isfinite().all()


def test_a_layer_under_two_names_stays_one_layer() -> None:
    shared = conv(3, 3)
    quantised = quantize_model(nn.Sequential(shared, nn.ReLU(), shared))
    assert isinstance(quantised, nn.Sequential)
    assert quantised[0] is quantised[2]
    assert quantised[0].weight.dtype == torch.int8


def test_a_single_layer_is_a_network_too() -> None:
    back = dequantize_model(quantize_model(nn.Linear(4, 3, bias=False)))
    assert isinstance(back, nn.Linear)
    assert back.bias is None


def broken() -> nn.Module:
    """A network that has diverged."""
    layer = nn.Linear(2, 2)
    layer.weight.data[0, 0] = torch.nan
    return nn.Sequential(layer)


@pytest.mark.parametrize(
    ("work", "law"),
    [
        (lambda: quantize_model(nn.ReLU()), "needs nn.Conv2d or nn.Linear"),
        (lambda: quantize_model(broken()), "needs finite weights, but those of 0 are not"),
        (lambda: dequantize_model(nn.Linear(2, 2)), "needs a network from quantize_model"),
        (lambda: quantize_model(Residual(), torch.zeros(3, 8, 8)), "images must be normalised"),
        (lambda: quantize_model(Residual(), torch.zeros(2, 1, 8, 8)), r"images must fit the network, but Residual .* = \(1, 8, 8\) \("),
        (lambda: quantize_model(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), torch.zeros(2, 3, 9, 9)), "images must fit the network"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(work: object, law: str) -> None:
    with pytest.raises(UserError, match=law) as error:
        work()  # type: ignore[operator]
    assert "\n" not in str(error.value)
