"""Reading and writing the packed weight file; core/pack/__init__.py describes its bytes."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from core.pack import context, huffman
from core.pack.binary import Cursor, decode_integers, encode_floats, encode_integers, packed_size, varint
from core.pack.types import BITS, CODINGS, Coding, PackError, QTensor, Tensor, check_quantised, limits

MAGIC = b"PPAK"
VERSION = 3
VERSIONS = (2, VERSION)
"""What is read. In version 2 the common stream of `coded` was of contexts alone, and names had no short ends."""
LEAVES = tuple(f".{leaf}".encode() for leaf in ("weight", "bias", "scale", "indices", "codebook", "zero", "running_mean", "running_var"))
"""Ends of names that a file writes as one byte: 1 for the first."""
MAX_RANK = 8
MAX_NAME = 255  # names share their beginnings: without it few bytes could claim many long names
MAX_ELEMENTS = 2**40  # empty arrays too: numpy refuses shapes whose non-zero dimensions overflow
WEIGHTS_PER_BYTE = 64
"""Entropy-coded weights per byte of the file, at most: what bounds a reader's memory and time."""
BITS_MASK, CENTRE_FLAG, CODED_FLAG, FP32_FLAG = 0x1F, 0x20, 0x40, 0x80
HEADER = len(MAGIC) + 2


@dataclass(frozen=True)
class Entry:
    """One tensor of a file, and where its own bytes stand; its integers may stand in the common stream."""

    name: str
    tensor: Tensor
    start: int
    end: int


def pack(tensors: Mapping[str, Tensor], coding: Coding = "packed", version: int = VERSION) -> bytes:
    """The file's bytes, tensors in the order given; PackError when one has the wrong type, shape or range.

    With `coded` or `huffman` the file is never larger than with `packed`: where coding does not pay, it is that one.
    `version` is one of VERSIONS.
    """
    packed = _sealed(tensors, "packed", version)
    if coding == "packed":
        return packed
    data = _sealed(tensors, coding, version)
    return data if _pays(data, tensors, coding) and len(data) < len(packed) else packed


def unpack(data: bytes) -> dict[str, Tensor]:
    """The tensors of a packed file; PackError when the bytes are malformed.

    Memory and time are bounded by a multiple of len(data): a byte may stand for 64 weights, in kernels of P > 64 places for 4096 / P,
    and decoding one takes some 50 bytes; once, kernels of P places take 40 P^2 bytes.
    """
    return {entry.name: entry.tensor for entry in entries(data)}


def coding_of(data: bytes) -> Coding:
    """How the integers of a packed file are written. Raises PackError."""
    _check_frame(data)
    return CODINGS[data[HEADER - 1]]


def version_of(data: bytes) -> int:
    """The version of a packed file. Raises PackError."""
    _check_frame(data)
    return data[len(MAGIC)]


def entries(data: bytes) -> list[Entry]:
    """The tensors in file order; PackError for anything malformed, and for what `pack` would have written otherwise."""
    coding, version = coding_of(data), data[len(MAGIC)]
    reader = _Reader(data, coding)
    found = reader.entries()
    tensors = {entry.name: entry.tensor for entry in found}
    streamed = coding == "coded"
    body = _body(tensors, coding, version)[0] if streamed else _content(tensors, coding, version)
    # a stream that decodes to its very end is the only one for its integers: it need not be coded again
    canonical = data[: len(body)] == body and (streamed or len(data) == len(body) + 4)
    if not canonical or (coding != "packed" and len(data) >= len(_content(tensors, "packed", version)) + 4):
        raise PackError("a packed weight file must be in its one canonical form, but this one is not; write it with core.pack")
    return found


def tensor_bytes(data: bytes) -> dict[str, int]:
    """The bytes of every tensor in a packed file: name, shape, scales and values, and its share of a common stream. Raises PackError."""
    found = entries(data)
    sizes = {entry.name: entry.end - entry.start for entry in found}
    if coding_of(data) == "coded":
        streamed = {entry.name: entry.tensor for entry in found if is_codable(entry.tensor)}
        values = [tensor.values for tensor in streamed.values()]
        layers = [context.describe(tensor.values, tensor.bits) for tensor in streamed.values()]
        bits = context.costs(layers, values, experts=_has_experts(version_of(data)))
        sizes |= {name: sizes[name] + round(cost / 8) for name, cost in zip(streamed, bits, strict=True)}
    return sizes


def floor_bytes(data: bytes) -> int:
    """The bytes that no coding saves: those of the packed file `data` without its integers of 2 to 8 bits. Raises PackError."""
    tensors = unpack(data)
    codable = [tensor for tensor in tensors.values() if is_codable(tensor)]
    return len(_content(tensors, "packed", VERSION)) + 4 - sum(packed_size(tensor.values.size, tensor.bits) for tensor in codable)


def is_codable(tensor: Tensor) -> TypeGuard[QTensor]:
    """Whether entropy coding is for this tensor: integers of 2 to 8 bits, at least one, in kernels that are not too large."""
    return isinstance(tensor, QTensor) and tensor.bits <= 8 and tensor.values.size > 0 and _has_kernels(tensor.values.shape)


def _has_kernels(shape: tuple[int, ...]) -> bool:
    """Whether the context coder can know all places of a kernel."""
    return math.prod(shape[2:]) <= context.MAX_PLACES


def _has_experts(version: int) -> bool:
    return version > 2


def _sealed(tensors: Mapping[str, Tensor], coding: Coding, version: int) -> bytes:
    content = _content(tensors, coding, version)
    return content + struct.pack("<I", zlib.crc32(content))


def _pays(data: bytes, tensors: Mapping[str, Tensor], coding: Coding) -> bool:
    """Whether a reader would accept so many weights in so few bytes."""
    integers = [tensor for tensor in tensors.values() if isinstance(tensor, QTensor)]
    work = sum(_work(tensor.values.shape, coding == "coded" and is_codable(tensor)) for tensor in integers)
    return work <= WEIGHTS_PER_BYTE * len(data)


def _work(shape: tuple[int, ...], streamed: bool) -> int:
    """How many weights a tensor counts for: more than it has where those in the common stream take longer (`context.work`)."""
    return context.work(shape) if streamed else math.prod(shape)


def _content(tensors: Mapping[str, Tensor], coding: Coding, version: int) -> bytes:
    """The file without its checksum."""
    body, layers, values = _body(tensors, coding, version)
    return body + context.encode(layers, values, _has_experts(version)) if layers else body


def _body(tensors: Mapping[str, Tensor], coding: Coding, version: int) -> tuple[bytes, list[context.Layer], list[np.ndarray]]:
    """The file without stream and checksum, and what the stream has to hold."""
    parts = [MAGIC, bytes([version, CODINGS.index(coding)]), varint(len(tensors))]
    layers: list[context.Layer] = []
    values: list[np.ndarray] = []
    before = b""
    for name, tensor in tensors.items():
        written = _shortened(_utf8(name), version)
        shared = _common(before, written)
        parts += [varint(shared), varint(len(written) - shared), written[shared:]]
        before = written
        if not isinstance(tensor, QTensor):
            parts.append(_encode_array(name, tensor))
        elif coding == "coded" and is_codable(tensor):
            check_quantised(name, tensor)
            layers.append(context.describe(tensor.values, tensor.bits))
            values.append(tensor.values)
            parts.append(_encode_quantised(name, tensor, CODED_FLAG, layers[-1]))
        else:
            check_quantised(name, tensor)
            parts.append(_encode_inline(name, tensor, coding))
    return b"".join(parts), layers, values


def _utf8(name: str) -> bytes:
    try:
        utf8 = name.encode()
    except UnicodeEncodeError as error:
        raise PackError(f"tensor names are UTF-8, but {name!r} has no such bytes") from error
    if len(utf8) > MAX_NAME:
        raise PackError(f"the name of a packed tensor has at most {MAX_NAME} bytes, but {name[:40]!r}... has {len(utf8)}")
    if _leaf(utf8) is not None:
        raise PackError(f"the name of a packed tensor ends in no control character, but {name!r} does; rename it")
    return utf8


def _leaf(written: bytes) -> bytes | None:
    """The end that the last byte of a written name stands for, if any."""
    return LEAVES[written[-1] - 1] if written and 1 <= written[-1] <= len(LEAVES) else None


def _shortened(utf8: bytes, version: int) -> bytes:
    """A name as version 3 writes it: a known end is one byte."""
    known = [number for number, leaf in enumerate(LEAVES, 1) if utf8.endswith(leaf)] if _has_short_ends(version) else []
    return utf8[: -len(LEAVES[known[0] - 1])] + bytes(known) if known else utf8


def _has_short_ends(version: int) -> bool:
    return version > 2


def _common(first: bytes, second: bytes) -> int:
    """How many bytes both begin with."""
    same = 0
    while same < min(len(first), len(second)) and first[same] == second[same]:
        same += 1
    return same


def _encode_array(name: str, array: np.ndarray) -> bytes:
    wide, floats = encode_floats(name, array)
    return bytes([FP32_FLAG * wide]) + _dimensions(name, array.shape) + floats


def _encode_inline(name: str, tensor: QTensor, coding: Coding) -> bytes:
    """Kind, shape, scales and integers: bit-packed, or by Huffman's code where that is smaller."""
    integers = encode_integers(tensor.values, tensor.bits)
    if coding == "huffman" and is_codable(tensor):
        coded = huffman.encode(tensor.values)
        if len(coded) < len(integers):
            return _encode_quantised(name, tensor, CODED_FLAG) + coded
    return _encode_quantised(name, tensor, 0) + integers


def _encode_quantised(name: str, tensor: QTensor, flags: int, layer: context.Layer | None = None) -> bytes:
    """Kind, shape, the context coder's first guesses, and scales."""
    wide, scales = encode_floats(name, tensor.scales)
    guesses = b""
    if layer is not None:
        guesses = bytes([layer.mean])
        if layer.centre:
            flags, guesses = flags | CENTRE_FLAG, guesses + struct.pack("b", layer.centre)
    kind = tensor.bits | flags | FP32_FLAG * wide
    return bytes([kind]) + _dimensions(name, tensor.values.shape) + guesses + scales


def _dimensions(name: str, shape: tuple[int, ...]) -> bytes:
    if not _storable(shape):
        raise PackError(f"a packed tensor has at most {MAX_RANK} dimensions and 2**40 elements, but {name!r} is {shape}")
    return b"".join(varint(size) for size in (len(shape), *shape))


def _storable(shape: tuple[int, ...]) -> bool:
    return len(shape) <= MAX_RANK and math.prod(max(size, 1) for size in shape) <= MAX_ELEMENTS


def _check_frame(data: bytes) -> None:
    """PackError unless magic, version, coding and checksum are right."""
    if data[: len(MAGIC)] != MAGIC or len(data) < HEADER + 5:
        raise PackError(f"a packed weight file starts with {MAGIC.decode()!r} and has at least {HEADER + 5} bytes; this is none")
    version, coding = data[len(MAGIC) : HEADER]
    if version not in VERSIONS:
        known = " and ".join(map(str, VERSIONS))
        raise PackError(f"this program reads packed weight files of versions {known}, but this one has {version}; export it again")
    if coding >= len(CODINGS):
        raise PackError(f"the integers of a packed weight file are {', '.join(CODINGS)} (0 to {len(CODINGS) - 1}), but here {coding}")
    if zlib.crc32(memoryview(data)[:-4]) != struct.unpack("<I", data[-4:])[0]:
        raise PackError("the checksum of this packed weight file does not fit its content: it is damaged; export it again")


class _Reader(Cursor):
    """A cursor over the tensors of a file, and what it still owes them: the integers of the common stream."""

    def __init__(self, data: bytes, coding: Coding) -> None:
        super().__init__(data, HEADER, len(data) - 4)
        self.coding = coding
        self.budget = WEIGHTS_PER_BYTE * len(data)
        self.layers: list[context.Layer] = []
        self.owed: list[tuple[int, np.ndarray]] = []

    def entries(self) -> list[Entry]:
        """All tensors of the file."""
        found: list[Entry] = []
        seen: set[str] = set()
        written = b""
        for index in range(self.varint()):  # the number may lie: the end of the data ends the loop
            start = self.position
            written = self.name(written)
            name = self.full(written)
            if name in seen:
                raise PackError(f"tensor names are unique, but {name!r} appears twice in this packed weight file")
            seen.add(name)
            found.append(Entry(name, self.tensor(index), start, self.position))
        stream = self.take(self.end - self.position)
        if stream and (not self.layers or len(stream) % 4):
            raise PackError(f"a packed weight file ends after its tensors, but {len(stream)} bytes follow")
        decoded = context.decode(self.layers, stream, _has_experts(self.data[len(MAGIC)])) if self.layers else []
        for (index, scales), layer, values in zip(self.owed, self.layers, decoded, strict=True):
            entry = found[index]
            found[index] = Entry(entry.name, QTensor(values, scales, layer.bits), entry.start, entry.end)
        return found

    def full(self, written: bytes) -> str:
        """The name that was written so."""
        leaf = _leaf(written) if _has_short_ends(self.data[len(MAGIC)]) else None
        return (written if leaf is None else written[:-1] + leaf).decode()

    def name(self, before: bytes) -> bytes:
        """The next name as written: so many bytes of the one before, then its own."""
        shared = self.varint()
        raw = before[:shared] + self.take(self.varint())
        if len(raw) > MAX_NAME:
            raise PackError(f"the name of a packed tensor has at most {MAX_NAME} bytes, but here one has {len(raw)}")
        try:
            raw.decode()
        except UnicodeDecodeError as error:
            raise PackError(f"tensor names are UTF-8, but one in this packed weight file is {raw[:40]!r}") from error
        return raw

    def tensor(self, index: int) -> Tensor:
        """The next tensor without its name; zeros stand for integers of the common stream."""
        kind = self.take(1)[0]
        bits, wide, coded = kind & BITS_MASK, bool(kind & FP32_FLAG), bool(kind & CODED_FLAG)
        rank = self.varint()
        known = bits <= 8 and self.coding != "packed" if coded else not kind & CENTRE_FLAG
        if bits not in (0, *BITS) or not known or rank > MAX_RANK or (bits and rank == 0) or (coded and not bits):
            raise PackError(f"a packed weight file knows no tensor of kind 0x{kind:02x} and {rank} dimensions")
        shape = tuple(self.varint() for _ in range(rank))
        if not _storable(shape):
            raise PackError(f"a packed tensor has at most 2**40 elements, but this file claims {shape}")
        if not bits:
            return self.floats(math.prod(shape), wide).reshape(shape)
        if self.coding != "packed":
            self.spend(shape, streamed=coded and self.coding == "coded" and _has_kernels(shape))
        if coded:
            return self.coded(index, shape, bits, bool(kind & CENTRE_FLAG), wide)
        scales = self.floats(shape[0], wide)
        count = math.prod(shape)
        return QTensor(decode_integers(self.take(packed_size(count, bits)), bits, count).reshape(shape), scales, bits)

    def spend(self, shape: tuple[int, ...], streamed: bool) -> None:
        """Take what a tensor costs from what the file may; PackError if that is too much."""
        self.budget -= _work(shape, streamed)
        if self.budget < 0:
            law = f"at most {WEIGHTS_PER_BYTE} weights per byte, and fewer in large kernels and small tensors"
            raise PackError(f"a coded weight file has {law}, but this one claims {shape} and more")

    def coded(self, index: int, shape: tuple[int, ...], bits: int, centred: bool, wide: bool) -> QTensor:
        """A tensor whose integers are entropy-coded, here or in the common stream."""
        count = math.prod(shape)
        if count == 0 or not _has_kernels(shape):
            law = f"a coded tensor has weights, in kernels of at most {context.MAX_PLACES}"
            raise PackError(f"{law}, but this packed weight file has one of shape {shape}")
        low, high = limits(bits)
        if self.coding == "huffman":
            scales = self.floats(shape[0], wide)
            values = huffman.decode(self, count)
            if values.min() < low or values.max() > high:
                raise PackError(f"{bits}-bit values lie in {low}..{high}, but this packed weight file has others: it is damaged")
            return QTensor(values.astype(np.int8).reshape(shape), scales, bits)
        mean = self.take(1)[0]
        centre = struct.unpack("b", self.take(1))[0] if centred else 0
        if mean >= len(context.MEANS) or not low <= centre <= high:
            raise PackError(f"a coded tensor has one of {len(context.MEANS)} means and a centre of its bits, but here {mean} and {centre}")
        scales = self.floats(shape[0], wide)
        self.layers.append(context.Layer(shape, bits, centre, mean))
        self.owed.append((index, scales))
        return QTensor(np.zeros(0, np.int8), scales, bits)
