"""A classifier of another library behind our interface: its layers found by running it, its published weights under our names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import UserError, one_line
from core.layers import evaluating, layer_infos

NETWORK = "network."
"""In front of every key of the library's own state dict."""
BUILD_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, ArithmeticError)
"""What the libraries raise on sizes that a network cannot have."""


@dataclass(frozen=True)
class Published:
    """What a library says of the published weights of a network."""

    mean: tuple[float, ...]
    """Of the normalisation of their images, per channel on the [0, 1] scale."""
    std: tuple[float, ...]
    load: Callable[[], Mapping[str, Tensor]]
    """Their state dict under the library's names; downloads it. Raises OSError or RuntimeError where there is none."""


class LibraryNetwork(nn.Module):
    """`network` maps images to logits; `head` is the path of its last layer. `moved` maps a module's old path to the one it has now."""

    def __init__(self, name: str, network: nn.Module, head: str, published: Published, moved: Mapping[str, str]) -> None:
        super().__init__()
        self.name, self.head, self.published, self.moved = name, NETWORK + head, published, dict(moved)
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes)."""
        logits: Tensor = self.network(x)
        return logits

    def renamed(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The library's state dict under our keys; ours stay. Images of one channel take the sum of a colour stem's kernels.

        A head for other classes is left out in favour of the one that this network has: see `has_other_head`.
        """
        ours = self.state_dict()
        found = {self._key(key): value for key, value in state.items()}
        for key, value in found.items():
            wanted = ours.get(key, value)
            if key.startswith(f"{self.head}."):
                found[key] = value if value.shape == wanted.shape else wanted
            elif value.ndim == 4 and value.shape[1] == 3 and (value.shape[0], 1, *value.shape[2:]) == tuple(wanted.shape):
                found[key] = value.sum(1, keepdim=True)
        return found

    def has_other_head(self, state: Mapping[str, Tensor]) -> bool:
        """Whether the head in the library's state dict is for another number of classes."""
        ours = self.state_dict()
        heads = {self._key(key): value for key, value in state.items()}
        return any(key.startswith(f"{self.head}.") and key in ours and ours[key].shape != value.shape for key, value in heads.items())

    def _key(self, key: str) -> str:
        if key.startswith(NETWORK):
            return key
        path, _, leaf = key.rpartition(".")
        return f"{NETWORK}{self.moved.get(path, path)}.{leaf}" if path else NETWORK + key


class RegionalNetwork(LibraryNetwork):
    """One whose logits are a linear layer on the mean of a map, the output of its module `source`."""

    def __init__(self, name: str, network: nn.Module, head: str, published: Published, moved: Mapping[str, str], source: str) -> None:
        super().__init__(name, network, head, published, moved)
        self.source = source

    @property
    def classifier(self) -> nn.Linear:
        """The linear layer."""
        layer = self.get_submodule(self.head)
        assert isinstance(layer, nn.Linear)
        return layer

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the map (B, F, h, w), after the last activation."""
        seen: list[Tensor] = []
        handle = self.network.get_submodule(self.source).register_forward_hook(lambda module, args, output: seen.append(output))
        try:
            self.network(x)
        finally:
            handle.remove()
        return seen[-1]


def adapted(name: str, network: nn.Module, shape: tuple[int, int, int], published: Published, moved: Mapping[str, str]) -> LibraryNetwork:
    """`network` behind our interface, with `features` and `classifier` where its logits are linear in the mean of a map.

    `shape` is that of its images (C, H, W). UserError when it does not run on them.
    """
    channels, height, width = shape
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    try:
        head = layer_infos(network, shape)[-1].name
        source = map_of(network, head, images)
    except BUILD_ERRORS as error:
        reason = one_line(error, 160)
        law = f"{name} must run on images of {channels} x {height} x {width}, but does not ({reason})"
        raise UserError(f"{law}; raise data.image_size, or take another network") from error
    if source is None:
        return LibraryNetwork(name, network, head, published, moved)
    return RegionalNetwork(name, network, head, published, moved, source)


@torch.no_grad()
def map_of(network: nn.Module, head: str, images: Tensor) -> str | None:
    """The last module whose output (B, F, h, w), averaged over h and w, is what the linear layer `head` takes; None without one."""
    if not isinstance(network.get_submodule(head), nn.Linear):
        return None
    means: list[tuple[str, int, Tensor]] = []
    taken: list[Tensor] = []

    def record(path: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if path == head:
                taken.append(args[0].clone())
            elif isinstance(output, Tensor) and output.ndim == 4:
                means.append((path, output.shape[-1], output.mean((2, 3))))

        return hook

    handles = [module.register_forward_hook(record(path)) for path, module in network.named_modules() if path]
    try:
        with evaluating(network):
            network(images)
    finally:
        for handle in handles:
            handle.remove()
    (wanted,) = taken
    if wanted.ndim != 2 or not wanted.any():
        return None
    near = 1e-4 * float(wanted.abs().max())
    alike = [entry for entry in means if entry[2].shape == wanted.shape]
    fitting = [(size, path) for path, size, mean in alike if torch.allclose(mean, wanted, rtol=0.0, atol=near)]
    # a pooled map fits too, with one cell
    return max(enumerate(fitting), key=lambda entry: (entry[1][0], entry[0]))[1][1] if fitting else None


def check_width(name: str, width: float) -> None:
    """UserError for a width: a library's network has its own channels."""
    if width != 1.0:
        raise UserError(f"{name} must have width 1.0, as a library's network has its own channels, but got {width:g}; set width to 1.0")
