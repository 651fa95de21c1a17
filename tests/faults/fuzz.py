"""Mutated input through the commands: python -m tests.faults.fuzz --inputs 500 --out fuzz.json

Spaces, configurations, candidates, records of trials, weight files and bundles. Each must end with exit code 0, or with 2 and one line;
never with a traceback, a hang, or a file outside runs/.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import sqlite3
import string
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.scaling import coordinate
from core.cli import run_main
from core.files import write_atomically
from core.pack import pack
from results.record import RECORD_KEY
from tests.core.bundle_samples import make_bundle, save_image
from tests.core.pack_mutations import network, with_checksum
from tests.faults.runs import facts
from tests.search.studies import ROOT

CHECKSUM_BYTES = 4
LIMIT_S = 10.0
"""Of processor time, child processes included: a busy machine is no hang."""
GONE = "gone"
"""The folder of images that spaces and configurations are tried with: only what was read to its end asks for it."""
WORDS = (
    "null",
    "true",
    "-1",
    "0",
    "1e999",
    ".nan",
    "[]",
    "{}",
    "[[]]",
    "&a",
    "*a",
    "!!python/object:os.system",
    "../../up",
    "/etc/passwd",
    "é\x00",
    "9" * 40,
)


VALUES = (
    None,
    True,
    -1,
    0,
    0.5,
    10**40,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "../../up",
    "\x00",
    [],
    {},
    [[]],
    "<script>alert(1)</script>",
)


def mutate(text: bytes, chance: random.Random) -> bytes:
    """One to four changes: a byte, a cut, a line twice or gone, a value replaced."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        lines = text.split(b"\n")
        line = chance.randrange(len(lines))
        way = chance.randrange(6)
        if way == 0:
            text = text[:at] + bytes([chance.randrange(256)]) + text[at + 1 :]
        elif way == 1:
            text = text[:at]
        elif way == 2:
            text = b"\n".join([*lines[:line], lines[line], *lines[line:]])
        elif way == 3:
            text = b"\n".join([*lines[:line], *lines[line + 1 :]])
        elif way == 4:
            text = text[:at] + chance.choice(string.printable).encode() * chance.choice((1, 3, 5000)) + text[at:]
        else:
            head = lines[line].partition(b":")[0]
            text = b"\n".join([*lines[:line], head + b": " + chance.choice(WORDS).encode(), *lines[line + 1 :]])
    return text


def retold(value: Any, chance: random.Random) -> Any:
    """JSON with one value, at any depth, that is another or gone."""
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.1:
        return chance.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = chance.choice(keys)
    changed = value.copy()
    if chance.random() < 0.1:
        del changed[key]
    else:
        changed[key] = retold(value[key], chance)
    return changed


def spaces(folder: Path, chance: random.Random) -> list[str]:
    """A run that only checks. What is valid is refused too, as its images are not there, and counts as read; nothing is measured."""
    text = (ROOT / "spaces" / "digits.yaml").read_bytes()
    (folder / "space.yaml").write_bytes(mutate(text, chance))
    return ["--space", str(folder / "space.yaml"), "--data-dir", str(folder / GONE), "--dry-run"]


def configs(folder: Path, chance: random.Random) -> list[str]:
    """The same for a configuration."""
    text = (ROOT / "configs" / chance.choice(("digits.yaml", "cifar10.yaml"))).read_bytes()
    (folder / "config.yaml").write_bytes(mutate(text, chance))
    space = str(ROOT / "spaces" / "digits.yaml")
    return ["--space", space, "--config", str(folder / "config.yaml"), "--data-dir", str(folder / GONE), "--dry-run"]


def bundles(folder: Path, chance: random.Random, sample: Path) -> list[str]:
    """A bundle with one file changed, or with a manifest that names files elsewhere."""
    bundle = folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(sample, bundle)
    path = chance.choice(sorted(bundle.iterdir()))
    path.write_bytes(mutate(path.read_bytes(), chance))
    if chance.random() < 0.5 and path.name != "bundle.json":  # past the digests, to the readers behind them
        manifest = json.loads((bundle / "bundle.json").read_text())
        manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest["files"]["../../up"] = "0" * 64
        (bundle / "bundle.json").write_text(json.dumps(manifest))
    return ["--bundle", str(bundle), str(save_image(folder.parent / "red.png", "red"))]


def candidates(folder: Path, chance: random.Random, sample: Path) -> list[str]:
    """A bundle whose candidate is another one, under a digest that fits."""
    bundle = folder / "bundle"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(sample, bundle)
    path = bundle / "candidate.yaml"
    path.write_bytes(mutate(path.read_bytes(), chance))
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    return ["--bundle", str(bundle), str(save_image(folder.parent / "red.png", "red"))]


def weights(folder: Path, chance: random.Random) -> list[str]:
    """A packed file, its checksum mended."""
    content = pack(network(0), "coded")[:-CHECKSUM_BYTES]
    (folder / "weights.pack").write_bytes(with_checksum(mutate(content, chance)))
    return ["inspect", str(folder / "weights.pack")]


def records(folder: Path, chance: random.Random, study: Path) -> list[str]:
    """A study one of whose trials tells another story."""
    runs = folder / "runs" / study.name
    shutil.rmtree(runs, ignore_errors=True)
    shutil.copytree(study, runs)
    with contextlib.closing(sqlite3.connect(runs / "study.db")) as database, database:
        rows = database.execute("SELECT trial_id, value_json FROM trial_user_attributes WHERE key = ?", (RECORD_KEY,)).fetchall()
        trial, value = chance.choice(sorted(rows))
        record = json.loads(value)
        text = (
            json.dumps(retold(json.loads(record), chance))
            if chance.random() < 0.8
            else mutate(record.encode(), chance).decode(errors="replace")
        )
        told = (json.dumps(text), trial, RECORD_KEY)
        database.execute("UPDATE trial_user_attributes SET value_json = ? WHERE trial_id = ? AND key = ?", told)
    return ["--study", study.name]


def make_study(folder: Path) -> Path:
    """A finished study of a few trials that trained nothing, to be told otherwise."""
    coordinate(f"sqlite:///{folder / 'study.db'}", folder, 4)
    return folder


def try_one(main: Callable[[list[str]], int], argv: list[str], folder: Path) -> dict[str, Any]:
    """Exit code or traceback, lines of the message, seconds of the processor, and the files that it left outside runs/."""
    before, start = _files(folder), _processor_s()
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    code: int | str
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_main(main, argv)
        except Exception:  # what must never happen: the finding is kept, and the next input tried
            code = traceback.format_exc()
    err.flush()
    made, said = sorted(str(path) for path in _files(folder) - before), err.buffer.getvalue()
    read = code == 0 or str(folder / GONE).encode() in said
    return {"code": code, "read": read, "lines": said.count(b"\n"), "seconds": round(_processor_s() - start, 2), "made": made}


def _processor_s() -> float:
    """Of this process and its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def is_fine(row: dict[str, Any]) -> bool:
    """Success, or one line; in time; nothing written elsewhere."""
    return (row["code"] == 0 or (row["code"] == 2 and row["lines"] == 1)) and row["seconds"] < LIMIT_S and not row["made"]


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.parent.rglob("*") if path.is_file() and (folder / "runs") not in path.parents}


def fuzz(folder: Path, inputs: int, seed: int, bundle: Path, study: Path) -> list[dict[str, Any]]:
    """`inputs` of them in turn, in `folder` as the working directory."""
    from core import predict
    from core.pack import report as packed
    from search import report, run

    kinds: list[tuple[str, Callable[[list[str]], int], Callable[[random.Random], list[str]]]] = [
        ("space", run.main, lambda chance: spaces(folder, chance)),
        ("config", run.main, lambda chance: configs(folder, chance)),
        ("bundle", predict.main, lambda chance: bundles(folder, chance, bundle)),
        ("candidate", predict.main, lambda chance: candidates(folder, chance, bundle)),
        ("weights", packed.main, lambda chance: weights(folder, chance)),
        ("record", report.main, lambda chance: records(folder, chance, study)),
    ]
    rows, before = [], Path.cwd()
    os.chdir(folder)
    try:
        for number in range(inputs):
            kind, main, prepare = kinds[number % len(kinds)]
            row = {"input": number, "kind": kind, **try_one(main, prepare(random.Random(f"{seed} {number}")), folder)}
            rows.append(row | {"fine": is_fine(row)})
    finally:
        os.chdir(before)
    return rows


def main() -> None:
    """All inputs; the last line counts by exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "work")
        folder.mkdir()
        rows = fuzz(folder, args.inputs, args.seed, make_bundle(Path(name, "sample")), make_study(Path(name, "told")))
    write_atomically(args.out, json.dumps({"inputs": rows, "limit_s": LIMIT_S, **facts()}, indent=1) + "\n")
    print(dict(Counter(row["code"] for row in rows)), "not fine:", [row for row in rows if not row["fine"]])


if __name__ == "__main__":
    main()
