"""Report: python -m search.report --study digits

Writes what a study found, for people: report.html (opens without a network), report.md and report.csv.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from core.cli import Parser, run_main
from search.reading import add_study_flags, opened


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.report."""
    parser = Parser(prog="python -m search.report", description="Write a study's report: one web page, Markdown and CSV.")
    add_study_flags(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the three files; default: the run's")
    return parser


def main(argv: list[str]) -> int:
    """Read the study, write the files, print where they are."""
    args = build_parser().parse_args(argv)
    with opened(args.study, args.storage) as view:
        from results.report import write_report

        for path in write_report(view, args.out or view.folder):
            print(f"written: {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_main(main))
