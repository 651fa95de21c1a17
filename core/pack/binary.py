"""Bytes of integers and floats, and a cursor that never reads past their end."""

from __future__ import annotations

import numpy as np

from core.pack.types import PackError

MAX_VARINT_BYTES = 6


def varint(number: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out) + bytes([number])


def encode_integers(values: np.ndarray, bits: int) -> bytes:
    """`bits`-bit two's complement, most significant bit first, without gaps, padded with zeros to whole bytes."""
    flat = np.ascontiguousarray(values).reshape(-1)
    if bits == 16:
        return flat.astype(">i2").tobytes()
    return np.packbits(np.unpackbits(flat.view(np.uint8)[:, None], axis=1)[:, 8 - bits :]).tobytes()


def decode_integers(data: bytes, bits: int, count: int) -> np.ndarray:
    """`count` integers, int8 or int16, shape (count,)."""
    if bits == 16:
        return np.frombuffer(data, ">i2").astype(np.int16)
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits).reshape(count, bits)
    signs = np.repeat(planes[:, :1], 8 - bits, axis=1)
    return np.packbits(np.concatenate([signs, planes], axis=1), axis=1).reshape(count).view(np.int8)


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` bit-packed integers."""
    return -(-count * bits // 8)


def encode_floats(name: str, array: np.ndarray) -> tuple[bool, bytes]:
    """Whether they need fp32, and the bytes of a float32 array."""
    if array.dtype != np.float32:
        raise PackError(f"floats must be float32 (nothing is rounded silently), but {name!r} has {array.dtype}; cast them first")
    if fits_fp16(array):
        return False, _to_fp16(array).astype("<f2").tobytes()
    return True, array.astype("<f4").tobytes()


def fits_fp16(array: np.ndarray) -> bool:
    """True when every float32 value, compared bit by bit (signed zeros, NaN payloads), survives fp16."""
    with np.errstate(invalid="ignore"):
        back = _to_fp16(array).astype(np.float32)
    return back.tobytes() == array.tobytes()


def _to_fp16(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # what overflows is caught by the comparison
        return array.astype(np.float16)


class Cursor:
    """A place in `data` that moves on until `end`."""

    def __init__(self, data: bytes, position: int, end: int) -> None:
        self.data, self.position, self.end = data, position, end

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > self.end - self.position:
            raise PackError(f"this packed weight file is cut short: {size} bytes needed, {self.end - self.position} left")
        self.position += size
        return self.data[self.position - size : self.position]

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, or as many as there are, without moving."""
        return self.data[self.position : min(self.position + size, self.end)]

    def varint(self) -> int:
        """The next unsigned LEB128 integer, below 2**42."""
        number = 0
        for index in range(MAX_VARINT_BYTES):
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                return number
        raise PackError(f"an integer in a packed weight file takes at most {MAX_VARINT_BYTES} bytes, but one takes more")

    def floats(self, count: int, wide: bool) -> np.ndarray:
        """The next `count` floats as float32."""
        raw = self.take(count * (4 if wide else 2))
        with np.errstate(invalid="ignore"):
            return np.frombuffer(raw, "<f4" if wide else "<f2").astype(np.float32)
