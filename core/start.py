"""The weights that a network starts from: the user's file, or those that its library publishes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from core.config import TeacherConfig
from core.errors import UserError, one_line
from core.students.checkpoints import remap
from core.students.own import load_state, load_weights, read_weights
from core.students.zoo_net import LibraryNetwork
from core.views import Normalisation


@dataclass(frozen=True)
class Start:
    """What was loaded before any training."""

    given: bool = False
    """Whether anything was."""
    new_head: str = ""
    """The last layer, where the weights have one for other classes: it is as initialised, and the network needs training."""
    normalise: Normalisation | None = None
    """What the weights were trained with, where their library says so."""


def load_start(model: nn.Module, config: TeacherConfig, channels: int) -> Start:
    """Load `teacher.weights` or, with `teacher.pretrained`, the published weights into `model`. UserError where they do not fit.

    Weights of a named network may be in a published layout (core/students/checkpoints.py, core/students/zoo_net.py).
    """
    if config.pretrained:
        return load_published(model, channels)
    if config.weights is None:
        return Start()
    if isinstance(model, LibraryNetwork):
        start = load_library_state(model, read_weights(config.weights), str(config.weights), channels)
        # a fitting head was trained by the user: how its images were normalised is for them to say
        return start if start.new_head else Start(given=True)
    load_given_weights(model, config, config.weights)
    return Start(given=True)


def load_given_weights(model: nn.Module, config: TeacherConfig, path: Path) -> None:
    """Load the user's weights into a network of theirs or of STUDENTS."""
    if config.model:
        load_weights(model, path)
        return
    try:
        load_weights(model, path, partial(remap, config.name))
    except UserError as error:
        own = "name your own network with --model my_net.py:build, or another one of the table with --set teacher.name=..."
        raise UserError(f"{error} (the teacher is {config.name}); {own}") from error


def load_published(model: nn.Module, channels: int) -> Start:
    """Load the published weights of a library's network; other networks stay as they are."""
    if not isinstance(model, LibraryNetwork):
        return Start()
    try:
        state = model.published.load()
    except (OSError, RuntimeError) as error:
        reason = one_line(error, 160)
        law = f"the published weights of {model.name} must be in the library's cache or downloadable, but are not ({reason})"
        raise UserError(f"{law}; give them as a file with teacher.weights: FILE, or leave pretrained out") from error
    return load_library_state(model, state, f"the published weights of {model.name}", channels)


def load_library_state(model: LibraryNetwork, state: Mapping[str, Tensor], source: str, channels: int) -> Start:
    """Load a state dict under the library's names. A head for other classes is left out."""
    new_head = model.head if model.has_other_head(state) else ""
    load_state(model, model.renamed(state), source)
    return Start(given=True, new_head=new_head, normalise=library_normalisation(model, channels))


def library_normalisation(model: LibraryNetwork, channels: int) -> Normalisation:
    """As the library trained the network; grey images take the mean over the colours."""
    mean, std = model.published.mean, model.published.std
    if channels == len(mean):
        return Normalisation(mean, std)
    return Normalisation((sum(mean) / len(mean),) * channels, (sum(std) / len(std),) * channels)
