"""One training loop for teachers, parents, students and quantised students: resident data, AMP, channels-last."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from core.config import HardwareConfig, TrainConfig
from core.errors import TrainingDiverged, TrialError, UserError
from core.hardware import device_facts
from core.views import ViewedSet
from core.workarounds import safe_convolutions

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
LossFn = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""(student logits (B, K), labels (B,), image indices (B,), view) -> scalar"""
ForwardFn = Callable[[nn.Module, Tensor], Tensor]
"""(model, images (B, C, H, W)) -> what the loss looks at"""
EpochFn = Callable[[float, float, float, float], None]
"""(epochs done, epochs in all, images per second, mean loss since the last call)"""


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
        # elsewhere bf16 is emulated, and slower than float32
        return torch.bfloat16 if BF16_FLAGS & set(device_facts()["isa"]) else None
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
) -> nn.Module:
    """Train `model` in place for `config.epochs` and return it in eval mode (with averaged weights when `config.ema`).

    Epoch e sees view e mod V of every image, in an order drawn from `seed`. Raises TrainingDiverged on a non-finite loss.
    """
    steps_per_epoch = math.ceil(len(data) / config.batch_size)
    total = round(config.epochs * steps_per_epoch)
    if total == 0:
        return model.eval()
    torch.manual_seed(seed)  # dropout in a user's network draws from torch's own generator
    model = model.to(device.device).to(memory_format=torch.channels_last).train()
    optimiser = _optimiser(model, config)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, _schedule(config, total))
    scaler = torch.amp.GradScaler(device.device.type, enabled=device.amp == torch.float16)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True) if config.ema else None
    meter = _Meter(on_epoch, steps_per_epoch, total, len(data) / steps_per_epoch)
    with safe_convolutions(model, device.device), out_of_memory_is_a_trial_error():
        for step in range(total):
            epoch, position = divmod(step, steps_per_epoch)
            if position == 0:
                order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed * 7919 + epoch)).to(data.labels.device)
                # of nearly equal size: a rest of one image has no batch statistics
                batches = order.tensor_split(steps_per_epoch)
            indices = batches[position]
            view = epoch % data.plan.number
            with device.autocast():
                loss = loss_fn(forward(model, data.batch(indices, view)), data.labels[indices], indices, view)
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            scheduler.step()
            if average is not None:
                average.update_parameters(model)
            meter.step(step, loss.detach())
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    return model.eval()


@contextmanager
def out_of_memory_is_a_trial_error() -> Iterator[None]:
    """One candidate that does not fit into the device's memory is no reason to end a study."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise TrialError(f"training must fit into the device's memory, but {reason}; lower the batch_size of its recipe") from error


class _Meter:
    """Sums the loss on the device, and looks at it once per epoch: no synchronisation per step."""

    def __init__(self, on_epoch: EpochFn | None, steps_per_epoch: int, total: int, batch_size: float) -> None:
        self.on_epoch, self.steps_per_epoch, self.total, self.batch_size = on_epoch, steps_per_epoch, total, batch_size
        self.sum: Tensor | float = 0.0
        self.count, self.start = 0, time.perf_counter()

    def step(self, step: int, loss: Tensor) -> None:
        self.sum, self.count = self.sum + loss, self.count + 1
        if (step + 1) % self.steps_per_epoch and step + 1 != self.total:
            return
        mean = float(self.sum) / self.count
        if not math.isfinite(mean):
            raise TrainingDiverged(f"the loss must stay finite, but is {mean} after {(step + 1) / self.steps_per_epoch:.1f} epochs")
        if self.on_epoch:
            rate = self.count * self.batch_size / (time.perf_counter() - self.start)
            self.on_epoch((step + 1) / self.steps_per_epoch, self.total / self.steps_per_epoch, rate, mean)
        self.sum, self.count, self.start = 0.0, 0, time.perf_counter()


def _optimiser(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay acts on convolution and linear weights only, not on biases, normalisation or quantisation steps."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.optimiser == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=True)
    make = torch.optim.Adam if config.optimiser == "adam" else torch.optim.AdamW
    return make(groups, lr=config.lr, betas=(config.momentum, 0.999), fused=True)


def _schedule(config: TrainConfig, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at each step, in [0, 1]."""
    warm = max(1, round(0.2 * total))

    def one_cycle(step: int) -> float:
        # linear up over the first fifth, linear down to 2 % (airbench's triangle)
        if step < warm:
            return 0.2 + 0.8 * step / warm
        return 0.02 + 0.98 * (total - step) / max(1, total - warm)

    def cosine(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * min(step, total) / total))

    def step_down(step: int) -> float:
        # x 0.1 at 62.5 %, 75 % and 87.5 %: 150, 180 and 210 of the CIFAR-100 recipe's 240 epochs
        return 0.1 ** sum(step >= mark * total for mark in (0.625, 0.75, 0.875))

    return {"one_cycle": one_cycle, "cosine": cosine, "step": step_down}[config.schedule]


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
