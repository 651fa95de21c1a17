"""The measuring child: builds engines, times them and runs them, away from the process that trains.

    python -m core.engine_child     JSON lines on stdin, one JSON line on stdout for each

Requests: {"op": "ping"}
          {"op": "latency", "model", "runtime", "options": {batch, threads, precision, cache}, "timing": {warmup_s, max_s, quiet_ms},
           "reference": path of core/reference.py's network}
          {"op": "predict", "model", "runtime", "options", "images": path.npy, "out": path.npy}
          {"op": "build", "model", "runtime", "options", "compute_capability": ["SM89"], "out": path}
          {"op": "files", "model", "runtime", "options", "out": folder}
          {"op": "layer_times", "model", "runtime", "options"}
Answers:  {"ok": {...}} or {"error": "user" | "disk" | "engine", "message"}

It imports numpy and its runtime only (TensorRT's needs onnx, and torch for memory and streams), and ends with its parent or at the
end of stdin. Its parent is core/engines.py.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from core.errors import DiskRefused, UserError
from core.files import write_atomically, writing
from core.latency import Timed, time_calls
from core.machine import conditions, read_machine
from core.runtimes import Engine, EngineOptions, building_runtime, check_precision, installed_runtime

PR_SET_PDEATHSIG = 1


def main(parent: int | None = None) -> int:
    """Answer requests until stdin ends; `parent` is the process id to live as long as."""
    _die_with_parent(parent)
    answers = _claim_stdout()
    for line in sys.stdin:
        answers.write(json.dumps(_answer(line)) + "\n")
        answers.flush()
    return 0


def _answer(line: str) -> dict[str, Any]:
    """The answer to one request. The one place where every exception is caught: a failed engine is one failed trial."""
    try:
        request = json.loads(line)
        return {"ok": OPS[request["op"]](request)}
    except DiskRefused as error:
        return {"error": "disk", "message": str(error)}
    except UserError as error:
        return {"error": "user", "message": str(error)}
    except Exception as error:
        return {"error": "engine", "message": f"{type(error).__name__}: {error}"}


def _ping(request: dict[str, Any]) -> dict[str, Any]:
    return {"pid": os.getpid()}


def _latency(request: dict[str, Any]) -> dict[str, Any]:
    """Time one engine beside the reference network's."""
    engine = _load(request)
    reference = _reference(request["runtime"], request["reference"], EngineOptions(**request["options"]))
    before = read_machine()
    timing, own_quiet_ms = time_calls(_timed(engine), reference, **request["timing"])
    on_gpu = installed_runtime(request["runtime"]).device == "cuda"
    return {"timing": timing, "own_quiet_ms": own_quiet_ms, "conditions": conditions(before, on_gpu=on_gpu), "artifact": engine.artifact()}


@lru_cache(maxsize=1)
def _reference(runtime: str, path: str, options: EngineOptions) -> Timed:
    """The reference network's call, kept for the next measurement. One image, one thread: threads that spin would disturb the candidate."""
    return _timed(installed_runtime(runtime).load(path, replace(options, batch=1, threads=1)))


def _timed(engine: Engine) -> Timed:
    """A call of the engine on seeded normal images: denormals and zeros would be timed differently from real ones."""
    images = np.random.default_rng(0).standard_normal(engine.input_shape, dtype=np.float32)
    _run(engine, images)
    return getattr(engine, "time_ns", None) or (lambda: _discard(engine.run(images)))  # DeviceTimed


def _predict(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of all images, written to `out`; the last batch is filled up with zero images."""
    engine = _load(request)
    images = np.load(request["images"], mmap_mode="r", allow_pickle=False)
    batch = engine.input_shape[0]
    logits = []
    for start in range(0, len(images), batch):
        part = np.zeros((batch, *images.shape[1:]), np.float32)
        chunk = images[start : start + batch]
        part[: len(chunk)] = chunk
        logits.append(_run(engine, part)[: len(chunk)])
    with writing(Path(request["out"])):
        np.save(request["out"], np.concatenate(logits))
    return {"artifact": engine.artifact()}


def _build(request: dict[str, Any]) -> dict[str, Any]:
    """Build an engine that need not run here, and write it to `out`."""
    options, targets = EngineOptions(**request["options"]), tuple(request["compute_capability"])
    runtime = building_runtime(request["runtime"], targets)
    check_precision(runtime, options.precision)
    assert runtime.build is not None
    built = runtime.build(request["model"], options, targets)
    write_atomically(Path(request["out"]), built.plan)
    return {"artifact": built.artifact, "size_bytes": len(built.plan), "warnings": built.warnings}


def _files(request: dict[str, Any]) -> dict[str, Any]:
    """Write what the runtime loads in place of the model on this device to the folder `out`; no files where it has none."""
    runtime, options = installed_runtime(request["runtime"]), EngineOptions(**request["options"])
    check_precision(runtime, options.precision)
    made = {} if runtime.files is None else runtime.files(request["model"], options)
    for name, content in made.items():
        write_atomically(Path(request["out"], name), content)
    return {"files": sorted(made)}


def _layer_times(request: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of every node; none where the runtime does not say."""
    runtime, options = installed_runtime(request["runtime"]), EngineOptions(**request["options"])
    check_precision(runtime, options.precision)
    return {"nodes": {} if runtime.layer_times is None else runtime.layer_times(request["model"], options)}


def _load(request: dict[str, Any]) -> Engine:
    options = EngineOptions(**request["options"])
    runtime = installed_runtime(request["runtime"])
    check_precision(runtime, options.precision)
    return runtime.load(request["model"], options)


def _run(engine: Engine, images: np.ndarray) -> np.ndarray:
    """Logits (batch, K); ValueError when the model takes other images or gives anything else."""
    if images.shape != tuple(engine.input_shape):
        raise ValueError(f"the model takes images {tuple(engine.input_shape)}, but got {images.shape}")
    logits = engine.run(images)
    if logits.ndim != 2 or len(logits) != len(images):
        raise ValueError(f"the model must return logits (batch, classes), but returned {logits.shape} for {len(images)} images")
    return logits


def _discard(logits: np.ndarray) -> None:
    """A timed call returns nothing."""


OPS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "ping": _ping,
    "latency": _latency,
    "predict": _predict,
    "build": _build,
    "files": _files,
    "layer_times": _layer_times,
}


def _claim_stdout() -> IO[str]:
    """The real stdout for answers alone: whatever native libraries print to descriptor 1 goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def _die_with_parent(parent: int | None) -> None:
    """Ask Linux for SIGKILL when the parent ends: a hanging build never reads the end of stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it closes us
    if sys.platform == "linux":
        with suppress(OSError):  # where memory runs out, the kernel ends this process and not the search
            Path("/proc/self/oom_score_adj").write_text("1000")
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        raise SystemExit(1)  # it ended before the line above


if __name__ == "__main__":
    raise SystemExit(main(int(sys.argv[1]) if len(sys.argv) > 1 else None))
