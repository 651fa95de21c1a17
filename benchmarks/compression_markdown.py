"""The table of benchmarks/results/compression.json as Markdown: means, standard errors, differences in pairs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any

from benchmarks.compression_bars import LONGER, STRATEGIES, Rows, bar_lines, bars, float_of
from benchmarks.distil_markdown import mean_and_error
from core.candidate import SELF


def markdown(result: dict[str, Any]) -> str:
    """Per network and kind: test accuracy of the engine, its difference in pairs, and bytes of the files."""
    rows = result.get("rows", [])
    if not rows:
        return "no row is finished yet"
    table: dict[tuple[str, str], Rows] = defaultdict(dict)
    for row in rows:
        table[row["student"], row["kind"]][row["seed"]] = row
    head = (
        "| network | kind | seeds | test accuracy, % | to FP32 in pairs | to uniform bits in pairs | mean bits | packed, KB "
        "| coded, KB | smaller |\n"
        "|---|---|---|---|---|---|---|---|---|---|"
    )
    lines = [_caption(result, rows), "", head, *(_line(*key, table) for key in table)]
    return "\n".join([*lines, "", "### What is asked of it", "", *bar_lines(bars(table))])


def _caption(result: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    parent, finetune = result["parent"]["train"], result["finetune"]
    teachers = [each["teacher"] for each in result["together"].values()]
    reached = sorted({f"{100 * each['search_accuracy']:.2f}" for each in teachers})
    computers = ", ".join(sorted({row["device"]["cpu"] for row in rows}))
    threads = "/".join(str(count) for count in sorted({row["threads"] for row in rows}))
    engines = ", ".join(sorted({row["runtime"] for row in rows}))
    return (
        f"FP32 networks: {parent['epochs']:g} epochs on {result['data']['train']:,} images ({result['data']['name']}), taught by "
        f"{teachers[0]['name']} ({', '.join(reached)} % on the search split); fine-tunes: {finetune['epochs']:g} epochs, of which "
        f"`fp32`, `int8` and `int8-nncf` have none; `fp32-tuned` is one in float; `long-`: {LONGER:.1f} times as many epochs of both, and "
        f"another teaching. Accuracy of the engine ({engines}) on {result['test_images']:,} test images, mean and standard error over the "
        f"seeds. 1 KB is 1000 bytes; `smaller`: FP32's packed file over the coded one. `codebook` and `chain` take two trainings of "
        f"{finetune['epochs']:g} epochs (with the mask, then for the weights), `sdq` two of half as many (for the bits, then for the "
        f"weights). {_copies(rows)}{_own(rows)}{_narrow(rows)}{_departing(result['finetune'], rows)}"
        f"{computers}, {threads} thread(s) per process."
    )


def _copies(rows: list[dict[str, Any]]) -> str:
    """How many rows took no training of their own, or nothing."""
    count = sum("same_as" in row for row in rows)
    return f"{count} rows are copies of others: their strategies chose the same bits. " if count else ""


def _own(rows: list[dict[str, Any]]) -> str:
    """What the names of rows mean that begin with the teacher, or nothing."""
    shares = {row["kind"]: row["pruned"] for row in rows if row.get("pruned")}
    told = "".join(
        f"; `{kind}`: {100 * share:g} % of the channels of every group go first, and a training in float follows"
        for kind, share in shares.items()
    )
    return f"`self` is the teacher's own network{told}. " if any(row["student"] == SELF for row in rows) else ""


def _narrow(rows: list[dict[str, Any]]) -> str:
    """Which networks have other widths than 1, or nothing."""
    widths = {row["student"]: row["width"] for row in rows if row.get("width", 1) != 1}
    return "".join(f"`{student}` has {width:g} of its width. " for student, width in sorted(widths.items()))


def _departing(finetune: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Which rows were trained by another optimiser than the recipe of all, or nothing."""

    def told(recipe: dict[str, Any]) -> str:
        return f"{recipe['optimiser']} at {recipe['lr']:g}"

    others = {row["kind"]: told(row["recipe"]) for row in rows if row["recipe"]["optimiser"] != finetune["optimiser"]}
    by = " and ".join(f"`{kind}` by {recipe}" for kind, recipe in sorted(others.items()))
    return f"Fine-tunes are by {told(finetune)}, {by}. " if others else ""


def _line(student: str, kind: str, table: dict[tuple[str, str], Rows]) -> str:
    rows = table[student, kind]
    strategy, _, uniform = kind.rpartition("-")
    against = uniform if strategy in STRATEGIES else ""
    packed, coded = (statistics.fmean(row[key] for row in rows.values()) / 1000 for key in ("packed_bytes", "coded_bytes"))
    floats = [row["packed_bytes"] for row in table.get((student, float_of(kind)), {}).values()]
    smaller = f"{statistics.fmean(floats) / 1000 / coded:.1f}x" if floats else "-"
    accuracy = mean_and_error([100 * row["test_accuracy"] for row in rows.values()])
    bits = statistics.fmean(row["mean_bits"] for row in rows.values())
    cells = [student, kind, str(len(rows)), accuracy, _pairs(rows, table.get((student, float_of(kind)), {}), kind != float_of(kind))]
    cells += [
        _to_uniform(rows, table.get((student, against), {})) if against else "-",
        f"{bits:.2f}",
        f"{packed:.1f}",
        f"{coded:.1f}",
        smaller,
    ]
    return f"| {' | '.join(cells)} |"


def _to_uniform(rows: Rows, baseline: Rows) -> str:
    """A strategy that chose the same bits everywhere has made the very network that it is compared with."""
    same = sum(len(set(row["bits"])) == 1 for row in rows.values())
    return _pairs(rows, baseline, True) + (f", {same} of them the same network" if same else "")


def _pairs(rows: Rows, baseline: Rows, wanted: bool) -> str:
    """Mean difference in points over the seeds that both have, with its standard error."""
    both = [100 * (row["test_accuracy"] - baseline[seed]["test_accuracy"]) for seed, row in rows.items() if seed in baseline]
    return f"{mean_and_error(both, '+.2f')} (n = {len(both)})" if wanted and both else "-"
