"""Candidates of a space trained in full, with every rung, as one compact table that replay.py can search again and again.

    python -m benchmarks.table_search --data-dir FOLDER --rows 120

A row is a trial of a real study (`search.run --sampler random`, nothing skipped or stopped) in runs/, so an interrupted recording goes on
with the same command, and `--workers 2` shares it. Writes tables/<study>.json. The study's own first candidates are left out: a
row is a random draw.
"""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from core.candidate import Candidate
from core.files import write_atomically
from results.record import TrialRecord, read_records
from search import run
from search.space import Space, load_space, options, split_overrides
from search.study import find_study

TABLES = Path(__file__).parent / "tables"
RUNS = Path("runs")
UNUSED = {"candidate", "reason", "path", "files", "ending", "hypervolume"}


def record(space: Path, study: str, rows: int, more: list[str]) -> None:
    """Run the study until it holds `rows` random trials beside its baselines."""
    settings = ["--set", "stopping.skip=false", "--set", "stopping.stop=false"]
    begin = len(options(load_space(space, split_overrides(sets(more))[0]).student.name)) + 2
    run.main(["--space", str(space), "--study", study, "--trials", str(rows + begin), "--sampler", "random", *settings, *more])


def sets(words: list[str]) -> list[str]:
    """The values of `--set` among the words of a command."""
    return [value for flag, value in pairwise(words) if flag == "--set"]


def table(study: str, space: Space) -> dict[str, Any]:
    """{"facts": what run.json says, "space": resolved, "rows": a row per random complete trial}"""
    opened = find_study(f"sqlite:///{RUNS / study / 'study.db'}", study)
    assert opened is not None, f"there is no study {study}"
    drawn = {trial.number: trial.params for trial in opened.get_trials(deepcopy=False) if "fixed_params" not in trial.system_attrs}
    done = [each for each in read_records(opened) if each.state == "COMPLETE" and each.ending is None and each.number in drawn]
    facts = json.loads((RUNS / study / "run.json").read_text(encoding="utf-8"))
    kept = ("runtime", "device", "fingerprint", "training_device", "amp", "torch_threads", "seed", "data", "versions", "teacher")
    return {
        "facts": {key: facts[key] for key in kept},
        "config": opened.user_attrs["space"]["config"],
        "space": space.resolved(),
        "rows": [row_of(each, drawn[each.number]) for each in done],
    }


def row_of(each: TrialRecord, params: dict[str, Any]) -> dict[str, Any]:
    """What a replay needs, without what repeats itself."""
    row = each.model_dump(mode="json", exclude=UNUSED, exclude_defaults=True)
    row["rungs"] = [[rung.stage, rung.epoch, rung.accuracy] for rung in each.rungs]
    row["params"] = params
    assert each.candidate is not None
    row["candidate"] = compact(each.candidate)
    return row


def compact(candidate: Candidate) -> dict[str, Any]:
    """The candidate with its positions as [bits, execution, ratio]."""
    plain = candidate.model_dump(mode="json")
    return plain | {"groups": [[group.weight_bits, group.execution, group.prune_ratio] for group in candidate.groups]}


def record_of(row: dict[str, Any]) -> TrialRecord:
    """The record that a row was made of."""
    names = ("weight_bits", "execution", "prune_ratio")
    candidate = row["candidate"] | {"groups": [dict(zip(names, group, strict=True)) for group in row["candidate"]["groups"]]}
    rungs = [dict(zip(("stage", "epoch", "accuracy"), rung, strict=True)) for rung in row["rungs"]]
    rest = {key: value for key, value in row.items() if key != "params"}
    return TrialRecord.model_validate(rest | {"candidate": candidate, "rungs": rungs})


def write(path: Path, content: dict[str, Any]) -> None:
    """A line per row, so that a table can be compared with an earlier one."""
    head = {key: value for key, value in content.items() if key != "rows"}
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in content["rows"])
    write_atomically(path, f'{json.dumps(head, indent=1)[:-2]},\n "rows": [\n{lines}\n]}}\n')


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=Path("spaces/cifar10.yaml"))
    parser.add_argument("--study", default="table-cifar10")
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--data-dir", type=Path, help="where the images lie")
    parser.add_argument("--train-limit", type=int, help="training images")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    more = ["--workers", str(args.workers)] + [word for text in args.overrides for word in ("--set", text)]
    more += ["--set", f"data.train_limit={args.train_limit}"] if args.train_limit else []
    more += ["--data-dir", str(args.data_dir)] if args.data_dir else []
    record(args.space, args.study, args.rows, more)
    content = table(args.study, load_space(args.space, split_overrides(sets(more))[0]))
    write(args.out or TABLES / f"{args.study}.json", content)
    print(f"{len(content['rows'])} rows in {args.out or TABLES / f'{args.study}.json'}")


if __name__ == "__main__":
    main()
