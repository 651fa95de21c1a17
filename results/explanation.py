"""One model in words: what takes its bytes, why a layer computes in float, and what changing it would cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from core.candidate import IN_FLOAT, KB, BuildReport, Candidate, LatencyReport, Measurement, milliseconds
from core.onnx_layers import own_times
from core.plan import group_of
from core.runtimes import RUNTIMES
from results.choices import BY_POSITION, columns, mean_ratio
from results.effects import SPARE_TRIALS, Effect, Effects, effects, features, nearest, relatives
from results.front import complete
from results.layers import LayerFacts, rest_bytes
from results.record import TrialRecord
from results.table import conditions, mean_bits, measurement, student_name
from results.view import StudyView

HEADINGS = ("layer", "shape", "MACs", "bits", "bytes", "share", "ms", "runs in", "why")
MS = HEADINGS.index("ms")
STEPS = {"mean bits": (1.0, "one more bit in every layer"), "mean pruning ratio": (0.1, "10 % fewer channels")}
"""Feature -> how much of it, in what words."""


class Times(NamedTuple):
    """Node of the graph -> milliseconds, as a runtime counted them just now, and the fingerprint of where."""

    nodes: Mapping[str, float]
    device: str


def explanation(
    view: StudyView,
    record: TrialRecord,
    layers: Sequence[LayerFacts],
    artifact: Mapping[str, int | str | None],
    times: Times | None = None,
) -> str:
    """The whole text. `artifact` is what the engine reported: int8_layers of layers, or nothing; without `times` no layer has any."""
    inside, ran = _inside(view, record, layers, times), _execution(record, layers, artifact, times)
    return "\n".join([_head(view, record), *inside, *ran, "", *_costs(view, record, layers)])


def why_float(layer: LayerFacts, index: int, count: int, record: TrialRecord) -> str:
    """Why layer `index` of `count` computes in float; '' when it does not, or when the files do not say."""
    assert record.candidate is not None
    if layer.execution != "float":
        return ""
    runtime = measurement(record).latency.runtime
    if layer.bits == 16:
        return "16-bit weights always compute in float"
    if record.candidate.quantiser in IN_FLOAT:
        return f"the quantiser {record.candidate.quantiser} leaves every layer to float"
    if layer.groups > 1 and runtime in RUNTIMES and not RUNTIMES[runtime]().depthwise_int8:
        return f"{runtime} computes grouped convolutions in float"
    groups = record.candidate.groups
    position = group_of(index, count, len(groups))
    if groups[position].execution == "float":
        drawn = "has 16 bits, which always compute in float" if groups[position].weight_bits > 8 else "was sampled as float"
        return f"depth position {position} of {len(groups)} {drawn}"
    return "the graph does not quantise its input"


def one_more_bit(layers: Sequence[LayerFacts]) -> int:
    """Bytes that one more bit in every layer of fewer than 8 bits adds to the bit-packed file, with the values that a layer then shares."""
    growing = [layer for layer in layers if layer.bits < 8]
    return sum(_packed(layer, layer.bits + 1) - _packed(layer, layer.bits) for layer in growing)


def _packed(layer: LayerFacts, bits: int) -> int:
    """Bytes of its weights: whole ones, and a table of at most 2^bits half floats where they share values."""
    return -(-layer.weights * bits // 8) + 2 * min(2**bits, layer.weights) * layer.shared


def _head(view: StudyView, record: TrialRecord) -> str:
    measured = measurement(record)
    numbers = [f"{measured.size_bytes / KB:.1f} KB", *(f"{median:.3f} ms" for median in milliseconds(measured.latency))]
    return (
        f"rank {view.rank(record)} (trial {record.number}) of {view.name}: {student_name(record)}, {100 * measured.accuracy:.2f} % of "
        f"{measured.images} search images, {', '.join(numbers)}\n"
    )


def _inside(view: StudyView, record: TrialRecord, layers: Sequence[LayerFacts], times: Times | None) -> list[str]:
    if not layers:
        damage = view.damaged.get(view.rank(record))
        return [f"The layers are not shown: {damage or f'the files of trial {record.number} are not in {view.folder}'}."]
    total, count, nodes = measurement(record).size_bytes, len(layers), times.nodes if times else {}
    own = own_times({layer.name: layer.nodes for layer in layers}, nodes)
    rows: list[tuple[str, ...]] = [
        (
            layer.name,
            "x".join(map(str, layer.shape)),
            "-" if layer.macs is None else f"{layer.macs:,}",
            str(layer.bits),
            f"{layer.size_bytes:,}",
            f"{100 * layer.size_bytes / total:.1f} %",
            f"{own[layer.name]:.3f}" if layer.name in own else "-",
            layer.execution or "unknown",
            why_float(layer, index, count, record) if record.candidate is not None else "",
        )
        for index, layer in enumerate(layers)
    ]
    assert record.path is not None
    rest = rest_bytes(view.folder / record.path, tuple(layers))
    in_all = sum(nodes.values())
    beside = (f"{rest:,}", f"{100 * rest / total:.1f} %", f"{in_all - sum(own.values()):.3f}", "", "")
    rows.append(("all else (header, activation scales)", "", "", "", *beside))
    rows.append(("total", "", f"{measurement(record).macs:,}", "", f"{total:,}", "", f"{in_all:.3f}", "", ""))
    shown = [row if own else row[:MS] + row[MS + 1 :] for row in (HEADINGS, *rows)]
    return list(_aligned(shown, left=(0, len(shown[0]) - 2, len(shown[0]) - 1)))


def _execution(
    record: TrialRecord, layers: Sequence[LayerFacts], artifact: Mapping[str, int | str | None], times: Times | None
) -> list[str]:
    latency = measurement(record).latency
    if isinstance(latency, BuildReport):
        whole = f"The {conditions(latency)}."
    else:
        low, high = latency.ci_ms
        whole = f"The whole network takes {latency.p50_ms:.3f} ms ({low:.3f} to {high:.3f}; {conditions(latency)})."
    lines = ["", f"{whole} MACs say how much a layer computes, not how long it takes.", _timed(latency, times)]
    ran, asked = artifact.get("int8_layers"), sum(layer.execution == "int8" for layer in layers)
    if isinstance(ran, int):
        differs = f"; the graph asks for {asked}, so the engine decided otherwise for the rest" if layers and ran != asked else ""
        lines.append(f"The engine itself reports {ran} of {artifact.get('layers')} compute layers in INT8{differs}.")
    if max((layer.bits for layer in layers if layer.execution == "int8"), default=8) == 7:
        lines.append("Layers in INT8 have at most 7 bits where the CPU's sums of 8-bit products saturate (x86 without VNNI).")
    return lines


def _timed(latency: LatencyReport | BuildReport, times: Times | None) -> str:
    if isinstance(latency, BuildReport) or times is None:
        why = "they were not asked for, or this machine cannot time them" if times is None else "nothing was timed"
        return f"Milliseconds per layer are not shown: {why}."
    if not times.nodes:
        return f"Milliseconds per layer are not shown: {latency.runtime} does not say here what a layer takes."
    in_all = sum(times.nodes.values())
    slower = in_all > latency.p50_ms
    beside = (
        "counting makes a call slower, so compare layers with one another" if slower else "a call also takes time outside of the layers"
    )
    elsewhere = "" if times.device == latency.fingerprint else " This is not the device of the study."
    return (
        "Milliseconds per layer are the runtime's own count just now, to about a microsecond, of a layer with what is fused into it. "
        f"They add up to {in_all:.3f} ms; {beside}.{elsewhere}"
    )


def _costs(view: StudyView, record: TrialRecord, layers: Sequence[LayerFacts]) -> Iterator[str]:
    yield "What a change would cost"
    if layers:
        growing = sum(layer.bits < 8 for layer in layers)
        most, how = ("at most ", ", counted bit-packed; coded ones are known after training") if view.coded else ("", "")
        more = f"one more bit in the {growing} layers of fewer than 8 bits adds {most}{one_more_bit(layers):,} bytes{how}"
        yield f"  counted in the file: {more if growing else 'every layer has 8 bits or more, and takes no further one'}"
    fitted = effects(record, view.records)
    if fitted is None and len({features(other) for other in complete(view.records) if other.candidate is not None}) == 1:
        yield "  no regression: bits, pruning, execution and width are the same in all models of this study"
    elif fitted is None:
        yield (
            f"  no regression: it needs trials that differ and at least {SPARE_TRIALS} more than coefficients, and this study has "
            f"{len(relatives(record, view.records))} of {record.student}; search on with more --trials"
        )
    else:
        yield f"  linear regression over this study's {_basis(fitted, str(record.student))}, 95 % intervals in brackets:"
        yield from (f"    {_effect(effect)}" for effect in fitted.found if effect.feature in STEPS)
        varied = {effect.feature for effect in fitted.found}
        missing = [words for feature, (_, words) in STEPS.items() if feature not in varied]
        yield from (f"    {words}: no answer, it did not vary in these trials (or in one alone)" for words in missing)
    yield from _neighbours(view, record)


def _basis(fitted: Effects, student: str) -> str:
    if fitted.students == (student,):
        return f"{fitted.trials} models of {student}"
    return f"{fitted.trials} models of all {len(fitted.students)} students, each with its own level: {student} alone has too few"


def _effect(effect: Effect) -> str:
    step, words = STEPS[effect.feature]
    points = [100 * step * value for value in effect.accuracy]
    costs = [("size", effect.size)] + ([] if effect.latency is None else [("latency", effect.latency)])
    accuracy = f"accuracy {points[0]:+z.2f} points ({points[1]:+z.2f} to {points[2]:+z.2f})"
    return f"{words}: {', '.join([accuracy, *(f'{name} {_factor([value**step for value in factors])}' for name, factors in costs)])}"


def _factor(values: Sequence[float]) -> str:
    percent = [100 * (value - 1) for value in values]
    return f"{percent[0]:+z.0f} % ({percent[1]:+z.0f} to {percent[2]:+z.0f})"


def _neighbours(view: StudyView, record: TrialRecord) -> Iterator[str]:
    others = nearest(record, view.records)
    if not others or record.candidate is None:
        yield f"  nearest trials: there is no other complete trial of {record.student}"
        return
    here = measurement(record)
    yield "  nearest trials of the same student, and their difference to this model:"
    rows = [("trial", "width", "mean bits", "pruned", "accuracy", "size", "latency", "also")]
    for other in others:
        there, candidate = measurement(other), other.candidate
        assert candidate is not None
        rows.append(
            (
                str(other.number),
                f"{candidate.width:g} ({record.candidate.width:g})",
                f"{mean_bits(other):.1f} ({mean_bits(record):.1f})",
                f"{100 * mean_ratio(candidate):.0f} % ({100 * mean_ratio(record.candidate):.0f} %)",
                f"{100 * (there.accuracy - here.accuracy):+.2f} points",
                f"{100 * (there.size_bytes / here.size_bytes - 1):+.0f} %",
                _slower(there, here),
                _otherwise(candidate, record.candidate),
            )
        )
    kept = rows if any(row[-1] for row in rows[1:]) else [row[:-1] for row in rows]
    yield from (f"    {line}" for line in _aligned(kept, left=(rows[0].index("also"),)))
    yield "    in brackets: this model"


def _otherwise(candidate: Candidate, own: Candidate) -> str:
    """In what else it differs: how it was taught, rounded and pruned."""
    there, here = columns(candidate), columns(own)
    return ", ".join(f"{key} {there[key]} ({here[key]})" for key in there if key not in BY_POSITION and there[key] != here[key])


def _slower(there: Measurement, here: Measurement) -> str:
    pairs = zip(milliseconds(there.latency), milliseconds(here.latency), strict=True)
    return "".join(f"{100 * (theirs / ours - 1):+.0f} %" for theirs, ours in pairs) or "-"


def _aligned(rows: Sequence[Sequence[str]], left: Sequence[int]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
