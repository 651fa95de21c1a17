"""Explain: python -m search.explain --rank 0

Says what is inside one model of a study's front: bytes and (of OpenVINO and ONNX Runtime on a CPU) milliseconds per layer, why a layer
computes in float, and what one more bit or fewer channels would cost according to the study's own trials.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from core.cli import Parser, run_main
from core.errors import UserError
from search.reading import add_study_flags, opened

if TYPE_CHECKING:
    from results.explanation import Times
    from results.record import TrialRecord
    from results.view import StudyView


def build_parser() -> argparse.ArgumentParser:
    """The flags of search.explain."""
    parser = Parser(
        prog="python -m search.explain",
        description="Explain one model of a study's Pareto front: bytes and milliseconds per layer, execution, and costs of a change.",
    )
    add_study_flags(parser)
    parser.add_argument("--rank", type=int, default=0, metavar="R", help="0 is the most accurate point of the front (default)")
    parser.add_argument(
        "--time-layers",
        action=argparse.BooleanOptionalAction,
        help="take the milliseconds of every layer here, for a second (default: where OpenVINO or ONNX Runtime runs on a CPU and the files "
        "are here)",
    )
    return parser


def main(argv: list[str]) -> int:
    """Read the study and print the explanation."""
    args = build_parser().parse_args(argv)
    with opened(args.study, args.storage) as (_, view):
        from results.explanation import explanation
        from results.front import at_rank

        record = at_rank(view.records, args.rank)
        trial = next(trial for trial in view.trials if trial.number == record.number)
        times = None if args.time_layers is False else _times(view, record, asked=bool(args.time_layers))
        print(explanation(view, record, view.layers.get(args.rank, ()), trial.user_attrs.get("engine", {}), times))
    return 0


def _times(view: StudyView, record: TrialRecord, asked: bool) -> Times | None:
    """What every layer takes on this machine, in the runtime and with the settings of the study.

    Where that cannot be had: UserError if it was `asked` for, otherwise None.
    """
    from core.cli import required
    from core.config import RuntimeConfig
    from core.engines import EngineHost
    from results.explanation import Times
    from results.record import candidate_file
    from results.table import measurement

    settings = RuntimeConfig.model_validate({**view.config.get("runtime", {}), "name": measurement(record).latency.runtime})
    try:
        with required("layers are timed where the model runs"), EngineHost(settings, view.folder) as engines:
            if not (asked or engines.times_layers):
                return None
            return Times(engines.layer_times(candidate_file(view.folder, record, "model.onnx")), engines.fingerprint)
    except UserError:
        if asked:
            raise
        return None


if __name__ == "__main__":
    raise SystemExit(run_main(main))
