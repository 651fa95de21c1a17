"""python -m core.predict --bundle DIR [--top-k K] [--csv OUT.csv] IMAGE... | FOLDER | -

Answers a line per image (`path  label 0.9812  label2 0.0101`), best class first. A folder is read with its sub-folders; `-` takes
paths from standard input and answers each at once. `--csv` writes the columns path,label,probability instead (`-`: to stdout).
An image that cannot be read is named on stderr and the others are answered; the exit code is then 2.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from core.cli import Parser, run_main
from core.errors import EngineBuildError, UserError
from core.hardware import usable_cores

if TYPE_CHECKING:
    import numpy as np

    from core.bundle import Bundle
    from core.runtimes import Engine

BATCH = 64
STDIN = "-"
Ranked = list[tuple[str, float]]
"""(label, probability), best first."""


def main(argv: list[str]) -> int:
    """The command; returns 0, or 2 when an image could not be read. Errors: UserError."""
    args = parse_arguments(argv)
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # paths need not be valid UTF-8
    batches, batch = plan_batches(args.images)
    from core.bundle import read_bundle  # late: --help and bad arguments answer without numpy and pydantic

    bundle = read_bundle(args.bundle)
    top_k = check_top_k(args.top_k, len(bundle.labels), default=1 if args.csv else 3)
    engine = load_engine(bundle, batch)
    answered = unread = 0
    with open_output(args.csv) as write:
        for path, answer in classify(bundle, engine, batches, batch):
            if isinstance(answer, UserError):
                unread += 1
                print(f"error: {answer}", file=sys.stderr, flush=True)
            else:
                answered += 1
                write(path, answer[:top_k])
    if args.csv not in (None, STDIN):
        print(f"{args.csv}: {answered} images answered, {unread} not readable")
    return 2 if unread else 0


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    """Check what can be checked without the bundle."""
    parser = Parser(prog="python -m core.predict", description="Classify images with an exported bundle.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="image files, folders, or - for paths on standard input")
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="folder written by search.export_best")
    parser.add_argument("--top-k", type=int, metavar="K", help="classes per image, best first (default: 3; with --csv: 1)")
    parser.add_argument("--csv", metavar="OUT.csv", help="write path,label,probability to this file (-: standard output), K rows an image")
    args = parser.parse_args(argv)
    if not args.images:
        raise UserError("predict needs images, but none is named; add image files, a folder, or - to read paths from standard input")
    if STDIN in args.images and len(args.images) > 1:
        raise UserError(f"- (paths on standard input) stands alone, but {len(args.images) - 1} more are named; give one or the other")
    if args.csv not in (None, STDIN) and not Path(args.csv).absolute().parent.is_dir():
        raise UserError(f"--csv needs an existing folder, but {Path(args.csv).parent} is none; make it first")
    if args.csv and os.path.isdir(args.csv):
        raise UserError(f"--csv names a file, but {args.csv} is a folder; add a file name")
    return args


def check_top_k(asked: int | None, classes: int, default: int) -> int:
    """Classes to show per image; only what the user asked for can be wrong."""
    if asked is None:
        return min(default, classes)
    if not 1 <= asked <= classes:
        raise UserError(f"--top-k must be from 1 to the bundle's {classes} classes, but got {asked}")
    return asked


def plan_batches(images: Sequence[str]) -> tuple[Iterable[list[str]], int]:
    """Paths in groups, and the engine's batch: one by one from standard input, else up to BATCH at once."""
    if list(images) == [STDIN]:
        return ([os.fsdecode(line)] for line in map(bytes.strip, sys.stdin.buffer) if line), 1
    paths = [path for image in images for path in expand(image)]
    return (paths[start : start + BATCH] for start in range(0, len(paths), BATCH)), min(BATCH, len(paths))


def expand(image: str) -> list[str]:
    """The file itself, or the images under a folder, sorted. UserError: no such file, a folder without images."""
    from core.data.images import IMAGE_SUFFIXES

    if not os.path.exists(image):
        raise UserError(f"every image must exist, but there is no file or folder {image}")
    if not os.path.isdir(image):
        return [image]
    found = sorted(
        os.path.join(place, name)
        for place, _, names in os.walk(image)
        for name in names
        if not is_hidden(os.path.relpath(os.path.join(place, name), image)) and Path(name).suffix.lower() in IMAGE_SUFFIXES
    )
    if not found:
        raise UserError(f"a folder must hold images ({', '.join(sorted(IMAGE_SUFFIXES))}), but {image} has none")
    return found


def is_hidden(relative: str) -> bool:
    """Whether the file or a folder on the way to it starts with a dot, as thumbnails and checkpoints do."""
    return any(part.startswith(".") for part in relative.split(os.sep))


def load_engine(bundle: Bundle, batch: int) -> Engine:
    """The bundle's model in the bundle's own runtime; never silently in another, whose numbers were not measured.

    Where this processor lacks the bundle's precision of float layers, they are computed in f32, which is more exact.
    """
    from core.runtimes import EngineOptions, installed_runtime, resolve_runtime

    runtime = installed_runtime(resolve_runtime(bundle.runtime))
    precision = bundle.precision if bundle.precision in runtime.precisions else "f32"
    options = EngineOptions(batch=batch, threads=min(batch, usable_cores()), precision=precision)
    try:
        engine = runtime.load(str(bundle.onnx), options)
    except (RuntimeError, EngineBuildError) as error:
        raise UserError(f"{bundle.onnx} must load in {runtime.name} {runtime.version}, but: {str(error).splitlines()[0]}") from error
    wanted = (batch, bundle.preprocessing.channels, bundle.preprocessing.image_size, bundle.preprocessing.image_size)
    if engine.input_shape != wanted:
        raise UserError(f"model and preprocessing must agree, but {bundle.onnx} takes {engine.input_shape}, not {wanted}; export it again")
    return engine


def classify(bundle: Bundle, engine: Engine, groups: Iterable[list[str]], batch: int) -> Iterator[tuple[str, Ranked | UserError]]:
    """For each path, in order: its classes by falling probability, or the reason why it cannot be read."""
    with ThreadPoolExecutor() as pool:  # PIL decodes outside the interpreter's lock
        for paths in groups:
            decoded = list(pool.map(lambda path: decode(path, bundle), paths))
            answers = iter(rank(bundle, engine, [image for image in decoded if not isinstance(image, UserError)], batch))
            for path, image in zip(paths, decoded, strict=True):
                yield path, image if isinstance(image, UserError) else next(answers)


def decode(path: str, bundle: Bundle) -> np.ndarray | UserError:
    """uint8 (C, H, W), or the error as a value: one bad image must not end the batch."""
    from core.data.images import decode_image

    try:
        return decode_image(Path(path), bundle.preprocessing.image_size, bundle.preprocessing.channels)
    except UserError as error:
        return error


def rank(bundle: Bundle, engine: Engine, images: list[np.ndarray], batch: int) -> list[Ranked]:
    """Every class with its probability, best first, per image. The engine's batch is fixed: it is filled up with zeros."""
    import numpy as np

    if not images:
        return []
    padded = np.zeros((batch, *images[0].shape), np.float32)
    padded[: len(images)] = bundle.preprocessing.normalise(np.stack(images))
    logits = engine.run(padded)[: len(images)].astype(np.float64)
    if logits.shape[1] != len(bundle.labels) or not np.isfinite(logits).all():
        raise UserError(f"the model must give {len(bundle.labels)} finite logits, but {bundle.onnx} does not; export the bundle again")
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = powers / powers.sum(axis=1, keepdims=True)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return [[(bundle.labels[i], float(row[i])) for i in best] for row, best in zip(probabilities, order, strict=True)]


@contextlib.contextmanager
def open_output(target: str | None) -> Iterator[Callable[[str, Ranked], None]]:
    """Where answers go: lines on stdout (None), CSV on stdout (-), or a CSV file that appears when it is complete."""
    if target is None:
        yield write_line
    elif target == STDIN:
        yield csv_writer(sys.stdout)
    else:
        # a device or a named pipe cannot be replaced by a finished file
        partial = target if os.path.exists(target) and not os.path.isfile(target) else f"{target}.{os.getpid()}.tmp"
        try:
            with open(partial, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                yield csv_writer(file)
            if partial != target:
                os.replace(partial, target)
        finally:
            if partial != target and os.path.exists(partial):
                os.unlink(partial)


def write_line(path: str, ranked: Ranked) -> None:
    """`path  label 0.9812  label2 0.0101`"""
    print("  ".join([path, *(f"{label} {probability:.4f}" for label, probability in ranked)]), flush=True)


def csv_writer(file: TextIO) -> Callable[[str, Ranked], None]:
    """Writes the header now and a row per class later, each flushed: a reader of the pipe waits for it."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("path", "label", "probability"))

    def write(path: str, ranked: Ranked) -> None:
        writer.writerows((path, label, f"{probability:.6f}") for label, probability in ranked)
        file.flush()

    return write


if __name__ == "__main__":
    raise SystemExit(run_main(main))
