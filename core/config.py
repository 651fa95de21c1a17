"""Configuration: HOW a study runs (configs/*.yaml). WHAT may vary is a space (search/space.py).

One declaration per section gives YAML checking, defaults, JSON and the JSON schema. Nothing here is global:
a `Config` comes in once and is passed on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from core.candidate import DistilPlan, Frozen

Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


class DataConfig(Frozen):
    """Which images. `dir` pointing at an image folder replaces a download."""

    name: str = "digits"
    dir: Path | None = None
    image_size: Annotated[int, Field(ge=4, le=512)] | None = None
    """Side in pixels; None: the data set's own, or for folders the size that all images share (else 32)."""
    channels: Literal[1, 3] | None = None
    """None: the data set's own, or for folders 1 when every image is grey."""
    search_fraction: Fraction = 0.1
    """Share of the training images held out for all choices."""
    test_fraction: Fraction = 0.2
    """Share held out for the test split where the data set has none."""
    train_limit: Count | None = None
    """Keep this many training images, stratified; None: all."""
    seed: Seed = 0
    skip_bad: bool = False


class TrainConfig(Frozen):
    """One training run. Epochs may be fractional."""

    epochs: Annotated[float, Field(ge=0.0)] = 10.0
    batch_size: Count = 128
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Positive = 0.1
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    schedule: Literal["one_cycle", "cosine", "step"] = "one_cycle"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay per step of the exponential moving average of the weights; 0 switches it off."""


class ViewsConfig(Frozen):
    """Augmentation as a plan: view v of image i is the same in every trial, so teacher logits are computed once."""

    number: Annotated[int, Field(ge=1, le=16)] = 8
    flip: bool = True
    shift: Annotated[int, Field(ge=0)] = 4
    """Largest translation in pixels."""


class TeacherConfig(Frozen):
    """The network to distil from: a table entry trained once per machine, or the user's own (`--model`, `--weights`)."""

    name: str = "resnet20"
    width: Positive = 1.0
    model: str | None = None
    """`file.py:function`, called with classes, channels, image_size as keywords where it takes them."""
    weights: Path | None = None
    mean: tuple[float, ...] | None = None
    """Per channel, in [0, 1]: the normalisation the user's network was trained with; None: the training split's."""
    std: tuple[float, ...] | None = None
    train: TrainConfig = TrainConfig()


class ParentConfig(Frozen):
    """The dense parent of every (student, width): distilled once per study."""

    distil: DistilPlan = DistilPlan()
    train: TrainConfig = TrainConfig()


class QuantiseConfig(Frozen):
    """Quantisation-aware training of the weights, then calibration of the activations on training images."""

    train: TrainConfig = TrainConfig(epochs=2.0, lr=0.01)
    calibration_images: Count = 512


class RuntimeConfig(Frozen):
    """Which engine, and how it is timed."""

    name: str = "auto"
    batch: Count = 1
    threads: Count = 1
    precision: Literal["f32", "bf16"] = "f32"
    """Of the layers that execute in float. OpenVINO's own default on this CPU class is bf16."""
    warmup_s: Annotated[float, Field(ge=0.0)] = 0.1
    max_s: Positive = 3.0
    """Longest measurement of one engine; it ends sooner when the interval is narrow."""
    timeout_s: Positive = 120.0
    """A build or measurement that takes longer counts as failed."""


class HardwareConfig(Frozen):
    """Training device. `amp: auto` is bf16 where the device computes in it, fp16 + GradScaler on older CUDA devices."""

    device: str = "auto"
    threads: Count | None = None
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"


class Config(Frozen):
    """Everything but the space."""

    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    teacher: TeacherConfig = TeacherConfig()
    parent: ParentConfig = ParentConfig()
    finetune: TrainConfig = TrainConfig()
    quantise: QuantiseConfig = QuantiseConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    hardware: HardwareConfig = HardwareConfig()
    seed: Seed = 0
