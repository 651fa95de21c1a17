"""One training loop for teachers, parents, students and quantised students: resident data, AMP, channels-last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.candidate import fingerprint
from core.checkpoint import Generators, Stateful, keep, resume
from core.config import HardwareConfig, TrainConfig
from core.data.types import Images
from core.errors import Disturbed, TrainingDiverged, TrialError, UserError, one_line
from core.hardware import multiplies_bf16
from core.muon import Muon, is_orthogonal
from core.views import ViewedSet
from core.workarounds import safe_convolutions


@dataclass(frozen=True)
class Batch:
    """What one step learns from."""

    images: Tensor
    """float32 (B, C, H, W), augmented and normalised."""
    labels: Tensor
    """int64 (B,); -1 where a set has none."""
    indices: Tensor
    """int64 (B,), into the training split."""
    view: int
    progress: float
    """In (0, 1]: share of the run's steps, this one included."""
    whole: Tensor | None = None
    """The images at their own size, where `early_sizes` has made `images` smaller: what a live teacher answers to."""


LossFn = Callable[[Any, Batch], Tensor]
"""(what the forward gives, its batch) -> scalar"""
ForwardFn = Callable[[nn.Module, Tensor], Any]
"""(model, images (B, C, H, W)) -> what the loss looks at"""
EpochFn = Callable[..., None]
"""(epochs done, epochs in all, images per second, mean loss since the last call)"""


class Chooser(Stateful, Protocol):
    """Who takes part in an epoch, such as `core.infobatch.InfoBatch`."""

    def stay(self, order: Tensor, epoch: int, /) -> Tensor:
        """Of the indices `order` (N,) those that epoch `epoch` sees, in their order."""


@dataclass(frozen=True)
class Device:
    """Where training runs and in which precision; `amp` None means float32."""

    device: torch.device
    amp: torch.dtype | None

    def autocast(self) -> torch.autocast:
        """The autocast context of this device."""
        return torch.autocast(self.device.type, dtype=self.amp or torch.bfloat16, enabled=self.amp is not None)


def open_device(config: HardwareConfig) -> Device:
    """The training device of a configuration. Raises UserError when it is not there."""
    name = config.device if config.device != "auto" else ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"hardware.device must be a device of this machine, but got {name!r} ({reason}); use auto or cpu") from error
    if config.threads:
        torch.set_num_threads(config.threads)
    return Device(device, _amp_dtype(config.amp, device))


def _amp_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    if amp == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if multiplies_bf16() else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "off": None}[amp]


def call(model: nn.Module, images: Tensor) -> Tensor:
    """The model's own forward."""
    logits: Tensor = model(images)
    return logits


def fit(
    model: nn.Module,
    data: ViewedSet,
    loss_fn: LossFn,
    config: TrainConfig,
    device: Device,
    *,
    seed: int,
    on_epoch: EpochFn | None = None,
    forward: ForwardFn = call,
    checkpoint: Path | None = None,
    taught_by: str = "",
    chosen: Chooser | None = None,
) -> nn.Module:
    """Train `model` in place for `config.epochs` and return it in eval mode (with averaged weights when `config.ema`).

    Epoch e sees view e mod V of every image, in an order drawn from `seed`. Every epoch is kept in the file `checkpoint`, from which an
    interrupted training goes on; the caller removes it. It is of this recipe, seed and views, and of the loss that `taught_by` names, or
    counts as none. `chosen` decides who takes part in an epoch; its steps are then as many and smaller. Without it everybody does.
    Raises TrainingDiverged on a non-finite loss.
    """
    # a batch of one image has no statistics
    steps_per_epoch = max(1, min(math.ceil(len(data) / config.batch_size), len(data) // 2))
    total = round(config.epochs * steps_per_epoch)
    if total == 0:
        return model.eval()
    torch.manual_seed(seed)  # dropout in a user's network draws from torch's own generator
    model = model.to(device.device).to(memory_format=torch.channels_last).train()
    optimiser = _optimiser(model, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(config, total))
    scaler = torch.amp.GradScaler(device.device.type, enabled=device.amp == torch.float16)
    average = AveragedModel(model, multi_avg_fn=_averages(config.ema), use_buffers=True) if config.ema else None
    meter = _Meter(on_epoch, steps_per_epoch, total)
    parts: dict[str, Stateful] = {"model": model, "optimiser": optimiser, "scheduler": scheduler, "scaler": scaler}
    parts |= {"generators": Generators(device.device)}
    parts |= {"average": average} if average is not None else {}
    parts |= {"chosen": chosen} if chosen is not None else {}
    made_by = fingerprint(config, seed, data.plan, data.seed, len(data), taught_by)
    begun = resume(checkpoint, parts, made_by)
    with safe_convolutions(model, device.device), out_of_memory_is_a_trial_error(), lost_workers_are_named():
        epochs = _epochs(len(data), data.plan.number, steps_per_epoch, range(begun, total), seed, chosen)
        # who stays is known when an epoch begins: only where all do may images be read ahead beyond its end
        runs = [chain.from_iterable(epochs)] if chosen is None else epochs
        for step, (whole, indices, view) in enumerate(chain.from_iterable(map(data.batches, runs)), begun):
            images = at_size_of(whole, config, step / total)
            batch = Batch(images, data.labels[indices], indices, view, (step + 1) / total, whole)
            with device.autocast():
                loss = loss_fn(forward(model, batch.images), batch)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            scheduler.step()
            if average is not None:
                average.update_parameters(model)
            if meter.step(step, loss.detach(), len(indices)):
                keep(checkpoint, step + 1, parts, made_by)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    return model.eval()


def _epochs(
    count: int, views: int, steps_per_epoch: int, steps: range, seed: int, chosen: Chooser | None
) -> Iterator[Iterator[tuple[Tensor, int]]]:
    """Per epoch the image indices (B,) and the view of every step; `steps` begins with an epoch's first, when `chosen` is asked."""

    def steps_of(epoch: int) -> Iterator[tuple[Tensor, int]]:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 7919 + epoch))
        order = order if chosen is None else chosen.stay(order, epoch)
        # of nearly equal size: a rest of one image has no batch statistics
        for indices in order.tensor_split(steps_per_epoch)[: steps.stop - epoch * steps_per_epoch]:
            yield indices, epoch % views

    return map(steps_of, range(math.ceil(steps.start / steps_per_epoch), math.ceil(steps.stop / steps_per_epoch)))


def at_size_of(images: Tensor, config: TrainConfig, progress: float) -> Tensor:
    """Images (B, C, H, W), made smaller as `early_sizes` says of `progress` in [0, 1): what is learned early shows at any size."""
    size = next((size for size, until in config.early_sizes if progress < until), images.shape[-1])
    if size >= images.shape[-1]:
        return images
    small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def check_sizes(model: nn.Module, images: Tensor, recipes: Mapping[str, TrainConfig], who: str) -> None:
    """UserError where a network cannot see `images` (B, C, H, W) as small as one of the named `recipes` shows them early on."""
    for name, recipe in recipes.items():
        for _, until in recipe.early_sizes:
            small = at_size_of(images, recipe, math.nextafter(until, 0.0))
            try:
                model.eval()(small)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
                reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                side = small.shape[-1]
                law = f"{name}.early_sizes needs networks that take smaller images, but {who} does not take {side} x {side} ({reason})"
                raise UserError(f"{law}; leave early_sizes out") from error


@contextmanager
def out_of_memory_is_a_trial_error() -> Iterator[None]:
    """One candidate that does not fit into the device's memory is no reason to end a study."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise TrialError(f"training must fit into the device's memory, but {reason}; lower the batch_size of its recipe") from error


@contextmanager
def lost_workers_are_named() -> Iterator[None]:
    """A process that decodes images and is killed, mostly for memory, is no defect of ours. PyTorch says so anywhere within."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:  # or it was lost while it handed over a batch
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        reason = one_line(_latest(error))
        raise Disturbed(f"the processes that decode images must live, but {reason}; set data.workers lower, 0 for none") from error


def _latest(error: Exception) -> Exception:
    """What PyTorch says of a lost worker: a signal brings it, perhaps after the connection was seen to be gone."""
    try:
        time.sleep(1.0)
    except RuntimeError as later:
        return later
    return error


class _Meter:
    """Sums the loss on the device, and looks at it once per epoch: no synchronisation per step."""

    def __init__(self, on_epoch: EpochFn | None, steps_per_epoch: int, total: int) -> None:
        self.on_epoch, self.steps_per_epoch, self.total = on_epoch, steps_per_epoch, total
        self.sum: Tensor | float = 0.0
        self.count, self.images, self.start = 0, 0, time.perf_counter()

    def step(self, step: int, loss: Tensor, images: int) -> bool:
        """Whether an epoch, or the training, ends with this step."""
        self.sum, self.count, self.images = self.sum + loss, self.count + 1, self.images + images
        if (step + 1) % self.steps_per_epoch and step + 1 != self.total:
            return False
        mean = float(self.sum) / self.count
        if not math.isfinite(mean):
            raise TrainingDiverged(f"the loss must stay finite, but is {mean} after {(step + 1) / self.steps_per_epoch:.1f} epochs")
        if self.on_epoch:
            rate = self.images / (time.perf_counter() - self.start)
            self.on_epoch((step + 1) / self.steps_per_epoch, self.total / self.steps_per_epoch, rate, mean)
        self.sum, self.count, self.images, self.start = 0.0, 0, 0, time.perf_counter()
        return True


def _averages(decay: float) -> Callable[[Any, Any, Any], None]:
    """For AveragedModel, of tensors of one type: floats follow by an exponential moving average; integers, as indices, are those of now."""
    average = get_ema_multi_avg_fn(decay)

    def follow(followers: Any, leaders: Any, count: Any) -> None:
        if followers[0].is_floating_point():
            average(followers, leaders, count)
        else:
            torch._foreach_copy_(followers, leaders)

    return follow


def _optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay acts on what has several dimensions, as weights of convolutions and linear layers: not on biases, norms or steps."""
    params, muon = [p for p in model.parameters() if p.requires_grad], config.optimiser == "muon"
    turned = [p for p in params if muon and is_orthogonal(p)]
    decayed = [p for p in params if p.ndim > 1 and not (muon and is_orthogonal(p))]
    plain = [p for p in params if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if muon:
        rest = [group | {"lr": config.rest_lr, "momentum": 0.9, "orthogonal": False} for group in groups]
        return Muon([{"params": turned, "lr": config.lr, "momentum": config.momentum, "orthogonal": True}, *rest])
    if config.optimiser == "sgd":
        sgd = torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov and config.momentum > 0, fused=True)
        if config.momentum:
            # torch's fused one allocates its buffers at the first step and leaves them unwritten where GradScaler skips that one
            sgd.state.update({param: {"momentum_buffer": torch.zeros_like(param)} for param in params})
        return sgd
    make = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    return make(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def learning_rate(config: TrainConfig, steps_per_epoch: int, epoch: float) -> float:
    """Of the step that ended at `epoch` epochs."""
    return config.lr * _schedule(config, round(config.epochs * steps_per_epoch))(round(epoch * steps_per_epoch) - 1)


def _schedule(config: TrainConfig, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step, in [0, 1]."""
    warm = max(1, round(0.2 * total))

    def one_cycle(step: int) -> float:
        # linear up over the first fifth, linear down to 2 % (airbench's triangle)
        if step < warm:
            return 0.2 + 0.8 * step / warm
        return 0.02 + 0.98 * (total - step) / max(1, total - warm)

    def linear(step: int) -> float:
        # muon needs no warm-up: its first step is as long as any other
        return 1.0 - min(step, total) / total

    def cosine(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))

    def step_down(step: int) -> float:
        return 0.1 ** sum(step >= mark * total for mark in config.marks)

    return {"one_cycle": one_cycle, "linear": linear, "cosine": cosine, "step": step_down}[config.schedule]


@torch.inference_mode()
def predict(
    model: nn.Module, images: Tensor, normalise: Callable[[Tensor], Tensor], device: Device, *, amp: bool, batch: int = 500
) -> Tensor:
    """Logits float32 (N, K) on the CPU of uint8 images (N, C, H, W); `amp` runs the model under the device's autocast."""
    model = model.to(device.device).eval()
    parts = []
    for part in images.split(batch):
        inputs = normalise(part.to(device.device)).contiguous(memory_format=torch.channels_last)
        with device.autocast() if amp else torch.autocast(device.device.type, enabled=False):
            parts.append(model(inputs).float().cpu())
    return torch.cat(parts)


def share(found: Tensor) -> float:
    """How many of `found`, bool (N,), are true: a quotient of integers, for in float32 9 of 10 is less than 0.9."""
    return int(found.sum()) / len(found)


def predict_all(model: nn.Module, images: Images, normalise: Callable[[Tensor], Tensor], device: Device) -> Tensor:
    """`predict` of a whole split in float32, of which only a part is in memory at a time where it is streamed."""
    return torch.cat([predict(model, part, normalise, device, amp=False) for part in images.chunks()])
