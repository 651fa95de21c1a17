"""python -m core.pack: what a packed weight file holds and what every coding takes; other codings and safetensors of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.cli import Parser
from core.errors import UserError
from core.files import write_atomically
from core.pack import context, huffman
from core.pack.binary import fits_fp16, packed_size
from core.pack.file import coding_of, is_codable, pack, unpack
from core.pack.types import CODINGS, PackError, QTensor, Tensor

SCALES = ".scales"
"""Behind a tensor's name in a safetensors file: the scales of its integers."""
BITS_KEY = "bits"
"""In the file's metadata: JSON, name -> bits, in the order of the packed file; 0 for floats."""


@dataclass(frozen=True)
class Sizes:
    """Bytes of one tensor's values in every coding, without scales and names. Floats have one size."""

    raw: int
    """In float32."""
    packed: int
    huffman: int
    coded: float
    """Its share of the common stream, and its guesses."""
    entropy: float
    """Count times order-0 entropy: the least for one table per tensor, and that table for nothing."""


def sizes_of(tensors: Mapping[str, Tensor]) -> dict[str, Sizes]:
    """The sizes of every tensor, in order."""
    codable = {name: tensor for name, tensor in tensors.items() if is_codable(tensor)}
    layers = [context.describe(tensor.values, tensor.bits) for tensor in codable.values()]
    bits = context.costs(layers, [tensor.values for tensor in codable.values()])
    coded = {name: cost / 8 + 1 + bool(layer.centre) for name, cost, layer in zip(codable, bits, layers, strict=True)}
    return {name: _sizes(tensor, coded.get(name)) for name, tensor in tensors.items()}


def _sizes(tensor: Tensor, coded: float | None) -> Sizes:
    if not isinstance(tensor, QTensor):
        stored = tensor.size * (2 if fits_fp16(tensor) else 4)
        return Sizes(tensor.size * 4, stored, stored, stored, stored)
    packed = packed_size(tensor.values.size, tensor.bits)
    entropy = entropy_bytes(tensor.values)
    if coded is None:
        return Sizes(tensor.values.size * 4, packed, packed, packed, entropy)
    return Sizes(tensor.values.size * 4, packed, min(len(huffman.encode(tensor.values)), packed), coded, entropy)


def entropy_bytes(values: np.ndarray) -> float:
    """Count times order-0 entropy of `values`, any shape, in bytes."""
    counts = np.unique(values, return_counts=True)[1]
    return float((counts * np.log2(max(values.size, 1) / counts)).sum()) / 8


def main(argv: list[str] | None = None) -> int:
    """Packed weight files: what is in them, and the same weights in another coding."""
    parser = Parser(prog="python -m core.pack", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="print shape, bits and bytes of every tensor in every coding")
    inspect.add_argument("file", type=Path)
    repack = commands.add_parser("pack", help="write a packed file, or what `unpack` wrote, in a coding")
    repack.add_argument("file", type=Path)
    repack.add_argument("out", type=Path)
    repack.add_argument("--coding", choices=CODINGS, default="packed", help="how integers are written (default: packed)")
    spread = commands.add_parser("unpack", help="write integers, scales and floats as safetensors")
    spread.add_argument("file", type=Path)
    spread.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    if args.command == "inspect":
        _inspect(args.file)
    elif args.command == "pack":
        data = pack(_read(args.file), args.coding)
        write_atomically(args.out, data)
        print(f"{args.out}: {len(data)} bytes, {coding_of(data)}")
    else:
        write_atomically(args.out, _as_safetensors(unpack(_bytes_of(args.file))))
        print(args.out)
    return 0


def _inspect(path: Path) -> None:
    data = _bytes_of(path)
    tensors = unpack(data)
    sizes = sizes_of(tensors)
    print(f"{'tensor':40} {'shape':>18} {'bits':>4} {'float32':>10} {'packed':>9} {'huffman':>9} {'coded':>9} {'entropy':>9}")
    for name, tensor in tensors.items():
        values = tensor.values if isinstance(tensor, QTensor) else tensor
        bits = tensor.bits if isinstance(tensor, QTensor) else (16 if fits_fp16(tensor) else 32)
        print(f"{name:40} {'x'.join(map(str, values.shape)) or 'scalar':>18} {bits:>4} {_row(sizes[name])}")
    scales = sum(tensor.scales.size * (2 if fits_fp16(tensor.scales) else 4) for tensor in tensors.values() if isinstance(tensor, QTensor))
    print(f"{'scales':40} {'':>18} {'':>4} {'':>10} {scales:>9} {scales:>9} {scales:>9} {scales:>9}")
    files = {coding: len(pack(tensors, coding)) for coding in CODINGS}
    total = Sizes(sum(each.raw for each in sizes.values()), files["packed"], files["huffman"], files["coded"], np.nan)
    print(f"{'whole file, with names and checksum':40} {'':>18} {'':>4} {_row(total)}")
    print(f"this file is {coding_of(data)}: {len(data)} bytes")


def _row(sizes: Sizes) -> str:
    entropy = "" if np.isnan(sizes.entropy) else f"{sizes.entropy:.0f}"
    return f"{sizes.raw:>10} {sizes.packed:>9} {sizes.huffman:>9} {sizes.coded:>9.0f} {entropy:>9}"


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"FILE must be a readable packed weight file, but {path}: {error.strerror}") from error


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a packed file, or of a safetensors file as `unpack` writes it."""
    data = _bytes_of(path)
    return _from_safetensors(path) if path.suffix == ".safetensors" else unpack(data)


def _as_safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Integers under their names, scales behind `.scales`, the bits in the metadata."""
    from safetensors.numpy import save

    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        arrays |= {name: tensor.values, name + SCALES: tensor.scales} if isinstance(tensor, QTensor) else {name: tensor}
    bits = {name: tensor.bits if isinstance(tensor, QTensor) else 0 for name, tensor in tensors.items()}
    if len(arrays) < len(tensors) + sum(depth > 0 for depth in bits.values()):
        raise UserError(f"no tensor's name may end in {SCALES!r} where another has scales, but one does; rename it")
    contiguous = {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}
    return save(contiguous, metadata={BITS_KEY: json.dumps(bits)})


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    """The inverse of `_as_safetensors`. Raises UserError for a file that is none."""
    from safetensors import SafetensorError, safe_open

    wrong = (SafetensorError, KeyError, AttributeError, TypeError, ValueError, RecursionError)  # TypeError: a type that numpy lacks
    try:
        with safe_open(path, "numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not iterable itself
            bits = json.loads((file.metadata() or {})[BITS_KEY])
            return {name: QTensor(arrays[name], arrays[name + SCALES], depth) if depth else arrays[name] for name, depth in bits.items()}
    except wrong as error:
        raise PackError(f"{path} must be a packed weight file or what `core.pack unpack` wrote of one, but is not ({error})") from error
