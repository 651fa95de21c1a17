"""Images that stay files: listed, and decoded when asked for, since all of them would not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from core.data.images import decode_image, quiet_decoder
from core.data.listing import Entry
from core.data.types import chunk_size
from core.errors import Disturbed, UserError
from core.hardware import usable_cores

T = TypeVar("T")

CHUNK = 256
SURVEY_IMAGES = 1000
SAMPLE_BYTES = 4096
MOST_WORKERS = 8
BAD_REMEDY = "repair or remove it, or leave such images out with --skip-bad"
"""Of a file that cannot be decoded."""


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """N image files below `root`; each is decoded as `decode_image` does, so that a bundle's predictions see the same pixels."""

    root: Path
    paths: np.ndarray
    """str (N,), relative to `root`: an array, since reading a list of texts writes to them (their reference counts), and every worker
    process would get a copy of its own."""
    sizes: np.ndarray
    """int64 (N,), bytes"""
    labels: torch.Tensor
    """int64 (N,), on the CPU"""
    image_size: int
    channels: int
    workers: int
    """Processes that decode ahead of a training; 0: the training process itself."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        return self.channels, self.image_size, self.image_size

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / str(self.paths[index])

    def subset(self, indices: np.ndarray | torch.Tensor) -> ImageFiles:
        """The files at `indices` (int64), in that order."""
        at = np.asarray(indices)
        return replace(self, paths=self.paths[at], sizes=self.sizes[at], labels=self.labels[torch.from_numpy(at)])

    def labelled(self, labels: torch.Tensor) -> ImageFiles:
        """The same files with other labels (N,)."""
        return replace(self, labels=labels)

    def take(self, indices: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W): the images at `indices` (B,). Raises Disturbed naming a file that cannot be decoded."""
        return self.decoded(indices, lambda index: decode_image(self.path(index), self.image_size, self.channels))

    def decoded(self, indices: torch.Tensor, decode: Callable[[int], np.ndarray]) -> torch.Tensor:
        """uint8 (B, C, H, W): `decode` of every index, in threads. Raises Disturbed naming a file that cannot be decoded."""
        images = np.empty((len(indices), *self.shape), np.uint8)
        wanted = indices.tolist()

        def fill(position: int) -> None:
            try:
                images[position] = decode(wanted[position])
            except UserError as error:
                raise Disturbed(f"{error}; {BAD_REMEDY}") from error

        in_threads(fill, range(len(wanted)), chunk=16)
        return torch.from_numpy(images)

    def chunks(self) -> Iterator[torch.Tensor]:
        """All images in order, in parts that fit into memory as floats."""
        return (self.take(part) for part in torch.arange(len(self)).split(chunk_size(self.shape)))

    def survey(self) -> torch.Tensor:
        """At most 1,000 images, evenly spread: more would change mean and deviation in the third digit only."""
        return self.take(torch.linspace(0, len(self) - 1, min(len(self), SURVEY_IMAGES)).long())

    def content(self) -> Iterator[bytes | memoryview]:
        """Shape, names and bytes of the files, labels, and what is within some: to read all at every start would take an epoch."""
        yield repr((len(self), self.shape)).encode()
        for path, size in zip(self.paths.tolist(), self.sizes.tolist(), strict=True):
            yield f"{path} {size}\n".encode("utf-8", "surrogateescape")
        yield self.labels.numpy().data
        # files of a format without compression are of one size, whatever they show
        some = torch.linspace(0, len(self) - 1, min(len(self), SURVEY_IMAGES)).long().tolist()
        yield from in_threads(lambda index: _middle(self.path(index), int(self.sizes[index])), some, chunk=16)


def _middle(path: Path, size: int) -> bytes:
    """At most 4 KB of a file; nothing of one that cannot be read, which its decoding will report."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, (size - SAMPLE_BYTES) // 2))
            return file.read(SAMPLE_BYTES)
    except OSError:
        return b""


def image_files(root: Path, entries: Sequence[Entry], size: int, channels: int, workers: int | None) -> ImageFiles:
    """The listed files as images of `size` x `size`; `workers` None: one a core, at most 8, none on a single core."""
    return ImageFiles(
        root=root,
        paths=np.array([entry.path for entry in entries], dtype=np.str_),
        sizes=np.array([entry.size for entry in entries], np.int64),
        labels=torch.tensor([entry.label for entry in entries], dtype=torch.int64),
        image_size=size,
        channels=channels,
        workers=default_workers() if workers is None else workers,
    )


def default_workers() -> int:
    """As many as this process may use cores, at most 8; 0 where a worker would only take turns with the training."""
    cores = usable_cores()
    return min(cores, MOST_WORKERS) if cores > 1 else 0


def unreadable_files(root: Path, entries: Sequence[Entry], size: int, channels: int) -> list[str | None]:
    """Per file the reason why it cannot be decoded; None for a sound one. Decodes all of them."""

    def reason(index: int) -> str | None:
        try:
            decode_image(root / entries[index].path, size, channels)
        except UserError as error:
            return str(error)
        return None

    return in_threads(reason, range(len(entries)))


def in_threads(work: Callable[[Any], T], items: Sequence[Any], chunk: int = CHUNK) -> list[T]:
    """`work` of every item, in order. Threads suffice: Pillow decodes outside the interpreter's lock."""
    from joblib import Parallel, delayed

    def run(start: int) -> list[T]:
        return [work(item) for item in items[start : start + chunk]]

    with quiet_decoder():
        parts = Parallel(n_jobs=-1, prefer="threads")(delayed(run)(start) for start in range(0, len(items), chunk))
    return [result for part in parts for result in part]
