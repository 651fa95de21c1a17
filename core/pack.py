"""The packed weight file: b-bit integers, their scales and the remaining floats, without loss and without pickles.

Layout (integers are unsigned LEB128 varints unless stated, floats little-endian)::

    magic "PPAK" | version u8 | number of tensors | tensor ... | CRC-32 of all before it, u32 little-endian
    tensor = name length, UTF-8 name | kind u8 | rank, dimensions | scales (integers only) | values
    kind   = bits 0-4: 0 for floats, else the integers' bits (2-8, 16); bit 7: the floats are fp32, else fp16

Integers are two's complement, most significant bit first, packed without gaps and padded with zeros to whole bytes;
there is one scale per output channel (the first dimension). A float array is stored as fp16 only when every value comes
back bit-exactly, so the file is lossless by construction, and there is one encoding per content:
`pack(unpack(b)) == b` for every accepted `b`.

    python -m core.pack inspect FILE
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.candidate import WEIGHT_BITS
from core.cli import Parser, run_main
from core.errors import UserError

MAGIC = b"PPAK"
VERSION = 1
BITS = WEIGHT_BITS
MAX_RANK = 8
MAX_ELEMENTS = 2**40  # empty arrays too: numpy refuses shapes whose non-zero dimensions overflow
MAX_VARINT_BYTES = 6
FP32_FLAG = 0x80


class PackError(UserError):
    """These bytes are no packed weight file, or these tensors do not fit in one."""


@dataclass(frozen=True, eq=False)
class QTensor:
    """Quantised weights: `values` (out, ...) int8 for 2-8 bits or int16 for 16, `scales` (out,) float32."""

    values: np.ndarray
    scales: np.ndarray
    bits: int


Tensor = QTensor | np.ndarray


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The file's bytes, tensors in the order given; PackError when one has the wrong type, shape or range."""
    body = b"".join(_encode(name, tensor) for name, tensor in tensors.items())
    content = MAGIC + bytes([VERSION]) + _varint(len(tensors)) + body
    return content + struct.pack("<I", zlib.crc32(content))


def unpack(data: bytes) -> dict[str, Tensor]:
    """The tensors of a packed file; PackError when the bytes are malformed. Memory is bounded by a multiple of len(data)."""
    tensors = {name: tensor for name, tensor, _ in _entries(data)}
    if pack(tensors) != data:
        raise PackError("a packed weight file must be in its one canonical form, but this one is not; write it with core.pack")
    return tensors


def main(argv: list[str] | None = None) -> int:
    """Print shape, bits and bytes of every tensor of a packed weight file."""
    parser = Parser(prog="python -m core.pack", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help=main.__doc__)
    inspect.add_argument("file", type=Path)
    path = parser.parse_args(argv).file
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"FILE must be a readable packed weight file, but {path}: {error.strerror}") from error
    unpack(data)
    print(f"{'tensor':40} {'shape':>18} {'bits':>4} {'bytes':>9}")
    for name, tensor, size in _entries(data):
        values = tensor.values if isinstance(tensor, QTensor) else tensor
        bits = tensor.bits if isinstance(tensor, QTensor) else (16 if _fits_fp16(tensor) else 32)
        print(f"{name:40} {'x'.join(map(str, values.shape)) or 'scalar':>18} {bits:>4} {size:>9}")
    print(f"{'total, with header and checksum':40} {'':>18} {'':>4} {len(data):>9}")
    return 0


def _encode(name: str, tensor: Tensor) -> bytes:
    """Name, kind, shape, scales and values of one tensor."""
    if isinstance(tensor, QTensor):
        _check_quantised(name, tensor)
        fp32, scales = _encode_floats(name, tensor.scales)
        head, payload, shape = tensor.bits | fp32, scales + _encode_integers(tensor.values, tensor.bits), tensor.values.shape
    else:
        head, payload = _encode_floats(name, tensor)
        shape = tensor.shape
    if len(shape) > MAX_RANK or math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
        raise PackError(f"a packed tensor has at most {MAX_RANK} dimensions and 2**40 elements, but {name!r} is {shape}")
    utf8 = name.encode()
    dimensions = b"".join(_varint(size) for size in (len(shape), *shape))
    return _varint(len(utf8)) + utf8 + bytes([head]) + dimensions + payload


def _check_quantised(name: str, tensor: QTensor) -> None:
    """PackError unless bits, dtype, shape and range of `tensor` belong together."""
    if tensor.bits not in BITS:
        raise PackError(f"bits must be one of {', '.join(map(str, BITS))}, but {name!r} has {tensor.bits}")
    dtype = np.dtype(np.int16 if tensor.bits == 16 else np.int8)
    if tensor.values.dtype != dtype:
        raise PackError(f"{tensor.bits}-bit values must be {dtype}, but {name!r} has {tensor.values.dtype}")
    if tensor.values.ndim == 0 or tensor.scales.shape != tensor.values.shape[:1]:
        raise PackError(f"one scale per output channel, but {name!r} has {tensor.scales.shape} for values of {tensor.values.shape}")
    limit = 1 << (tensor.bits - 1)
    if tensor.values.size and not -limit <= int(tensor.values.min()) <= int(tensor.values.max()) < limit:
        raise PackError(f"{tensor.bits}-bit values lie in {-limit}..{limit - 1}, but {name!r} has values beyond; clip them first")


def _encode_integers(values: np.ndarray, bits: int) -> bytes:
    """`bits`-bit two's complement, most significant bit first."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if bits == 16:
        return flat.astype(">i2").tobytes()
    return np.packbits(np.unpackbits(flat.view(np.uint8)[:, None], axis=1)[:, 8 - bits :]).tobytes()


def _decode_integers(data: bytes, bits: int, count: int) -> np.ndarray:
    """`count` integers, int8 or int16, shape (count,)."""
    if bits == 16:
        return np.frombuffer(data, ">i2").astype(np.int16)
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    signs = np.repeat(planes[:, :1], 8 - bits, axis=1)
    return np.packbits(np.concatenate([signs, planes], axis=1), axis=1).reshape(count).view(np.int8)


def _encode_floats(name: str, array: np.ndarray) -> tuple[int, bytes]:
    """FP32_FLAG or 0, and the bytes of a float32 array."""
    if array.dtype != np.float32:
        raise PackError(f"floats must be float32 (nothing is rounded silently), but {name!r} has {array.dtype}; cast them first")
    if _fits_fp16(array):
        return 0, _to_fp16(array).astype("<f2").tobytes()
    return FP32_FLAG, array.astype("<f4").tobytes()


def _to_fp16(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # what overflows is caught by the comparison
        return array.astype(np.float16)


def _fits_fp16(array: np.ndarray) -> bool:
    """True when every float32 value, compared bit by bit (signed zeros, NaN payloads), survives fp16."""
    with np.errstate(invalid="ignore"):
        back = _to_fp16(array).astype(np.float32)
    return back.tobytes() == array.tobytes()


def _varint(number: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def _entries(data: bytes) -> Iterator[tuple[str, Tensor, int]]:
    """(name, tensor, bytes it takes) in file order; PackError for anything malformed."""
    reader = _Reader(data)
    count = reader.varint()
    seen: set[str] = set()
    for _ in range(count):  # `count` may lie: the reader ends the loop at the end of the data
        start = reader.position
        name = reader.name()
        if name in seen:
            raise PackError(f"tensor names are unique, but {name!r} appears twice in this packed weight file")
        seen.add(name)
        yield name, reader.tensor(), reader.position - start
    if reader.position != reader.end:
        raise PackError(f"a packed weight file ends after its tensors, but {reader.end - reader.position} bytes follow")


class _Reader:
    """A cursor over a packed file that never reads past its end."""

    def __init__(self, data: bytes) -> None:
        header = len(MAGIC) + 1
        if data[: len(MAGIC)] != MAGIC or len(data) < header + 5:
            raise PackError(f"a packed weight file starts with {MAGIC.decode()!r} and has at least {header + 5} bytes; this is none")
        if data[len(MAGIC)] != VERSION:
            raise PackError(f"this program reads packed weight files of version {VERSION}, but this one has {data[len(MAGIC)]}")
        self.data, self.position, self.end = data, header, len(data) - 4
        if zlib.crc32(memoryview(data)[: self.end]) != struct.unpack_from("<I", data, self.end)[0]:
            raise PackError("the checksum of this packed weight file does not fit its content: it is damaged; export it again")

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > self.end - self.position:
            raise PackError(f"this packed weight file is cut short: {size} bytes needed, {self.end - self.position} left")
        self.position += size
        return self.data[self.position - size : self.position]

    def varint(self) -> int:
        """The next unsigned LEB128 integer, below 2**42."""
        number = 0
        for index in range(MAX_VARINT_BYTES):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return number
        raise PackError(f"an integer in a packed weight file takes at most {MAX_VARINT_BYTES} bytes, but one takes more")

    def name(self) -> str:
        """The next length-prefixed name."""
        raw = self.take(self.varint())
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise PackError(f"tensor names are UTF-8, but one in this packed weight file is {raw[:40]!r}") from error

    def tensor(self) -> Tensor:
        """The next tensor without its name."""
        kind = self.take(1)[0]
        bits, wide = kind & 0x1F, bool(kind & FP32_FLAG)
        rank = self.varint()
        if kind & 0x60 or bits not in (0, *BITS) or rank > MAX_RANK or (bits and rank == 0):
            raise PackError(f"a packed weight file knows no tensor of kind 0x{kind:02x} and {rank} dimensions")
        shape = tuple(self.varint() for _ in range(rank))
        count = math.prod(shape)
        if math.prod(max(size, 1) for size in shape) > MAX_ELEMENTS:
            raise PackError(f"a packed tensor has at most 2**40 elements, but this file claims {shape}")
        if not bits:
            return self.floats(count, wide).reshape(shape)
        scales = self.floats(shape[0], wide)
        values = _decode_integers(self.take(-(-count * bits // 8)), bits, count)
        return QTensor(values.reshape(shape), scales, bits)

    def floats(self, count: int, wide: bool) -> np.ndarray:
        """The next `count` floats as float32."""
        raw = self.take(count * (4 if wide else 2))
        with np.errstate(invalid="ignore"):
            return np.frombuffer(raw, "<f4" if wide else "<f2").astype(np.float32)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
