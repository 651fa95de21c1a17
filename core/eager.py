"""The reference that everyone has: a float network as PyTorch itself runs it, op by op on the CPU, as one CUDA graph on a GPU.

It is no entry of RUNTIMES (docs/architecture.md, decision 8): a runtime loads a file in the measuring child and executes INT8, and PyTorch
does neither with a candidate's ONNX. So it is timed in the process that holds the network, by the same protocol and under the same lock.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from core.candidate import LatencyReport
from core.config import RuntimeConfig
from core.hardware import device_fingerprint
from core.latency import Timed, time_calls
from core.machine import conditions, read_machine
from core.measuring import measuring

NAME = "torch"
WARM_UPS = 3
"""Calls before a capture: the first ones choose kernels and allocate."""


def time_eager(network: nn.Module, input_shape: tuple[int, int, int], config: RuntimeConfig, *, on_gpu: bool = False) -> LatencyReport:
    """Time `network`, in float32 and eval mode, on images (batch, *input_shape) with the batch, threads and seconds of `config`.

    Raises MeasurementError when another measurement holds the machine for longer than `config.wait_s`.
    """
    device = torch.device("cuda" if on_gpu else "cpu")
    images = torch.randn((config.batch, *input_shape), generator=torch.Generator().manual_seed(0)).to(device)
    watched, small = nn.Conv2d(16, 32, 3, padding=1).eval().to(device), torch.ones(1, 16, 32, 32, device=device)
    with measuring(config.wait_s), torch.inference_mode(), _quiet_process(config.threads):
        make = _graph if on_gpu else _call
        call, look = make(network.to(device).eval(), images), make(watched, small)
        before = read_machine()
        timing = time_calls(call, look, warmup_s=config.warmup_s, max_s=config.max_s).timing
        seen = conditions(before, on_gpu=on_gpu)
    _, fingerprint = device_fingerprint(config.threads, NAME, torch.__version__, on_gpu=on_gpu)
    facts = {"batch": config.batch, "threads": config.threads, "runtime": NAME, "precision": "f32", "fingerprint": fingerprint}
    return LatencyReport.model_validate({**timing, **seen, **facts})


def _call(network: nn.Module, images: torch.Tensor) -> Timed:
    def call() -> None:
        network(images)

    return call


def _graph(network: nn.Module, images: torch.Tensor) -> Timed:
    """Captured once, then replayed between two events: the GPU's own clock, without Python between the kernels."""
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            network(images)
    stream.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        network(images)

    def replay() -> int:
        with torch.cuda.stream(stream):
            start.record(stream)
            graph.replay()
            end.record(stream)
        end.synchronize()
        return round(start.elapsed_time(end) * 1e6)

    return replay


@contextmanager
def _quiet_process(threads: int) -> Iterator[None]:
    """So many threads, and denormals as zero, which untrained weights have and trained ones do not."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        torch.set_num_threads(before)
