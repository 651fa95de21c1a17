"""Candidates of a space trained in full, with every rung, as one compact table that replay.py can search again and again.

    python -m benchmarks.table_search --data-dir FOLDER --rows 120

A row is a trial of a real study (`search.run --sampler random`, nothing skipped or stopped) in runs/, so an interrupted recording goes on
with the same command, and `--workers 2` shares it. The study's own first candidates are left out, since a row is a random draw, and so
is what an interruption has cost a part of its rungs and seconds. The teacher is trained on all training images before.

Rows that the table holds already are kept: `--study NAME --seed N` with more `--rows` adds those of a further study, where space,
configuration, images, device and versions are the same. Its teacher may be another one of the same recipe, `--set teacher.weights=FILE`:
`studies` tells each one's digest and accuracy. --collect runs nothing and writes what the study holds by now.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from benchmarks.given_teacher import CACHE, ROOT, given_teacher
from core.candidate import START, Candidate
from core.cli import run_main
from core.config import Config
from core.data import load_search_data
from core.engines import EngineHost
from core.errors import UserError
from core.files import write_atomically
from core.yaml_io import load_config
from results.record import TrialRecord, read_records
from search import run
from search.digest import portable, space_digest
from search.setup import split_overrides
from search.space import Space, load_space, options
from search.study import INPUTS_KEY, REQUEUED_KEY, count_finished, find_study
from search.summary import versions
from search.workers import divided

TABLES = Path(__file__).parent / "tables"
RUNS = Path("runs")
SETTINGS = ("stopping.skip=false", "stopping.stop=false")
UNUSED = {"candidate", "rungs", "reason", "path", "files", "ending", "hypervolume", "latency_ms"}
"""Of a record: what no replay looks at, or the row has in another form."""
TEACHER_KEY = "weights or network"
"""Of a study's inputs: the digest of a teacher that was given."""
GROUP, RUNG = ("weight_bits", "execution", "prune_ratio"), ("stage", "epoch", "accuracy")


def main(argv: list[str] | None = None) -> int:
    """Record what is missing, then write the table; also after an interruption."""
    args = build_parser().parse_args(argv)
    out = args.out or TABLES / f"table-{args.space.stem}.json"
    settings = [*args.overrides, *SETTINGS, f"seed={args.seed}"]
    settings += [f"data.dir={json.dumps(str(args.data_dir.absolute()))}"] if args.data_dir else []
    settings += given_teacher(args.space, settings)
    space_sets, config_sets = split_overrides(settings)
    space = load_space(args.space, space_sets)
    config = load_config(space.config, config_sets, ROOT)
    known = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    check_same(known, shared_of(space, config), out)
    others = sum(row["study"] != args.study for row in known.get("rows", ()))
    try:
        if not args.collect:
            record(args, settings, space, args.rows - others)
    finally:
        if (RUNS / args.study / "run.json").exists():
            content = merged(known, table(args.study, space, config), out)
            write(out, content)
            print(f"{len(content['rows'])} rows in {out}")
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", type=Path, default=ROOT / "spaces" / "cifar10.yaml")
    parser.add_argument("--study", default="table-cifar10")
    parser.add_argument("--seed", type=int, default=0, help="of the study; a further one needs another")
    parser.add_argument("--rows", type=int, default=120, help="that the table shall hold, those of other studies included")
    parser.add_argument("--data-dir", type=Path, help="where the images lie")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--collect", action="store_true", help="run nothing, write what the study holds")
    parser.add_argument("--out", type=Path, help="default: tables/table-<space>.json")
    return parser


def record(args: argparse.Namespace, settings: Sequence[str], space: Space, wanted: int) -> None:
    """Run the study until it holds `wanted` rows. Raises UserError where trials bring no more of them."""
    sets = [word for text in settings for word in ("--set", text)]
    command = ["--space", str(args.space), "--study", args.study, "--sampler", "random", "--workers", str(args.workers), *sets]
    baselines, found = len(options(space.student.name)) + 3, -1  # what may be queued first, no row
    while (rows := len(whole(args.study))) < wanted:
        if rows == found:
            raise UserError(f"a row is a network that no other row has, but the last trials brought none; give --rows {rows}")
        found, study = rows, find_study(url_of(args.study), args.study)
        finished = baselines if study is None else max(baselines, count_finished(study))
        run.main([*command, "--trials", str(finished + wanted - rows)])


# --- from a study to rows --------------------------------------------------------------------------------------------


def url_of(study: str) -> str:
    return f"sqlite:///{RUNS / study / 'study.db'}"


def whole(name: str) -> list[tuple[TrialRecord, dict[str, Any]]]:
    """Random complete trials with all rungs, and the parameters that each asked for."""
    study = find_study(url_of(name), name)
    if study is None:
        return []
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    records = [each for each in read_records(study) if each.state == "COMPLETE" and each.ending is None]
    most = max(map(epochs_seen, records), default=0)
    drawn = [each for each in records if epochs_seen(each) == most and is_drawn(trials[each.number], trials)]
    return [(each, trials[each.number].params) for each in drawn]


def epochs_seen(each: TrialRecord) -> int:
    """Rungs of its trainings: an interrupted trial lacks those before its last start."""
    return sum(rung.stage != START for rung in each.rungs)


def is_drawn(trial: optuna.trial.FrozenTrial, trials: Mapping[int, optuna.trial.FrozenTrial]) -> bool:
    """Whether the sampler chose the parameters: those of a baseline were queued, and those of an interrupted trial queued again."""
    while REQUEUED_KEY in trial.user_attrs:
        trial = trials[trial.user_attrs[REQUEUED_KEY]]
    return "fixed_params" not in trial.system_attrs


def table(name: str, space: Space, config: Config) -> dict[str, Any]:
    """{"shared": what rows of all studies have in common, "facts", "studies", "asked": names of the parameters, "rows"}"""
    study = find_study(url_of(name), name)
    assert study is not None, f"there is no study {name}"
    facts = json.loads((RUNS / name / "run.json").read_text(encoding="utf-8"))
    inputs = dict(study.user_attrs[INPUTS_KEY])
    records, rows = read_records(study), whole(name)
    asked = sorted(rows[0][1]) if rows else []
    threads = divided(config, facts["workers"]).hardware.threads if facts["workers"] > 1 else facts["torch_threads"]
    told = {
        "seed": config.seed,
        "workers": facts["workers"],
        "threads_per_worker": threads,
        "wall_seconds": facts.get("wall_seconds"),
        "trials": len(records),
        "parent_seconds": parent_seconds(records),
        "teacher": {"digest": inputs.pop(TEACHER_KEY), "accuracy": facts["teacher"]["accuracy"]},
    }
    return {
        "shared": shared_of(space, config) | inputs,
        "facts": {key: facts[key] for key in ("runtime", "device", "training_device", "amp", "data", "teacher")},
        "studies": {name: told},
        "asked": asked,
        "rows": [row_of(each, name, [params[key] for key in asked]) for each, params in rows],
    }


def parent_seconds(records: Sequence[TrialRecord]) -> dict[str, float]:
    """<student>-<width> -> seconds that its parent's training took: the longest stage `parent`, for others came later or only waited."""
    found: dict[str, float] = {}
    for each in records:
        if each.candidate is not None and "parent" in each.seconds:
            key = parent_of(each.candidate)
            found[key] = max(found.get(key, 0.0), each.seconds["parent"])
    return dict(sorted(found.items()))


def parent_of(candidate: Candidate) -> str:
    """The name of a candidate's parent in the table."""
    return f"{candidate.student}-{candidate.width:g}"


def shared_of(space: Space, config: Config) -> dict[str, Any]:
    """What must be equal in all rows and can be said before the first trial. A study's seed and folders may differ."""
    content = portable(space_digest(space, config)[1])
    with tempfile.TemporaryDirectory() as folder, EngineHost(config.runtime, Path(folder)) as engines:
        device = engines.fingerprint
    images = load_search_data(config.data, CACHE).info.digest
    plain = {key: value for key, value in content["config"].items() if key not in ("seed", "stopping")}  # nothing is stopped in a row
    return {"space": content["space"], "config": plain, "images": images, "device or runtime": device, "versions": versions()}


def check_same(known: Mapping[str, Any], shared: Mapping[str, Any], path: Path) -> None:
    """Raises UserError where the table's rows are of another set-up; an empty table has none."""
    kept = known.get("shared", {})
    if differing := [key for key, value in shared.items() if key in kept and kept[key] != json.loads(json.dumps(value))]:
        raise UserError(f"rows of one table share {', '.join(kept)}, but {path} has another {', '.join(differing)}; give another --out")


def merged(known: Mapping[str, Any], new: dict[str, Any], path: Path) -> dict[str, Any]:
    """The table with the rows of `new` that it has not yet. Raises UserError where they do not belong together."""
    if not known.get("rows"):
        return new
    check_same(known, new["shared"], path)
    there = {row["fingerprint"] for row in known["rows"]}
    rows = [*known["rows"], *(row for row in new["rows"] if row["fingerprint"] not in there)]
    return {**known, "studies": known["studies"] | new["studies"], "rows": rows}


# --- a row and back --------------------------------------------------------------------------------------------------


def row_of(each: TrialRecord, study: str, params: Sequence[Any]) -> dict[str, Any]:
    """What a replay needs, without what repeats itself. `params` in the order of the table's "asked"."""
    assert each.candidate is not None
    row = each.model_dump(mode="json", exclude=UNUSED, exclude_defaults=True)
    candidate = each.candidate.model_dump(mode="json", exclude={"groups"}, exclude_defaults=True)
    groups = [[getattr(group, name) for name in GROUP] for group in each.candidate.groups]
    rungs = [[getattr(rung, name) for name in RUNG] for rung in each.rungs]
    return {"study": study, **row, "rungs": rungs, "candidate": candidate | {"groups": groups}, "params": list(params)}


def record_of(row: Mapping[str, Any], number: int | None = None) -> TrialRecord:
    """The record that a row was made of; with another `number` where rows of several studies stand together."""
    candidate = row["candidate"] | {"groups": [dict(zip(GROUP, group, strict=True)) for group in row["candidate"]["groups"]]}
    rungs = [dict(zip(RUNG, rung, strict=True)) for rung in row["rungs"]]
    rest = {key: value for key, value in row.items() if key not in ("study", "params")}
    return TrialRecord.model_validate(
        rest | {"candidate": candidate, "rungs": rungs, "number": rest["number"] if number is None else number}
    )


def write(path: Path, content: Mapping[str, Any]) -> None:
    """A line per fact and per row, so that a table can be compared with an earlier one."""
    head = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items() if key != "rows"]
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in content["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, "{\n" + ",\n".join([*head, f'"rows": [\n{rows}\n]']) + "\n}\n")


if __name__ == "__main__":
    raise SystemExit(run_main(main))
