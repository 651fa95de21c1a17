"""How small do codings make the integers of trained networks? python benchmarks/coding.py [--packed GLOB] [--nncodec PYTHON]

Reads every file of benchmarks/quantised_networks.py (runs/.cache/coding/*.npz) and the weight files that GLOB names, as finished rows of
benchmarks/compression.py have them ('runs/compression/candidates/*/weights.pack'). Writes benchmarks/results/coding.json: bytes of the
integers of 2 to 8 bits raw (float32), bit-packed, at the sum of the layers' order-0 entropies, by Huffman, by the context coder and by
NNCodec, the ISO/IEC 15938-17 coder, on the same integers; of those, or counted from the most frequent one, which it codes in fewer
bytes. Every stream is read back and compared. `--nncodec` names the python of an environment of its own with `pip install
nncodec==2.1.3`; without it, that column stays as it was written before for the same integers. Rows that are not measured now stay.

Bars: the coded stream with its guesses <= 1.01 x entropy, <= Huffman, <= NNCodec; all other bytes of the file (of *.npz: a scale and a
bias in fp16 for every channel) <= 4 bytes per channel + 1 KB.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from core.cli import run_main  # noqa: E402
from core.errors import UserError  # noqa: E402
from core.files import write_atomically  # noqa: E402
from core.hardware import device_facts  # noqa: E402
from core.pack import VERSION, QTensor, Tensor, coding_of, floor_bytes, pack, unpack  # noqa: E402
from core.pack.context import describe  # noqa: E402
from core.pack.file import is_codable  # noqa: E402
from core.pack.report import sizes_of  # noqa: E402
from search.summary import versions  # noqa: E402

FOLDER = Path("runs", ".cache", "coding")
RESULT = ROOT / "benchmarks" / "results" / "coding.json"
NNCODEC = """
import contextlib, io, json, sys, time
import numpy as np
from nncodec import nnc
file = np.load(sys.argv[1])
integers = {name: file[name].astype(np.int32) for name in file.files if not name.startswith("centre/")}
best = None
for skipping, centred in ((False, False), (True, False), (False, True), (True, True)):
    tensors = {name: values - file["centre/" + name] * centred for name, values in integers.items()}
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        data = bytearray(nnc.compress(tensors, row_skipping=skipping, param_opt=True, return_bitstream=True))
        back = nnc.decompress(data)
    assert all((back[name] == tensors[name]).all() for name in tensors)
    found = {"bytes": len(data), "seconds": round(time.perf_counter() - start, 2)}
    best = found if best is None or found["bytes"] < best["bytes"] else best
print(json.dumps(best))
"""
"""The smaller of its two settings, with and without centres, lossless on integers; its bytes hold shapes and (short) names too, some 20 a
layer, and no centres."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every network, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--packed", default=[], action="append", metavar="GLOB", help="weight files, each in a folder that names it")
    parser.add_argument("--nncodec", type=Path, help="python of an environment with nncodec")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args(argv)
    networks = {path.stem: read(path) for path in sorted(args.folder.glob("*.npz"))}
    packed = [Path(name) for pattern in args.packed for name in sorted(glob.glob(pattern))]
    networks |= {path.parent.name: unpack(path.read_bytes()) for path in packed}
    networks = {name: tensors for name, tensors in networks.items() if any(map(is_codable, tensors.values()))}
    if not networks:
        raise UserError(
            f"{args.folder} or --packed must have networks of 2 to 8-bit integers, but there are none in {args.folder} "
            f"{' '.join(args.packed)}; run benchmarks/quantised_networks.py or benchmarks/compression.py first"
        )
    before = json.loads(args.out.read_text())["networks"] if args.out.is_file() else {}
    rows = {name: measure(tensors, args.nncodec, before.get(name, {})) for name, tensors in networks.items()}
    write_atomically(args.out, json.dumps({"networks": before | rows}, indent=1) + "\n")
    for name, row in rows.items():
        print(f"{name:24} {json.dumps({key: row[key] for key in row if key not in ('bars', 'device', 'versions')})}")
        print(f"{'':24} {json.dumps(row['bars'])}")
    return 0


def measure(tensors: dict[str, Tensor], nncodec: Path | None, before: dict[str, Any]) -> dict[str, Any]:
    """Bytes of one network's integers in every coding, and whether the bars hold; NNCodec's from `before` where it is not asked."""
    packed = pack(tensors)
    start = time.perf_counter()
    data = pack(tensors, "coded")
    packing = time.perf_counter() - start
    start = time.perf_counter()
    back = unpack(data)
    reading = time.perf_counter() - start
    huffman = unpack(pack(tensors, "huffman"))
    if coding_of(data) != "coded" or not all(same(tensors[name], back[name]) and same(tensors[name], huffman[name]) for name in tensors):
        raise UserError("a network must be smaller coded and come back bit for bit, but this one does not; it is no row")
    integers = {name: tensor for name, tensor in tensors.items() if is_codable(tensor)}
    found = sizes_of(tensors)
    sizes = [found[name] for name in integers]
    channels = sum(len(tensor.scales) for tensor in tensors.values() if isinstance(tensor, QTensor))
    rest, entropy = floor_bytes(packed), round(sum(each.entropy for each in sizes))
    digest = hashlib.sha256(b"".join(tensor.values.tobytes() for tensor in integers.values())).hexdigest()[:16]
    known = before.get("nncodec") if before.get("integers") == digest else None
    row: dict[str, Any] = {
        "weights": sum(tensor.values.size for tensor in integers.values()),
        "integers": digest,
        "most_frequent": round(sum(share_of_most(tensor) * tensor.values.size for tensor in integers.values())),
        "raw": sum(each.raw for each in sizes),
        "packed": sum(each.packed for each in sizes),
        "entropy": entropy,
        "huffman": sum(each.huffman for each in sizes),
        "coded": len(data) - rest,
        "nncodec": run_nncodec(integers, nncodec) if nncodec else known,
        "rest": rest,
        "channels": channels,
        "pack_s": round(packing, 2),
        "unpack_s": round(reading, 2),
        "format": VERSION,
        "device": device_facts(),
        "versions": versions(),
    }
    coded = row["coded"]
    row["bars"] = {
        "coded/entropy": round(coded / row["entropy"], 4),
        "coded/huffman": round(coded / row["huffman"], 4),
        "coded/nncodec": round(coded / row["nncodec"]["bytes"], 4) if row["nncodec"] else None,
        "rest within 4 bytes per channel + 1 KB": rest <= 4 * channels + 1000,
    }
    return row


def read(path: Path) -> dict[str, Tensor]:
    """A network's tensors as a search would pack them; scales and biases are placeholders in fp16, since only their bytes count."""
    tensors: dict[str, Tensor] = {}
    with np.load(path) as file:
        for name in (name for name in file.files if not name.startswith("bits/")):
            ones = np.ones(len(file[name]), np.float32)
            tensors |= {f"{name}.weight": QTensor(file[name], ones, int(file[f"bits/{name}"])), f"{name}.bias": ones}
    return tensors


def same(first: Tensor, second: Tensor) -> bool:
    """Bit for bit."""
    arrays = [(each.values, each.scales) if isinstance(each, QTensor) else (each,) for each in (first, second)]
    return all(left.shape == right.shape and left.tobytes() == right.tobytes() for left, right in zip(*arrays, strict=True))


def share_of_most(tensor: QTensor) -> float:
    """Of the most frequent integer: 0, or what a codebook has for it."""
    return float(np.bincount(tensor.values.reshape(-1).astype(np.int64) + 128).max()) / tensor.values.size


def run_nncodec(integers: dict[str, QTensor], python: Path) -> dict[str, Any]:
    """Bytes and seconds of the other coder, in its own environment."""
    arrays = {str(index): tensor.values for index, tensor in enumerate(integers.values())}
    for index, tensor in enumerate(integers.values()):
        arrays[f"centre/{index}"] = np.array(describe(tensor.values, tensor.bits).centre, np.int32)
    with tempfile.TemporaryDirectory() as folder:
        script, data = Path(folder) / "run.py", Path(folder) / "integers.npz"
        script.write_text(NNCODEC)
        np.savez(data, **arrays)  # type: ignore[arg-type]
        command = [str(python.absolute()), str(script), str(data)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # it writes a file where it stands
    if done.returncode:
        raise UserError(f"--nncodec must name a python with nncodec, but {python} says: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    raise SystemExit(run_main(main))
