"""Finalists: python -m search.refine --top 5 --epochs 60 --seeds 3

Retrains the best points of a study's front with more epochs and several seeds, builds their engines anew, times them in turn, scores them
on the test split, and writes the refined front beside the searched one: refined.json, refined.csv. Points that the images or the clock
cannot tell apart are marked. `--quantiser` rounds by another one than the search did: brecq takes longer than a trial should.
`--remeasure` only times the stored models on this machine; `--runtime` refines for another runtime.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli import Parser, required, run_main
from core.errors import UserError

if TYPE_CHECKING:
    import optuna

    from results.record import TrialRecord
    from results.refined import Finalist, Refinement

RUNS = Path("runs")
CACHE = RUNS / ".cache"


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.refine."""
    parser = Parser(prog="python -m search.refine", description="Retrain and re-measure the best points of a study's Pareto front.")
    parser.add_argument("--study", metavar="NAME", help="folder below runs/; default: the newest run's")
    parser.add_argument("--storage", metavar="URL", help="database of the study, where it is not in the run's folder")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="ranks 0 to K - 1 of the front (default %(default)s)")
    parser.add_argument("--epochs", type=float, metavar="E", help="of the training after pruning; default: as in the search")
    parser.add_argument("--seeds", type=int, metavar="S", help="train S networks per point, keep the best on the search split (default 1)")
    parser.add_argument("--quantiser", metavar="NAME", help="round by another quantiser, such as brecq, at the same bits")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="time every point N times, in turn (default %(default)s)")
    parser.add_argument("--runtime", metavar="NAME", help="refine for another runtime")
    parser.add_argument("--remeasure", action="store_true", help="train nothing: time the stored models on this machine")
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER", help="where the images are now, if they have moved")
    parser.add_argument("--plugin", type=Path, action="append", default=[], metavar="PY", help="your file, as given to the search")
    return parser


def main(argv: list[str]) -> int:
    """Choose, train or not, time in turn, mark ties, write."""
    args = build_parser().parse_args(argv)
    _check(args)
    from search.export_best import newest_run
    from search.setup import load_plugins

    load_plugins(args.plugin)
    name = newest_run(RUNS) if args.study is None else args.study
    from search.storage import storage_errors, storage_url
    from search.study import check_name, load_study

    folder = RUNS / check_name(name)
    url = storage_url(folder, args.storage)
    with storage_errors(url), required("a refinement must train and run its points"):
        study = load_study(url, name, folder)
        refinement = _refine(study, folder, args, argv)
    _show(refinement, folder)
    return 0


def _check(args: argparse.Namespace) -> None:
    """UserError for numbers out of range and flags that contradict each other."""
    for flag, value in (("--top", args.top), ("--seeds", args.seeds), ("--rounds", args.rounds)):
        if value is not None and value < 1:
            raise UserError(f"{flag} must be at least 1, but got {value}")
    if args.epochs is not None and not 0 < args.epochs < float("inf"):
        raise UserError(f"--epochs must be a number above 0, but got {args.epochs:g}")
    given = (("--epochs", args.epochs), ("--seeds", args.seeds), ("--quantiser", args.quantiser), ("--runtime", args.runtime))
    training = [flag for flag, value in given if value is not None]
    if args.remeasure and training:
        raise UserError(f"--remeasure trains nothing and keeps the runtime, but {' and '.join(training)} is given; leave one out")


def _refine(study: optuna.Study, folder: Path, args: argparse.Namespace, argv: list[str]) -> Refinement:
    """By training, or by timing alone."""
    from results.front import at_rank, front
    from results.record import read_records
    from results.refined import write_refined
    from search.export_best import config_of
    from search.finalists import Plan, by_quantiser, retime, retrain

    records = read_records(study)
    at_rank(records, 0)  # refuses an empty front
    points = [by_quantiser(point, args.quantiser) for point in front(records)[: args.top]]
    plan = Plan(epochs=args.epochs, seeds=args.seeds or 1, rounds=args.rounds, quantiser=args.quantiser, command=("search.refine", *argv))
    config = config_of(study, args, needs_images=not args.remeasure)
    if args.remeasure:
        refinement = retime(points, folder, plan, config)
    else:
        refinement = retrain(study, points, folder, CACHE, plan, config, args.runtime)
    write_refined(folder, refinement)
    return refinement


def _show(refinement: Refinement, folder: Path) -> None:
    """The refined front, then a line per finalist, and front-like CSV."""
    from results.front import front
    from results.table import front_csv, front_text

    best = front(refinement.records)
    front_csv(best, refinement.teacher, folder / "refined.csv")
    print(front_text(best, refinement.teacher))
    for record, finalist in zip(refinement.records, refinement.finalists, strict=True):
        print(_line(record, finalist, best))
    print(f"written: {folder / 'refined.csv'}, {folder / 'refined.json'}; export a point with search.export_best --refined --rank R")


def _line(record: TrialRecord, finalist: Finalist, best: list[TrialRecord]) -> str:
    assert record.measurement is not None
    from core.candidate import milliseconds

    low, high = (100 * bound for bound in finalist.search_interval)
    place = f"rank {best.index(record)}" if record in best else "off the front"
    parts = [
        f"{place} (trial {record.number}, rank {finalist.searched_rank} before): search {100 * record.measurement.accuracy:.2f} % "
        f"(95 % interval {low:.2f} to {high:.2f}; {100 * finalist.searched_accuracy:.2f} before)",
        *(f"{median:.3f} ms ({_before(finalist)})" for median in milliseconds(record.measurement.latency)),
    ]
    if len(finalist.seeds) > 1:
        shares = [100 * share for share in finalist.seeds.values()]
        parts.append(f"{len(shares)} seeds from {min(shares):.2f} to {max(shares):.2f} %")
    if finalist.test is not None:
        low, high = (100 * bound for bound in finalist.test["interval"])
        parts.append(f"test {100 * finalist.test['accuracy']:.2f} % (95 % interval {low:.2f} to {high:.2f})")
    for what, ties in (("accuracy", finalist.tied_accuracy), ("latency", finalist.tied_latency)):
        if ties:
            parts.append(f"{what} tied with rank {', '.join(map(str, ties))}")
    return "; ".join(parts)


def _before(finalist: Finalist) -> str:
    return "not timed before" if finalist.searched_latency_ms is None else f"{finalist.searched_latency_ms:.3f} before"


if __name__ == "__main__":
    raise SystemExit(run_main(main))
