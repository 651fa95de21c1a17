"""One training loop: reproducible, loud when it diverges, silent when there is nothing to do."""

from __future__ import annotations

import copy
import platform

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.config import HardwareConfig, TrainConfig
from core.errors import TrainingDiverged, UserError
from core.hardware import X86
from core.students import STUDENTS
from core.train import Batch, Device, _schedule, check_sizes, fit, open_device, predict
from tests.tiny_data import CLASSES, SIZE, image_set, view_set

CPU = Device(torch.device("cpu"), None)
BF16 = Device(torch.device("cpu"), torch.bfloat16)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return STUDENTS["light_cnn"](classes=CLASSES, channels=1, image_size=SIZE, width=0.25)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(logits.float(), batch.labels)


def train(model: nn.Module, device: Device = CPU, seed: int = 0, **options: object) -> nn.Module:
    config = TrainConfig(**{"epochs": 2.0, "batch_size": 16, "lr": 0.05, **options})  # type: ignore[arg-type]
    return fit(model, view_set(), cross_entropy, config, device, seed=seed)


def state(model: nn.Module) -> list[Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("device", [CPU, BF16])
def test_equal_seeds_give_equal_weights_and_others_do_not(device: Device) -> None:
    first, second, third = (state(train(network(), device, seed)) for seed in (3, 3, 4))
    assert same(first, second)
    assert not same(first, third)


def test_dropout_is_reproducible_whatever_was_drawn_before() -> None:
    torch.manual_seed(0)
    start = WithDropout()
    first = state(train(copy.deepcopy(start)))
    torch.rand(7)
    assert same(first, state(train(copy.deepcopy(start))))


@pytest.mark.parametrize("device", [CPU, BF16])
@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
def test_it_learns_what_is_plain_to_see(device: Device, optimiser: str) -> None:
    lr = 0.05 if optimiser == "sgd" else 0.01
    model = train(network(), device, epochs=6.0, optimiser=optimiser, lr=lr)
    unseen = image_set(40, seed=5)
    logits = predict(model, unseen.images, view_set().normalise, CPU, amp=False)
    assert (logits.argmax(1) == unseen.labels).float().mean() > 0.9


@pytest.mark.parametrize("epochs", [0.0, 0.01])
def test_no_step_leaves_the_weights(epochs: float) -> None:
    model = network()
    before = state(model)
    assert train(model, epochs=epochs) is model
    assert same(before, state(model))
    assert not model.training


def test_the_network_comes_back_in_eval_mode_and_is_the_one_that_was_given() -> None:
    model = network()
    assert train(model) is model
    assert not model.training


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training(bad: float) -> None:
    with pytest.raises(TrainingDiverged, match="must stay finite"):
        fit(network(), view_set(), lambda logits, batch: logits.sum() * bad, TrainConfig(epochs=1), CPU, seed=0)


def test_a_learning_rate_that_is_far_too_high_diverges() -> None:
    with pytest.raises(TrainingDiverged):
        train(network(), epochs=10.0, lr=1e12, weight_decay=1.0)


def test_parts_of_an_epoch_are_trained_and_reported() -> None:
    calls: list[tuple[float, float, float, float]] = []
    config = TrainConfig(epochs=1.5, batch_size=16, lr=0.01)
    fit(network(), view_set(), cross_entropy, config, CPU, seed=0, on_epoch=lambda *numbers: calls.append(numbers))
    assert [call[:2] for call in calls] == [(1.0, 1.5), (1.5, 1.5)]
    assert all(rate > 0 and loss > 0 for _, _, rate, loss in calls)


@pytest.mark.parametrize("count", [33, 17])
def test_a_rest_of_one_image_does_not_end_the_training(count: int) -> None:
    """Airbench leaves one pixel of 8: a batch of one image has no batch statistics."""
    torch.manual_seed(0)
    model = STUDENTS["airbench"](classes=CLASSES, channels=1, image_size=SIZE, width=0.0625)
    seen: list[int] = []

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        seen.extend(batch.indices.tolist())
        return cross_entropy(logits, batch)

    fit(model, view_set(count), loss, TrainConfig(epochs=1, batch_size=16), CPU, seed=0)
    assert sorted(seen) == list(range(count))


def test_epochs_cycle_through_the_views_and_every_image_is_seen_once_in_each() -> None:
    seen: dict[int, list[int]] = {}

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        seen.setdefault(len(seen) - 1 if seen and len(seen[len(seen) - 1]) < 96 else len(seen), []).extend(batch.indices.tolist())
        views.append(batch.view)
        return cross_entropy(logits, batch)

    views: list[int] = []
    fit(network(), view_set(), loss, TrainConfig(epochs=3, batch_size=48), CPU, seed=0)
    assert views == [0, 0, 1, 1, 0, 0]
    assert all(sorted(order) == list(range(96)) for order in seen.values())
    assert seen[0] != seen[2]


def test_averaged_weights_are_between_start_and_end() -> None:
    start, end, averaged = network(), train(network()), train(network(), ema=0.99)
    first, last, between = (dict(m.named_parameters())["classifier.weight"].detach() for m in (start, end, averaged))
    assert (between - first).norm() < (last - first).norm()


@pytest.mark.parametrize("ema", [0.9, 0.992, 0.9999])  # each is not exact in float32
def test_averaging_leaves_integers_as_they_are(ema: float) -> None:
    """A codebook's indices, say."""
    model = network()
    model.register_buffer("indices", torch.arange(1000))
    assert torch.equal(train(model, ema=ema).indices, torch.arange(1000))  # type: ignore[arg-type]


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw", "muon"])
def test_every_optimiser_lowers_the_loss(optimiser: str) -> None:
    losses: list[float] = []
    config = TrainConfig(epochs=6, batch_size=16, optimiser=optimiser, lr=0.01, schedule="linear")  # type: ignore[arg-type]
    fit(network(), view_set(), cross_entropy, config, CPU, seed=0, on_epoch=lambda *numbers: losses.append(numbers[-1]))
    assert losses[-1] < 0.9 * losses[0]


def test_images_are_small_early_and_whole_at_the_end() -> None:
    sizes: list[int] = []

    def look(logits: Tensor, batch: Batch) -> Tensor:
        sizes.append(batch.images.shape[-1])
        return cross_entropy(logits, batch)

    config = TrainConfig(epochs=4, batch_size=16, lr=0.05, early_sizes=((SIZE // 2, 0.5), (SIZE - 2, 0.75)))
    fit(network(), view_set(), look, config, CPU, seed=0)
    quarter = len(sizes) // 4
    assert sizes == [SIZE // 2] * 2 * quarter + [SIZE - 2] * quarter + [SIZE] * quarter


def test_a_network_that_sees_one_size_alone_is_refused_before_it_trains() -> None:
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE**2, 4))
    recipes = {"finetune": TrainConfig(), "parent.train": TrainConfig(early_sizes=((SIZE // 2, 0.5),))}
    side = SIZE // 2
    law = rf"parent\.train\.early_sizes needs .*, but the student x does not take {side} x {side} \(.+\); leave early_sizes out"
    with pytest.raises(UserError, match=law):
        check_sizes(fixed, torch.zeros(2, 3, SIZE, SIZE), recipes, "the student x")
    check_sizes(nn.Sequential(nn.AdaptiveAvgPool2d(1), fixed[0]), torch.zeros(2, 3, SIZE, SIZE), recipes, "the student y")
    check_sizes(fixed, torch.zeros(2, 3, SIZE, SIZE), {"finetune": TrainConfig()}, "the student x")


def test_sizes_that_end_before_they_begin_are_refused() -> None:
    with pytest.raises(ValueError, match=r"each size must end after the one before it, but the shares are 0\.5, 0\.5"):
        TrainConfig(early_sizes=((4, 0.5), (6, 0.5)))


@pytest.mark.parametrize("schedule", ["one_cycle", "linear", "cosine", "step"])
def test_every_schedule_trains(schedule: str) -> None:
    model = network()
    before = state(model)
    train(model, schedule=schedule)
    assert not same(before, state(model))
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_weight_decay_acts_on_weights_and_not_on_norms_or_biases() -> None:
    model = network()
    fit(
        model,
        view_set(),
        lambda logits, batch: 0.0 * logits.sum(),
        TrainConfig(epochs=1, lr=0.1, weight_decay=0.5, batch_size=16),
        CPU,
        seed=0,
    )
    fresh = network()
    assert model.classifier.weight.norm() < 0.95 * fresh.classifier.weight.norm()  # type: ignore[union-attr, operator]
    assert torch.equal(model.classifier.bias, fresh.classifier.bias)  # type: ignore[arg-type, union-attr]


def test_logits_come_back_on_the_cpu_whatever_the_batch_size() -> None:
    model, images = network().eval(), image_set(30).images
    whole = predict(model, images, view_set().normalise, CPU, amp=False)
    assert whole.shape == (30, CLASSES)
    torch.testing.assert_close(predict(model, images, view_set().normalise, CPU, amp=False, batch=7), whole)
    assert (predict(model, images, view_set().normalise, BF16, amp=True) - whole).norm() < 0.05 * whole.norm()


X86_BF16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
BF16_HERE = torch.bfloat16 if (X86_BF16 if platform.machine() in X86 else torch.ops.mkldnn._is_mkldnn_bf16_supported()) else None
"""What PyTorch itself says of this CPU; on x86 oneDNN calls supported what it emulates, too."""


@pytest.mark.parametrize(("amp", "dtype"), [("off", None), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("auto", BF16_HERE)])
def test_the_precision_of_this_cpu(amp: str, dtype: torch.dtype | None) -> None:
    assert open_device(HardwareConfig(device="cpu", amp=amp, threads=1)) == Device(torch.device("cpu"), dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "cpu:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"hardware\.device must be a device of this machine"):
        open_device(HardwareConfig(device=name))


def _rates(**options: object) -> list[float]:
    """The learning rate of every step of a run of 48."""
    config = TrainConfig(**{"lr": 1.0, "schedule": "step", **options})  # type: ignore[arg-type]
    return [_schedule(config, 48)(step) for step in range(48)]


def test_the_published_steps_are_at_150_180_and_210_of_240_epochs() -> None:
    assert [step / 48 * 240 for step in range(1, 48) if _rates()[step] != _rates()[step - 1]] == [150, 180, 210]
    assert _rates()[-1] == pytest.approx(1e-3)


def test_steps_are_where_the_marks_are() -> None:
    assert [step / 48 for step in range(1, 48) if _rates(marks=(0.5, 0.25))[step] != _rates(marks=(0.5, 0.25))[step - 1]] == [0.25, 0.5]
    assert set(_rates(marks=())) == {1.0}


@pytest.mark.parametrize("mark", [0.0, 1.0])
def test_a_mark_is_inside_the_run(mark: float) -> None:
    with pytest.raises(ValueError, match="marks"):
        TrainConfig(marks=(0.5, mark))


def test_sgd_looks_ahead_unless_told_not_to() -> None:
    """Nesterov 1983: the two differ after the second step, and not without momentum."""
    ahead, behind = (state(train(network(), nesterov=nesterov)) for nesterov in (True, False))
    assert not same(ahead, behind)
    ahead, behind = (state(train(network(), nesterov=nesterov, momentum=0.0)) for nesterov in (True, False))
    assert same(ahead, behind)


def test_a_loss_knows_how_much_of_the_run_is_done() -> None:
    done: list[float] = []

    def loss(logits: Tensor, batch: Batch) -> Tensor:
        done.append(batch.progress)
        return cross_entropy(logits, batch)

    fit(network(), view_set(), loss, TrainConfig(epochs=1.5, batch_size=16), CPU, seed=0)
    assert done == pytest.approx([(step + 1) / 9 for step in range(9)])
