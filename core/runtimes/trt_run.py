"""Engines of TensorRT and TensorRT-RTX, run: images and logits in device memory, one CUDA graph a call, timed by CUDA events.

The library takes torch's memory and streams, so that one CUDA runtime and no other binding is needed.

References: NVIDIA TensorRT documentation, "CUDA Graphs"; TensorRT-RTX documentation, "Working with RTX CUDA Graphs",
"Working with Runtime Cache".
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import EngineBuildError
from core.files import write_atomically
from core.hardware import gpu
from core.runtimes.trt_build import Log, build, count_layers, listening
from core.runtimes.types import Artifact, EngineOptions

DIGEST_BYTES = 32
WARM_UPS = 3
"""Calls before a capture: the first ones allocate and compile."""


class TrtEngine:
    """One engine on the current GPU; `module` is the library, `version` is in the names of its caches."""

    def __init__(self, module: str, name: str, version: str, path: str, options: EngineOptions) -> None:
        import torch  # late: seconds

        if not torch.cuda.is_available():
            raise EngineBuildError(f"{name} runs engines on an NVIDIA GPU, but PyTorch sees none here; build only, or use another runtime")
        trt, self._log, self._options = importlib.import_module(module), Log(), options
        caches = _Caches(options.cache, name, version, torch.cuda.get_device_name(), (gpu() or {}).get("driver", "unknown driver"))
        self._files: dict[str, bytes] = {}
        self._is_rtx = hasattr(trt, "CudaGraphStrategy")  # it compiles at the first call, captures by itself and times nothing
        if self._is_rtx:
            built, _ = build(module, name, path, options, ("CURRENT",))
        else:
            built, timings = build(module, name, path, options, timing_cache=caches.read("timing"))
            caches.write("timing", timings)
            self._files["timing.cache"] = timings or b""
        self._files["model.engine"] = built.plan
        self._listener = listening(trt, self._log)  # kept here: the library holds plain pointers
        self._runtime = trt.Runtime(self._listener)
        self._engine = self._runtime.deserialize_cuda_engine(built.plan)
        if self._engine is None:
            raise EngineBuildError(f"{name} cannot load what it has built: {self._log.last_errors()}")
        self._inspector_format = trt.LayerInformationFormat.ONELINE
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        tensors = {tensor: torch.empty(tuple(self._engine.get_tensor_shape(tensor)), device="cuda") for tensor in names}
        inputs = [tensor for tensor in names if self._engine.get_tensor_mode(tensor) == trt.TensorIOMode.INPUT]
        outputs = [tensor for tensor in names if tensor not in inputs]
        self._images, self._logits = tensors[inputs[0]], tensors[outputs[0]]
        self.input_shape = tuple(self._images.shape)
        self._stream = torch.cuda.Stream()
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._launch = self._captured(trt, tensors, caches)

    def run(self, images: np.ndarray) -> np.ndarray:
        """Logits (batch, K), a copy in host memory."""
        import torch

        with torch.cuda.stream(self._stream):
            self._images.copy_(torch.from_numpy(images))
            self._launch()
            return self._logits.cpu().numpy()

    def files(self) -> dict[str, bytes]:
        """The engine as it was built, and its timing or kernel cache (`ENGINE_FILES`)."""
        return dict(self._files)

    def time_ns(self) -> int:
        """One call between two events, without copies from and to the host."""
        import torch

        with torch.cuda.stream(self._stream):
            self._start.record(self._stream)
            self._launch()
            self._end.record(self._stream)
        self._end.synchronize()
        return round(self._start.elapsed_time(self._end) * 1e6)

    def artifact(self) -> Artifact:
        """Precisions as the library's inspector lists them, layer by layer."""
        description = self._engine.create_engine_inspector().get_engine_information(self._inspector_format)
        return count_layers(description, self._options.precision)

    def _captured(self, trt: Any, tensors: dict[str, Any], caches: _Caches) -> Callable[[], object]:
        """A function that enqueues one call on the current stream, as one graph launch."""
        import torch

        kernels = None
        if self._is_rtx:
            config = self._engine.create_runtime_config()
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            kernels = config.create_runtime_cache()
            kept = caches.read("kernels")
            if kept:
                kernels.deserialize(kept)  # refused where another driver or library wrote it: it then starts empty
            config.set_runtime_cache(kernels)
            self._context = self._engine.create_execution_context(config)
        else:
            self._context = self._engine.create_execution_context()
        for name, tensor in tensors.items():
            self._context.set_tensor_address(name, tensor.data_ptr())
        with torch.cuda.stream(self._stream):
            self._images.zero_()
            for _ in range(WARM_UPS):
                self._enqueue()
        self._stream.synchronize()
        if kernels is not None:
            self._files["kernels.cache"] = bytes(kernels.serialize())
            caches.write("kernels", self._files["kernels.cache"])
            return self._enqueue
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            self._enqueue()
        return graph.replay

    def _enqueue(self) -> None:
        import torch

        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise EngineBuildError(f"the engine cannot run: {self._log.last_errors()}")


class _Caches:
    """Files of one library version, GPU and driver, each behind its SHA-256; what is damaged, or another's, counts as empty."""

    def __init__(self, folder: str | None, *facts: str) -> None:
        self._folder, device = None if folder is None else Path(folder), "-".join(facts)
        self._device = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in device)

    def read(self, kind: str) -> bytes:
        """The content, b"" where there is none."""
        path = self._path(kind)
        stored = path.read_bytes() if path is not None and path.is_file() else b""
        digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        return content if hashlib.sha256(content).digest() == digest else b""

    def write(self, kind: str, content: bytes | None) -> None:
        """Keep the content, unless there is nowhere to."""
        path = self._path(kind)
        if path is not None and content is not None:
            write_atomically(path, hashlib.sha256(content).digest() + content)

    def _path(self, kind: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{self._device}.{kind}"
