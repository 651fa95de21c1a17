"""The packed weight file: b-bit integers, their scales and the remaining floats, without loss and without pickles.

Layout (integers are unsigned LEB128 varints unless stated, floats little-endian)::

    magic "PPAK" | version u8 | coding u8 | number of tensors | tensor ... | stream | CRC-32 of all before it, u32 little-endian
    tensor = name | kind u8 | rank, dimensions | guesses (coding 1) | scales (integers only) | values
    name   = bytes shared with the name before | length of the rest, UTF-8 rest; a last byte from 1 to 8 stands for a usual end (LEAVES)
    kind   = bits 0-4: 0 for floats, else the integers' bits (2-8, 16); bit 5: a centre follows; bit 6: the values are
             entropy-coded; bit 7: the floats are fp32, else fp16
    coding = 0 `packed`: two's complement, most significant bit first, without gaps, padded with zeros to whole bytes
             1 `coded`: values of 2-8 bits stand in the common stream (core/pack/context.py), 32-bit words, little-endian;
               guesses = mean u8 | centre i8, if any
               version 2 has that stream without core/pack/experts.py, and full names, and is read too
             2 `huffman`: values of 2-8 bits by a code per tensor (core/pack/huffman.py) where that is smaller than packed

There is one scale per output channel (the first dimension). A float array is stored as fp16 only when every value comes
back bit-exactly, so the file is lossless by construction, and there is one encoding per content and coding:
`pack(unpack(b), coding_of(b), version_of(b)) == b` for every accepted `b`. No coding makes a file larger than `packed` does.

    python -m core.pack inspect FILE                                        bytes per tensor: raw, bit-packed, Huffman, coded, entropy
    python -m core.pack pack FILE OUT [--coding packed|coded|huffman]       the same weights in another coding
    python -m core.pack unpack FILE OUT.safetensors                         and back with `pack OUT.safetensors FILE`
"""

from core.pack.file import MAGIC, VERSION, VERSIONS, coding_of, floor_bytes, pack, tensor_bytes, unpack, version_of
from core.pack.report import main
from core.pack.types import BITS, CODINGS, Coding, PackError, QTensor, Tensor

__all__ = [
    "BITS",
    "CODINGS",
    "MAGIC",
    "VERSION",
    "VERSIONS",
    "Coding",
    "PackError",
    "QTensor",
    "Tensor",
    "coding_of",
    "floor_bytes",
    "main",
    "pack",
    "tensor_bytes",
    "unpack",
    "version_of",
]
