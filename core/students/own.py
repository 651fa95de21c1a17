"""The user's own network: a function in a file of theirs, and its weights. No pickle is ever executed."""

from __future__ import annotations

import importlib.util
import inspect
import pickle
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from core.errors import UserError, one_line
from core.files import write_atomically
from core.layers import evaluating, trial_run
from core.students.own_sources import importable, source_digest
from core.tables import nearest

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts commonly put the state dict."""

_sound: set[tuple[Path, str, str, int, tuple[int, int, int]]] = set()
"""Networks that this process has checked: file, function, what they say, classes, (C, H, W). A trial builds them several times."""

DAMAGED = (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, LookupError)
"""What the two readers raise on bytes that are no weights; torch's unpickler checks little, so mutated files give any of these."""


def load_own_model(spec: str, *, classes: int, channels: int, image_size: int) -> nn.Module:
    """The network that `spec` = "file.py:function" builds, called with those of the three keywords that the function takes.

    UserError when the file or the function is missing, either raises, or the result does not map (B, channels, image_size, image_size)
    to logits (B, classes).
    """
    path, function = split_spec(spec)
    with own_code(path, f"building {function}"), importable(path):
        module = import_file(path)
        build = find_function(module, function, path)
        model = call(build, {"classes": classes, "channels": channels, "image_size": image_size})
    if not isinstance(model, nn.Module):
        raise UserError(f"{spec} must return a torch.nn.Module, but it returned {type(model).__name__}")
    model, image = model.cpu().float(), (channels, image_size, image_size)
    if (tried := (path, function, source_digest(path), classes, image)) not in _sound:
        _check_network(model, path, spec, classes, image)
        _sound.add(tried)
    return model


def _check_network(model: nn.Module, path: Path, spec: str, classes: int, image: tuple[int, int, int]) -> None:
    """Raises UserError where it does not map images to logits of `classes`, each image by itself."""
    shape = "x".join(map(str, image))
    for mode, training in (("", False), (" in training mode", True)):
        with own_code(path, f"running the network on an image of {shape}{mode}"):
            output = trial_run(model, image, training=training)
        if not isinstance(output, Tensor) or tuple(output.shape) != (2, classes):
            found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            law = f"{spec} must map 2 images to logits of shape (2, {classes}), one per class of the data set"
            raise UserError(f"{law}, but it gave {found}{mode}")
    with own_code(path, "running the network on images in other company"):
        _check_answers(model, image, spec)


def _check_answers(model: nn.Module, image: tuple[int, int, int], spec: str) -> None:
    """Raises UserError where an answer depends on the other images of its batch, or is made of probabilities."""
    first, second, third = torch.randn(3, 1, *image, generator=torch.Generator().manual_seed(0))
    with evaluating(model), torch.random.fork_rng(devices=[]), torch.no_grad():
        pairs = [model(torch.cat([first, other])) for other in (second, third)]
    if not torch.allclose(pairs[0][0], pairs[1][0], rtol=1e-3, atol=1e-3 * float(pairs[0].abs().max()), equal_nan=True):
        law = "an answer must depend on its own image alone and be the same every time, for it is measured and given one by one"
        raise UserError(f"{law}, but that of {spec} changes with the rest of the batch; use batch norms with running statistics, say")
    found = torch.cat(pairs)
    if bool((found >= 0).all()) and torch.allclose(found.sum(1), torch.ones(len(found)), atol=1e-4):
        raise UserError(f"{spec} must give logits, but its answers are probabilities; leave the softmax at its end out")


def load_weights(model: nn.Module, path: Path, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None) -> None:
    """Load a `.safetensors` file, or a torch state dict (read with `weights_only`), into `model` in place; nothing is loaded on an error.

    `rename` maps another layout's keys, where they are not the model's own. UserError when it does not fit.
    """
    state = read_weights(path)
    # a network whose parts all lie below one called `module` is no DataParallel
    if all(key.startswith("module.") for key in model.state_dict()) and not any(key.startswith("module.") for key in state):
        state = {f"module.{key}": value for key, value in state.items()}
    load_state(model, rename(state) if rename and _missing(model, state) else state, str(path))


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load a state dict into `model` in place; nothing is loaded on an error. UserError, which names `source`, when it does not fit."""
    expected, missing = model.state_dict(), _missing(model, state)
    unexpected = [key for key in state if key not in expected]
    shapes = [
        f"{key} {tuple(state[key].shape)} in place of {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    problems = [listing("missing", missing), listing("unexpected", unexpected), listing("of another shape", shapes)]
    if any(problems):
        raise UserError(f"the weights in {source} do not fit the model: {'; '.join(filter(None, problems))}")
    model.load_state_dict(state, strict=False)


def _missing(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Keys of the model that the file lacks. BatchNorm's step counter is missing from old files and changes no result."""
    return [key for key in model.state_dict() if key not in state and not key.endswith("num_batches_tracked")]


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors; a reader sees the old file or the whole new one. UserError when the disk refuses."""
    # Clones, since safetensors refuses tensors that share memory (tied weights).
    data = save({key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()})
    write_atomically(path, data)


def split_spec(spec: str) -> tuple[Path, str]:
    """("file.py:function") -> (absolute path, function name); UserError when either is missing."""
    file, colon, function = spec.rpartition(":")
    if not colon or not file or not function.isidentifier():
        raise UserError(f"a model is named as file.py:function, but got {spec!r}")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"no such file: {path} (of the model {spec!r})")
    return path.resolve(), function


@contextmanager
def own_code(path: Path, doing: str) -> Iterator[None]:
    """A boundary to code that is not ours: whatever it raises becomes one UserError that names file, line and reason."""
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # the user's file may raise anything
        reason = one_line(error, 200) or "no message"
        raise UserError(f"{path}{line_of(error, path)} raised {type(error).__name__} while {doing}: {reason}") from error


def line_of(error: BaseException, path: Path) -> str:
    """':<line>' of the deepest frame inside `path`, '' when there is none."""
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f":{line}" if line else ""


def import_file(path: Path) -> ModuleType:
    """Execute the file as a module of a unique name, so that it shadows nothing and a changed file is read anew."""
    name = f"paretopress_own_{path.stem}_{uuid.uuid4().hex[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"a model file must be Python source ending in .py, but got {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and typing look their module up here
    spec.loader.exec_module(module)
    return module


def find_function(module: ModuleType, function: str, path: Path) -> Callable[..., Any]:
    """The callable of that name; UserError with the nearest one that the file defines."""
    found = getattr(module, function, None)
    if not callable(found):
        known = [name for name, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
        raise UserError(f"{path} has no function {function!r}{nearest(function, known)}; it defines: {', '.join(sorted(known)) or 'none'}")
    return found


def call(build: Callable[..., Any], keywords: Mapping[str, int]) -> Any:
    """Call `build` with those keywords that it accepts."""
    parameters = inspect.signature(build).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return build(**{key: value for key, value in keywords.items() if takes_all or key in parameters})


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a `.safetensors` file, or in one of torch (read with `weights_only`).

    Accepts {"state_dict" | "model_state_dict" | "model": ...} around it and "module." before every key. UserError when it holds none.
    """
    return unwrap(read_state(path), path)


def read_state(path: Path) -> Any:
    """Whatever the weights file holds, on the CPU; UserError when it is none."""
    if not path.is_file():
        raise UserError(f"no such weights file: {path}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write: they load, or are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        reason = str(error).partition(". ")[0].partition("\n")[0][:160]  # what follows is advice to load code
        raise UserError(
            f"{path} is no weights file; it must be .safetensors or a state dict saved by torch.save(model.state_dict(), ...): {reason}"
        ) from error


def unwrap(state: Any, path: Path) -> dict[str, Tensor]:
    """The state dict inside common wrappers, without the prefix that DataParallel puts before every key."""
    if isinstance(state, Mapping):
        wrapped = [state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)]
        state = wrapped[0] if wrapped else state
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(
            f"{path} holds no state dict (names of tensors), but {type(state).__name__}; save it with torch.save(model.state_dict(), ...)"
        )
    prefix = "module." if all(key.startswith("module.") for key in state) else ""
    return {key.removeprefix(prefix): value for key, value in state.items()}


def listing(kind: str, keys: list[str]) -> str:
    """'2 missing (a, b)' with the first three keys; '' for none."""
    more = ", ..." if len(keys) > 3 else ""
    return f"{len(keys)} {kind} ({', '.join(keys[:3])}{more})" if keys else ""
