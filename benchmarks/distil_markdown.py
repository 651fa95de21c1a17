"""The table of benchmarks/results/distil_table.json as Markdown: means, standard errors, differences in pairs."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from typing import Any

BASELINE = "kd"
Accuracies = dict[tuple[str, str], dict[int, dict[str, float]]]
"""(student, loss) -> seed -> row"""


def markdown(result: dict[str, Any]) -> str:
    """Test and search accuracy per student and loss, in per cent, and the test accuracy's difference to KD over the same seeds."""
    rows = result.get("rows", [])
    if not rows:
        return "no row is finished yet"
    table: Accuracies = defaultdict(dict)
    for row in rows:
        table[row["student"], row["loss"]][row["seed"]] = row
    lines = [_line(student, loss, table) for student, loss in table]
    head = (
        "| student (width) | loss | seeds | test accuracy, % | search accuracy, % | test, difference to KD in pairs |\n"
        "|---|---|---|---|---|---|"
    )
    return "\n".join([_caption(result, rows), "", head, *lines])


def _caption(result: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    recipe, teacher, data = result["recipe"], result["teacher"], result["data"]
    threads = "/".join(str(count) for count in sorted({row["threads"] for row in rows}))
    processors = ", ".join(sorted({row["device"]["cpu"] for row in rows}))
    return (
        f"{recipe['epochs']:g} epochs on {data['train']:,} images ({data['name']}), batch {recipe['batch_size']}, "
        f"{recipe['optimiser']}, lr {recipe['lr']:g}, "
        f"{recipe['schedule']}{_early(recipe)}; teacher {teacher['name']}, {100 * teacher['search_accuracy']:.2f} % on the search split "
        f"({result['search_images']:,} images); test split: {result['test_images']:,} images. Mean and standard error over the seeds. "
        f"{processors}, {threads} thread(s) per process, {result['precision'].removeprefix('torch.')}, "
        f"torch {result['versions']['torch']}."
    )


def _early(recipe: dict[str, Any]) -> str:
    """The smaller images of the first steps."""
    return "".join(f", {size} px until {100 * share:g} % of the steps" for size, share in recipe["early_sizes"])


def _line(student: str, loss: str, table: Accuracies) -> str:
    rows = table[student, loss]
    test, search = ([100 * row[key] for row in rows.values()] for key in ("test_accuracy", "search_accuracy"))
    baseline = table.get((student, BASELINE), {})
    pairs = [100 * (row["test_accuracy"] - baseline[seed]["test_accuracy"]) for seed, row in rows.items() if seed in baseline]
    difference = "-" if loss == BASELINE or not pairs else f"{mean_and_error(pairs, '+.2f')} (n = {len(pairs)})"
    width = next(iter(rows.values()))["width"]
    return f"| {student} ({width:g}) | {loss} | {len(rows)} | {mean_and_error(test)} | {mean_and_error(search)} | {difference} |"


def mean_and_error(values: list[float], form: str = ".2f") -> str:
    """Mean and standard error s / sqrt(n); one value has none."""
    mean = format(statistics.fmean(values), form)
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values) / math.sqrt(len(values)):.2f}"
