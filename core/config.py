"""Configuration: HOW a study runs (configs/*.yaml). WHAT may vary is a space (search/space.py).

One declaration per section gives YAML checking, defaults, JSON and the JSON schema. Nothing here is global:
a `Config` comes in once and is passed on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationInfo, field_validator, model_validator

from core.candidate import DistilPlan, Frozen

Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Side = Annotated[int, Field(ge=4)]
LEAST_BATCH = 8
"""Images that batch norm can take its statistics from."""


class DataConfig(Frozen):
    """Which images. `dir` pointing at an image folder replaces a download."""

    name: str = "digits"
    """Data set by its name, also of a plugin; `folder` (labelled by its sub-folders) and `unlabelled` read `dir`."""
    dir: Path | None = None
    """Image folder, or where a download lies or goes (`--data-dir`); null: ./data for downloads."""
    image_size: Annotated[int, Field(ge=4, le=512)] | None = None
    """Side in pixels; null: the data set's own, or for folders the size that all images share (else 32)."""
    channels: Literal[1, 3] | None = None
    """null: the data set's own, or for folders 1 when every image is grey, else 3."""
    search_fraction: Fraction = 0.1
    """Share of the training images held out for all choices."""
    test_fraction: Fraction = 0.2
    """Share held out for the test split where the data set has none."""
    train_limit: Count | None = None
    """Keep this many training images, stratified; null: all."""
    seed: Seed = 0
    """Seed of the splits."""
    skip_bad: bool = False
    """Leave unreadable images out (`--skip-bad`); else one ends the run."""
    classes: Annotated[int, Field(ge=2)] | None = None
    """How many classes the teacher tells apart, for images without labels; null: the set's own."""
    resident_gb: Annotated[float, Field(ge=0.0)] = 1.5
    """Image files that take more as decoded bytes (1 GB = 1e9) are streamed; a resident set needs about three times that in memory."""
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes that decode streamed images ahead of the training; null: one a core, at most 8."""


class LoraConfig(Frozen):
    """Low-rank adapters: alpha / rank is the factor on them (core/lora.py)."""

    rank: Count = 8
    """Channels between the two parts of an adapter; a layer that is no larger than its adapter trains itself."""
    alpha: Positive = 8.0
    """alpha / rank is a factor on the learning rate, of a kind: lower it if the loss diverges."""


class TrainConfig(Frozen):
    """One training run. Epochs may be fractional."""

    model_config = ConfigDict(allow_inf_nan=False)

    epochs: Annotated[float, Field(ge=0.0)] = 10.0
    """Passes over the training images; may be fractional, 0 trains nothing."""
    batch_size: Annotated[int, Field(ge=2)] = 128
    """Images per step, at most; one alone has no batch statistics."""
    optimiser: Literal["sgd", "adam", "adamw", "muon"] = "sgd"
    """muon orthogonalises the steps of convolutions (core/muon.py), SGD trains the rest."""
    lr: Positive = 0.1
    """Highest learning rate; for muon that of convolutions, as a share of each weight's length."""
    rest_lr: Positive = 0.1
    """muon only: highest learning rate of all other parameters, which SGD trains."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """In [0, 1); for adam and adamw the first beta."""
    nesterov: bool = True
    """Nesterov's momentum, of sgd; the published CIFAR-100 recipes have none."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 5e-4
    """Acts on parameters of more than one dimension, as weights of convolutions and linear layers."""
    schedule: Literal["one_cycle", "linear", "cosine", "step"] = "one_cycle"
    """one_cycle rises over a fifth of the run and falls to 2 %; linear and cosine fall to 0; step falls at `marks`."""
    marks: tuple[Fraction, ...] = (0.625, 0.75, 0.875)
    """Of `step`: shares of the run after which the learning rate is a tenth. 150, 180 and 210 of the CIFAR-100 recipe's 240 epochs."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the label that is spread over all classes in the cross-entropy."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay per step of the exponential moving average of the weights; 0 switches it off."""
    early_sizes: tuple[tuple[Side, Share], ...] = ()
    """Side in pixels of the images, and the share of the steps until which they have it; afterwards their own size."""
    lora: LoraConfig | None = None
    """Train adapters of the layers in place of their weights, and merge them at the end; null: the weights themselves."""

    @field_validator("early_sizes")
    @classmethod
    def _one_after_the_other(cls, sizes: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
        shares = [share for _, share in sizes]
        if shares != sorted(set(shares)):
            raise ValueError(f"each size must end after the one before it, but the shares are {', '.join(map(str, shares))}")
        return sizes


class TeacherTrainConfig(TrainConfig):
    """The teacher's own training, from labels."""

    infobatch: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the images with a loss below the mean that an epoch leaves out (core/infobatch.py); 0 leaves nobody out."""

    @model_validator(mode="after")
    def _batches_stay_large(self) -> Self:
        if self.infobatch and self.batch_size * (1.0 - self.infobatch) < LEAST_BATCH:
            law = f"infobatch leaves batch_size x (1 - infobatch) images in a batch, at least {LEAST_BATCH}"
            raise ValueError(f"{law}, but batch_size is {self.batch_size} and infobatch {self.infobatch:g}; set a larger batch_size")
        return self


class ViewsConfig(Frozen):
    """Augmentation as a plan: view v of image i is the same in every trial, so teacher logits are computed once."""

    number: Annotated[int, Field(ge=1, le=16)] = 8
    """Augmented views of every image, used in turn, one an epoch; teacher logits are kept of each."""
    flip: bool = True
    """Mirror left and right in every other view; false where a mirrored image is another class."""
    shift: Annotated[int, Field(ge=0)] = 4
    """Largest translation in pixels, of resident images."""
    min_area: Annotated[float, Field(gt=0.0, le=1.0)] = 0.08
    """Smallest share of a streamed image's area that a random crop shows."""
    cache: Literal["auto", "on", "off"] = "auto"
    """Whether teacher logits are computed once per view and kept; off: the teacher runs in every step. auto: kept for small images."""
    average: bool = False
    """The teacher's answer to an image is its mean over all views."""

    def augmentation(self) -> dict[str, Any]:
        """What decides the pixels of all views."""
        return self.model_dump(mode="json", exclude={"cache", "average"})

    def one_view(self) -> dict[str, Any]:
        """What decides the pixels of one view; how many others there are does not."""
        return self.model_dump(mode="json", exclude={"cache", "average", "number"})


class TeacherConfig(Frozen):
    """The network to distil from: a table entry trained once per machine, or the user's own (`--model`, `--weights`)."""

    name: str = "resnet20"
    """A student's name; unused with `model`."""
    width: Positive = 1.0
    """Factor on its channels; unused with `model`."""
    model: str | None = None
    """`file.py:function`, called with classes, channels, image_size as keywords where it takes them."""
    weights: Path | None = None
    """Safetensors or a state dict, of `model`, else of `name` (`--weights`); null: trained by `train`."""
    pretrained: bool = False
    """Start from the weights that the library of a `torchvision:` or `timm:` name publishes."""
    mean: tuple[float, ...] | None = None
    """Per channel, in [0, 1]: how its input is normalised; null: as the training split, or as fits given weights best."""
    std: tuple[float, ...] | None = None
    """Per channel, on the same scale; give `mean` and `std`, or none of them."""
    train: TeacherTrainConfig = TeacherTrainConfig()
    """How it is trained where it has no weights, they have a new head, or `lora` is to adapt them."""


class TeacherMix(Frozen):
    """How several teachers answer as one (core/answers.py)."""

    rule: Literal["logits", "probabilities"] = "logits"
    """`logits`: the mean of z-scored logits. `probabilities`: the mean of softened probabilities."""
    weights: tuple[Positive, ...] | None = None
    """Factors on `teacher` and `more_teachers`, in this order; null: equal ones."""


class ParentConfig(Frozen):
    """The dense parent of every (student, width): distilled once per study."""

    distil: DistilPlan = DistilPlan()
    """How it learns from the teacher; no loss on regions or maps."""
    pretrained: bool = False
    """`torchvision:` and `timm:` students start from their library's published weights."""
    train: TrainConfig = TrainConfig()
    """How it is trained."""


class RangeConfig(Frozen):
    """How far a grid reaches: `mse` least squared error, `minmax` the largest value, `percentile` that share of the magnitudes."""

    range: Literal["mse", "minmax", "percentile"] = "mse"
    """How far a grid reaches. mse: least squared error; minmax: to the largest value; percentile: to that share of magnitudes."""
    percentile: Annotated[float, Field(gt=0.0, le=100.0)] = 99.9
    """Share of the magnitudes within the grid in per cent, where range is percentile."""


class PtqConfig(RangeConfig):
    """Rounding of the weights without training."""

    bias_correction: bool = True
    """Biases take back the mean shift that rounding gives every channel, on calibration images."""


class BrecqConfig(Frozen):
    """Learned rounding, block by block (core/quantise/brecq.py). The paper has 20000 iterations at 0.001 on 1024 images."""

    iterations: Annotated[int, Field(ge=0)] = 500
    """Steps per block; the paper has 20000."""
    batch_size: Count = 32
    """Calibration images per step."""
    lr: Positive = 0.01
    """Adam's learning rate of what decides up or down; the paper's is 0.001, with more steps."""
    regulariser: Annotated[float, Field(ge=0.0)] = 0.01
    """Factor on what drives every weight to a decision, up or down."""


class CodebookConfig(Frozen):
    """k-means of every layer's weights (core/quantise/codebook.py)."""

    iterations: Annotated[int, Field(ge=0)] = 50
    """Of k-means, at most; it ends sooner when nothing moves."""


class QuantiseConfig(Frozen):
    """Quantisation-aware training of the weights, then calibration of the activations on training images."""

    train: TrainConfig = TrainConfig(epochs=2.0, lr=0.01)
    """Training with quantised weights, of the quantisers that train."""
    calibration_images: Count = 512
    """Training images that choose the scales of the activations, and that ptq, brecq and nncf learn from."""
    activations: RangeConfig = RangeConfig()
    """How far the grids of the activations reach."""
    simulate_activations: bool = False
    """lsq and rate: train through activations of 8 bits, calibrated before, on the network in float (core/quantise/simulate.py)."""
    ptq: PtqConfig = PtqConfig()
    brecq: BrecqConfig = BrecqConfig()
    codebook: CodebookConfig = CodebookConfig()


class RuntimeConfig(Frozen):
    """Which engine, and how it is timed."""

    model_config = ConfigDict(allow_inf_nan=False)

    name: str = "auto"
    """Engine. auto: the first of tensorrt, tensorrt_rtx, openvino, onnxruntime that is installed and runs here."""
    batch: Count = 1
    """Images per timed call."""
    threads: Count = 1
    """Threads of the engine; on a GPU of its builder."""
    precision: Literal["f32", "bf16", "f16"] = "f32"
    """Precision of the layers that execute in float. OpenVINO's own default on this CPU class is bf16."""
    activation_grid: Literal["auto", "uint8_relu", "int8"] = "auto"
    """auto: the runtime's own. int8: TensorRT's, on any runtime, for models that will be built for a GPU that is not here."""
    warmup_s: Annotated[float, Field(ge=0.0)] = 0.1
    """Shortest warm-up, in seconds; it goes on until the call is steady."""
    max_s: Positive = 3.0
    """Longest measurement of one engine in seconds; it ends sooner when the interval is narrow."""
    timeout_s: Positive = 120.0
    """A build, or 1000 images, that take more seconds count as failed; a measurement that takes so much longer than it may last."""
    wait_s: Annotated[float, Field(ge=0.0)] = 600.0
    """Seconds to wait for another measurement on the same machine to end."""
    agent: Annotated[str, Field(pattern=r"^https?://[^/@\s]+/?$")] | None = None
    """`http://host:port` of a core.agent: engines are built, timed and scored there; null: here."""
    build_for: tuple[Annotated[str, Field(pattern=r"^SM[0-9]+$")], ...] = ()
    """Compute capabilities ("SM89") to build engines for and time none: two objectives, accuracy by ONNX Runtime. Empty: timed here."""

    @field_validator("build_for")
    @classmethod
    def _not_at_an_agent(cls, targets: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if targets and info.data.get("agent"):
            raise ValueError("must be empty where runtime.agent is given: an agent times engines; leave one out")
        return targets


class HardwareConfig(Frozen):
    """Training device. `amp: auto` is bf16 where the device computes in it, fp16 + GradScaler on older CUDA devices."""

    device: str = "auto"
    """Where training runs: cpu, cuda, cuda:1 ...; auto: CUDA where there is one."""
    threads: Count | None = None
    """Threads of PyTorch; null: its own choice, with several workers their share of the cores."""
    amp: Literal["auto", "bf16", "fp16", "off"] = "auto"
    """Mixed precision; auto: bf16 where the device computes in it, fp16 on older CUDA devices, else off."""


class StoppingConfig(Frozen):
    """Whether what finished trials teach may keep a candidate from being trained, or end its training; and how sure it must be."""

    skip: bool = True
    """A candidate that the front surely dominates is not trained."""
    stop: bool = True
    """A training that can no longer join the front ends before its first epoch, or after the epoch of its first half that shows it."""
    confidence: Annotated[float, Field(ge=0.5, le=0.99)] = 0.82
    """How sure all answers about a candidate together must be; they begin after 9 full trials up to 0.9, after 19 for 0.95."""


class Config(Frozen):
    """Everything but the space."""

    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    teacher: TeacherConfig = TeacherConfig()
    more_teachers: tuple[TeacherConfig, ...] = ()
    """Further ones beside `teacher`, which stays the reference of size and latency, and the network `self`."""
    teacher_mix: TeacherMix = TeacherMix()
    parent: ParentConfig = ParentConfig()
    finetune: TrainConfig = TrainConfig()
    """Training of a candidate after pruning."""
    quantise: QuantiseConfig = QuantiseConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    hardware: HardwareConfig = HardwareConfig()
    stopping: StoppingConfig = StoppingConfig()
    journal: bool = False
    """Look at every candidate after every stage: stages.csv, and stages.json in its folder."""
    seed: Seed = 0
    """Seed of sampler, weights, order and augmentation (`--seed`)."""

    @property
    def teachers(self) -> tuple[TeacherConfig, ...]:
        """All of them."""
        return (self.teacher, *self.more_teachers)

    @field_validator("teacher_mix")
    @classmethod
    def _one_weight_each(cls, mix: TeacherMix, info: ValidationInfo) -> TeacherMix:
        count = 1 + len(info.data.get("more_teachers", ()))
        if mix.weights is not None and len(mix.weights) != count:
            stated = f"{len(mix.weights)} for {count} teacher(s)"
            raise ValueError(f"must have one weight for `teacher` and each of `more_teachers`, but has {stated}; state all or none")
        return mix
