"""How runtimes that count the time of their own kernels are asked: what OpenVINO and ONNX Runtime share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

COUNTED_ENGINES, COUNTED_CALLS, COUNTED_S = 5, 20, 0.05


def least(count: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Node by node the least of several engines: a pause of the machine adds to one engine's mean.

    `count` builds an engine, calls it, and gives node -> mean milliseconds.
    """
    found = [count() for _ in range(COUNTED_ENGINES)]
    return {name: min(nodes.get(name, mean) for nodes in found) for name, mean in found[0].items()}


def repeated(call: Callable[[], object]) -> int:
    """Call until it was often and long enough for a mean; how often."""
    calls, end = 0, time.perf_counter() + COUNTED_S
    while calls < COUNTED_CALLS or time.perf_counter() < end:
        call()
        calls += 1
    return calls
