"""How runtimes that count the time of their own kernels are asked: what OpenVINO and ONNX Runtime share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

COUNTED_ENGINES, COUNTED_CALLS, COUNTED_S = 5, 20, 0.05


def least(count: Callable[[], Mapping[str, float]]) -> dict[str, float]:
    """Node by node the least of several engines: a pause of the machine adds to one engine's mean.

    `count` builds an engine, calls it, and gives node -> mean milliseconds.
    """
    found = [count() for _ in range(COUNTED_ENGINES)]
    return {name: min(nodes.get(name, mean) for nodes in found) for name, mean in found[0].items()}


def repeated(call: Callable[[], object]) -> list[float]:
    """Call until it was often and long enough for a mean; the milliseconds of each call."""
    times, end = list[float](), time.perf_counter() + COUNTED_S
    while len(times) < COUNTED_CALLS or time.perf_counter() < end:
        begun = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - begun))
    return times


def uncounted(kernels: Sequence[float], call: float) -> list[float]:
    """What each kernel takes when nothing is counted: less one cost, the same for all, so that they add up to no more than `call`.

    `kernels` and `call` are milliseconds, `call` that of a call that counts nothing. No kernel falls below 0. Where they add up to less
    than the call, nothing is taken off: a call also takes time outside of its kernels.
    """
    cost, before = 0.0, 0.0
    for number, kernel in enumerate(sorted(kernels, reverse=True), start=1):
        before += kernel
        if (each := (before - call) / number) > kernel:
            break  # this kernel, and all smaller ones, took nothing but that cost
        cost = max(0.0, each)
    return [max(0.0, milliseconds - cost) for milliseconds in kernels]
