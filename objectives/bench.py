"""The workbench of a study: everything that is made once and used by every trial."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from core.answers import Answers
from core.candidate import SELF, StageRecord, fingerprint
from core.checkpoint import SUFFIX
from core.config import Config
from core.data.types import SearchData
from core.distil import distil
from core.engines import EngineHost
from core.files import is_held, lock_of, made_once
from core.pack import Coding
from core.start import Start, load_published
from core.students.own import load_weights, save_weights
from core.teacher import Teacher, build_network
from core.train import Device, EpochFn
from core.views import ViewedSet

WAIT = "wait"
"""The stage in which another worker makes what a trial needs."""


@dataclass(frozen=True)
class Workbench:
    """Data, teacher, what all teachers answer, device and engine host of one study. `folder` is runs/<study>."""

    config: Config
    data: SearchData
    train_set: ViewedSet
    teacher: Teacher
    logits: Answers
    device: Device
    engines: EngineHost
    folder: Path
    teacher_seconds: float = 0.0
    """To train the teacher, or to load it."""
    on_wait: Callable[[str], None] = lambda text: None
    """Gets a line when another worker makes what is asked for."""
    coding: Coding = "packed"
    """Of the weight files, whose bytes are the size."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """What the study is made of beside its space: name -> digest."""

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)"""
        return self.data.info.shape

    def network(self, student: str, width: float) -> nn.Module:
        """The untrained dense network, in eval mode on the CPU, the same weights every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return build_network(student, width, self.config.teacher, self.data.info).eval()

    def parent(self, student: str, width: float, on_epoch: EpochFn | None = None) -> nn.Module:
        """The dense network of (student, width), distilled once per study and kept; for `self` the teacher's own weights."""
        if student == SELF:
            return copy.deepcopy(self.teacher.model).requires_grad_(True).cpu()
        model, path = self.network(student, width), self._parent_file(student, width)
        if not path.exists():
            with made_once(path, self.on_wait):
                if not path.exists():  # it may have been made while waiting
                    self._train_parent(model, path, on_epoch)
        load_weights(model.cpu(), path)
        return model

    def await_parent(self, student: str, width: float, stages: Stages) -> None:
        """While another process trains that network: the stage `wait`."""
        if student != SELF:
            await_maker(self._parent_file(student, width), stages, self.on_wait)

    def has_parent(self, student: str, width: float) -> bool:
        """Whether `parent` trains nothing."""
        return student == SELF or self._parent_file(student, width).exists()

    def _parent_file(self, student: str, width: float) -> Path:
        config, answers = self.config, self.logits.digest
        key = fingerprint(student, width, config.parent, config.views, answers, self.data.info.digest, config.seed)
        return self.folder / "parents" / f"{student}-{width:g}-{key}.safetensors"

    def _train_parent(self, model: nn.Module, path: Path, on_epoch: EpochFn | None) -> None:
        recipe = self.config.parent
        start = load_published(model, self.data.info.channels) if recipe.pretrained else Start()
        seed, kept, full = self.config.seed + 1, path.with_suffix(SUFFIX), (start.new_head,)
        data, answers, device = self.train_set, self.logits, self.device
        distil(model, recipe.distil, data, answers, recipe.train, device, seed=seed, on_epoch=on_epoch, checkpoint=kept, full=full)
        save_weights(model, path)
        kept.unlink(missing_ok=True)


@dataclass
class Stages:
    """Times the stages of one trial and passes progress on. `seconds` is stage -> wall-clock seconds; `records`: what a journal saw."""

    on_stage: Callable[[str], None] = lambda name: None
    on_epoch: Callable[..., None] = lambda *numbers: None
    seconds: dict[str, float] = field(default_factory=dict)
    records: list[StageRecord] = field(default_factory=list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[EpochFn]:
        """Within it the stage `name` runs; yields the epoch callback to hand to a training."""
        self.on_stage(name)
        start = time.perf_counter()
        try:
            yield lambda *numbers: self.on_epoch(name, *numbers)
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)


def await_maker(path: Path, stages: Stages, on_wait: Callable[[str], None]) -> None:
    """While another process makes `path` (`made_once`): the stage `wait`."""
    if is_held(lock_of(path)):
        with stages(WAIT), made_once(path, on_wait):
            pass
