"""Report: python -m search.report --study digits

Writes what a study found, for people: report.html (opens without a network), report.md and report.csv. optuna-dashboard offers those of
the run's folder.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from core.cli import Parser, run_main
from core.errors import UserError
from search.reading import add_study_flags, opened

if TYPE_CHECKING:
    import optuna


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.report."""
    parser = Parser(prog="python -m search.report", description="Write a study's report: one web page, Markdown and CSV.")
    add_study_flags(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the three files; default: the run's")
    return parser


def main(argv: list[str]) -> int:
    """Read the study, write the files, print where they are."""
    args = build_parser().parse_args(argv)
    with opened(args.study, args.storage) as (study, view):
        from results.report import write_report

        for path in write_report(view, args.out or view.folder):
            print(f"written: {path}")
        if args.out is None:
            _offer(study, view.folder, args.storage)
    return 0


def _offer(study: optuna.Study, folder: Path, storage: str | None) -> None:
    """To optuna-dashboard; whoever may only read the study has the files all the same."""
    from search.showcase import offer_reports
    from search.storage import storage_errors, storage_url

    try:
        with storage_errors(storage_url(folder, storage)):
            offer_reports(study, folder)
    except (UserError, OSError) as error:
        print(f"optuna-dashboard does not offer them: {error}")


if __name__ == "__main__":
    raise SystemExit(run_main(main))
