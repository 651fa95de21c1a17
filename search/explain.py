"""Explain: python -m search.explain --rank 0

Says what is inside one model of a study's front: bytes per layer, why a layer computes in float, and what one more bit or fewer
channels would cost according to the study's own trials.
"""

from __future__ import annotations

import argparse

from core.cli import Parser, run_main
from search.reading import add_study_flags, opened


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.explain."""
    parser = Parser(
        prog="python -m search.explain", description="Explain one model of a study's Pareto front: bytes, execution, and costs of a change."
    )
    add_study_flags(parser)
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="0 is the most accurate point of the front (default)")
    return parser


def main(argv: list[str]) -> int:
    """Read the study and print the explanation."""
    args = build_parser().parse_args(argv)
    with opened(args.study, args.storage) as view:
        from results.explanation import explanation
        from results.front import at_rank

        record = at_rank(view.records, args.rank)
        trial = next(trial for trial in view.trials if trial.number == record.number)
        print(explanation(view, record, view.layers.get(args.rank, ()), trial.user_attrs.get("engine", {})))
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
