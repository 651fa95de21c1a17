"""Tables that are made row by row: a finished row is written at once and not made again, and several processes may share the work."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from filelock import FileLock

from core.config import Config
from core.data import load_search_data
from core.data.heldout import load_test_data
from core.data.types import Images, SearchData
from core.errors import TrialError, UserError
from core.files import write_atomically
from core.teacher import Teacher, obtain_teacher
from core.train import Device, open_device
from core.yaml_io import load_config
from search.summary import versions

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path("runs", ".cache")


class Row(Protocol):
    """One line of a table."""

    @property
    def name(self) -> str:
        """What --rows calls it."""


R = TypeVar("R", bound=Row)
B = TypeVar("B")


@dataclass(frozen=True)
class Ground:
    """What every row of a table stands on, as a study of the same configuration would have it."""

    config: Config
    device: Device
    data: SearchData
    test: Images
    teacher: Teacher

    def facts(self) -> dict[str, Any]:
        """What must be equal in all rows of a file, for they are compared."""
        return {
            "teacher": {"name": self.teacher.name, "digest": self.teacher.digest, "search_accuracy": self.teacher.accuracy},
            "data": {"name": self.data.info.name, "digest": self.data.info.digest, "train": len(self.data.train)},
            "search_images": len(self.data.search),
            "test_images": len(self.test),
            "precision": str(self.device.amp or torch.float32),
            "versions": versions(),
        }


@dataclass(frozen=True)
class Table(Generic[R, B]):
    """A table: its rows, how one is made on a bench that all share, and how it is printed."""

    rows: tuple[R, ...]
    form: str
    """Of a row's name."""
    open_bench: Callable[[argparse.Namespace], AbstractContextManager[B]]
    shared: Callable[[B], dict[str, Any]]
    """What must be equal in all rows of a file."""
    make: Callable[[R, B], dict[str, Any]]
    """A finished row; `row` is its name."""
    markdown: Callable[[dict[str, Any]], str]
    told: Callable[[dict[str, Any]], str] = lambda row: f"test {100 * row['test_accuracy']:.2f} %, {row['seconds']:.0f} s"
    """What is said when a row is finished."""
    together: Callable[[R], str] = lambda row: row.name
    """Rows with the same value go to one shard: what they share is made once."""
    own: tuple[str, ...] = ()
    """Which of the shared facts may differ between rows that are not together: they are never compared with each other."""

    def run(self, args: argparse.Namespace) -> int:
        """Make the rows that are missing, then print the table."""
        if not args.markdown:
            rows = self.choose(args.rows, args.shard)
            missing = [row for row in rows if row.name not in finished(args.out)]
            print(f"{len(rows) - len(missing)} of {len(rows)} rows are there already", flush=True)
            if missing:
                self._work(missing, args)
        print(self.markdown(read(args.out)))
        return 0

    def choose(self, names: str | None, shard: str) -> list[R]:
        """The asked rows of this shard, in order. Raises UserError for what is none."""
        known = {row.name: row for row in self.rows}
        asked = names.split(",") if names else list(known)
        if unknown := [name for name in asked if name not in known]:
            raise UserError(f"a row is {self.form}, but {', '.join(unknown)} is none; known: {', '.join(known)}")
        index, _, count = shard.partition("/")
        if not (index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise UserError(f"--shard must be i/n with 0 <= i < n, but got {shard!r}")
        chosen = [known[name] for name in asked]
        mine = list(dict.fromkeys(map(self.together, chosen)))[int(index) :: int(count)]
        return [row for row in chosen if self.together(row) in mine]

    def _work(self, rows: Sequence[R], args: argparse.Namespace) -> None:
        with self.open_bench(args) as bench:
            for row in rows:  # before the first minute of work
                self._check(row, self.shared(bench), args.out)
            for row in rows:
                if row.name in finished(args.out):  # another process may have had it meanwhile
                    continue
                try:
                    result = self.make(row, bench)
                except TrialError as error:  # the next start tries it again
                    self._write(row, self.shared(bench), args.out, reason=f"{type(error).__name__}: {error}")
                    print(f"{row.name}: failed: {error}", flush=True)
                    continue
                self._write(row, self.shared(bench), args.out, result)
                print(f"{row.name}: {self.told(result)}", flush=True)

    def _write(self, of: R, same: dict[str, Any], path: Path, row: dict[str, Any] | None = None, reason: str = "") -> None:
        """Add a finished row, or why one failed; other processes may be doing so too. Raises UserError as `_check`."""
        name, group = of.name, self.together(of)
        order = [known.name for known in self.rows]
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            common = {key: value for key, value in same.items() if key not in self.own}
            content = read(path) or {**common, **({"together": {}} if self.own else {}), "rows": []}
            own = {group: {key: same[key] for key in self.own}} if self.own and row else {}
            self._check(of, same, path)
            failed = {key: why for key, why in content.pop("failed", {}).items() if key != name} | ({} if row else {name: reason})
            rows = {old["row"]: old for old in content["rows"]} | ({name: row} if row else {})
            content["rows"] = sorted(rows.values(), key=lambda entry: order.index(entry["row"]))
            content |= ({"together": content["together"] | own} if own else {}) | ({"failed": failed} if failed else {})
            write_atomically(path, json.dumps(content, indent=1) + "\n")

    def _check(self, of: R, same: dict[str, Any], path: Path) -> None:
        """UserError where the file is of another set-up. Facts of its own (`own`) has a group that has rows."""
        content, group, there = read(path), self.together(of), finished(path)
        alike = any(self.together(row) == group for row in self.rows if row.name in there)
        known = content | (content.get("together", {}).get(group, {}) if alike else {})
        if differing := [key for key, value in same.items() if known.get(key, value) != value]:
            law = f"rows of one table share {', '.join(same)}"
            raise UserError(f"{law}, but {path} has another {', '.join(differing)}; give another --out")


def read(path: Path) -> dict[str, Any]:
    """The result file, empty where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def finished(path: Path) -> set[str]:
    """Names of the rows that are there."""
    return {row["row"] for row in read(path).get("rows", [])}


def build_parser(description: str | None, form: str, result: Path) -> argparse.ArgumentParser:
    """The flags that all tables have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help="CIFAR-10: its archive's folder or an image folder")
    parser.add_argument("--rows", help=f"{form},... in place of all")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th row, or group of rows that share something, from the i-th on")
    parser.add_argument("--threads", type=int, help="default: all cores")
    parser.add_argument("--config", default="cifar10")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--markdown", action="store_true", help="make nothing, print the table")
    parser.add_argument("--out", type=Path, default=result)
    return parser


def open_ground(args: argparse.Namespace, stated: dict[str, Any]) -> Ground:
    """Data and teacher of the asked configuration, with `stated` keys in place of its own. A second process waits for the teacher."""
    stated = {"data.dir": args.data_dir, "hardware.threads": args.threads} | stated
    overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in stated.items() if value is not None]
    config = load_config(args.config, [*overrides, *args.overrides], ROOT)
    device = open_device(config.hardware)
    data = load_search_data(config.data, CACHE)
    teacher = obtain_teacher(config, data, device, CACHE, on_wait=print)
    print(f"teacher {teacher.name}: {100 * teacher.accuracy:.2f} % on the search split", flush=True)
    return Ground(config, device, data, load_test_data(config.data, CACHE), teacher)
