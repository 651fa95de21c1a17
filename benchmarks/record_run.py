"""A finished run as one committed JSON: python benchmarks/record_run.py --study cifar10 --ranks 0 3 --out FILE.json

Front, account and machine are read from runs/<study>; the ranks named (chosen on the search split) are exported, which scores
them on the test split once; the teacher's test accuracy stands beside them for comparison.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.common import exported_point, front_of, teacher_test  # noqa: E402
from core.candidate import LatencyReport  # noqa: E402
from results.front import complete  # noqa: E402
from results.record import TrialRecord, read_records  # noqa: E402
from search.study import CONTENT_KEY, load_study  # noqa: E402

RUNS = Path("runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", required=True)
    parser.add_argument("--ranks", type=int, nargs="+", default=[0])
    parser.add_argument("--teacher-run", metavar="STUDY", help="the run that trained the kept teacher, where it was another one")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    run = json.loads((RUNS / args.study / "run.json").read_text())
    if args.teacher_run:
        other = json.loads((RUNS / args.teacher_run / "run.json").read_text())
        same = ("accuracy", "size_bytes")
        assert all(other["teacher"][key] == run["teacher"][key] for key in same), "another teacher"
        run["teacher_seconds"] = other["teacher_seconds"]
    study = load_study(f"sqlite:///{RUNS / args.study / 'study.db'}", args.study)
    content = dict(study.user_attrs[CONTENT_KEY])
    content["config"]["data"].pop("dir", None)  # a path of the machine it ran on
    front = front_of(args.study)
    on_front = {record.number for record in front}
    result = {
        "run": {key: value for key, value in run.items() if key not in ("command", "started", "starts")},
        "space_and_config": content,
        "teacher_test": teacher_test(args.study),
        "front": [row(rank, record) for rank, record in enumerate(front)],
        "dominated": [row(None, record) for record in complete(read_records(study)) if record.number not in on_front],
        "exported": [exported_point(args.study, rank) for rank in args.ranks],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {args.out}")


def row(rank: int | None, record: TrialRecord) -> dict[str, object]:
    assert record.measurement is not None
    measured = record.measurement
    timed = measured.latency if isinstance(measured.latency, LatencyReport) else None
    return {
        "rank": rank,
        "trial": record.number,
        "student": record.student,
        "width": record.width,
        "mean_bits": record.mean_bits,
        "search_accuracy": measured.accuracy,
        "size_bytes": measured.size_bytes,
        "p50_ms": timed.p50_ms if timed else None,
        "stable": timed.stable if timed else True,
        "agreement": measured.agreement,
        "parameters": measured.parameters,
        "macs": measured.macs,
    }


if __name__ == "__main__":
    main()
