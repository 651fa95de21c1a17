"""The model card inside a bundle: what the network is for, what it was made of, how good it is, and what nobody has tried.

References: Mitchell et al., Model Cards for Model Reporting, FAT* 2019 (its sections).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from core.candidate import KB, Candidate, LatencyReport

UNKNOWN = "not stated"


def model_card(candidate: Candidate, measurement: Mapping[str, Any], labels: Sequence[str], runtime: str) -> str:
    """Markdown. What `measurement` does not hold is said to be not stated."""
    search, test = measurement.get("search", {}), measurement.get("test", {})
    data, share = measurement.get("data", {}), judge(search.get("judged_by"))
    made_of = f"{_number(search.get('parameters'), ',')} parameters, {_number(search.get('macs'), ',')} MACs"
    images = f"{_number(data.get('train'), ',')} training images, {_number(data.get('search'), ',')} held out for all choices"
    scales = f"Activation scales were chosen on {len(measurement.get('calibration', ()))} training images"
    sections = {
        "Model": [
            f"An image classifier for {len(labels)} classes: {_origin(candidate)}, its weights stored in "
            f"{_number(search.get('mean_bits'), '.1f')} bits on average (`candidate.yaml`).",
            f"Made for the runtime `{runtime}`. {made_of}.",
        ],
        "Use": [
            "Meant for images like those it was trained on, decoded and normalised as `preprocessing.json` says.",
            "It always names one of its classes, also for a picture of something else; its probabilities are not calibrated.",
        ],
        "Data": [
            f"`{data.get('name', UNKNOWN)}`: {images}, {_number(test.get('images'), ',')} seen by the finished network alone.",
            f"Digest {data.get('digest', UNKNOWN)}. {scales} (`calibration` in `measurement.json`).",
        ],
        "Results": [*_results(measurement), *twin_lines(measurement.get("twins", ()))],
        "Limits": [
            "One split of one data set was measured: nothing is known of other cameras, places or times, nor of groups of people.",
            f"The front was chosen on the search split, so its {share} there is a little too good; the test {share} is the one to quote.",
            *([] if share == "accuracy" else ["The images have no labels: how often the network is right is not known."]),
            "Latency belongs to the device in `measurement.json`; `python verify.py` measures it on yours.",
        ],
    }
    return "# Model card\n\n" + "\n".join(
        f"## {title}\n\n" + "\n".join(f"- {line}" for line in lines) + "\n" for title, lines in sections.items()
    )


def twin_lines(twins: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line per network that was timed beside the bundle's own, in the same runtime and minutes."""
    lines = []
    for twin in twins:
        latency = LatencyReport.model_validate(twin["latency"])
        marks = f"; {unrest}" if (unrest := latency.unrest()) else ""
        lines.append(f"{twin['what']}: {latency.p50_ms:.4f} ms ({latency.spread()}{marks})")
    return lines


def judge(judged_by: str | None) -> str:
    """What a share of right answers is called, by `Measurement.judged_by`; bundles of an older version do not say, and are of labels."""
    return "agreement with the teacher's top-1" if judged_by == "teacher" else "accuracy"


def elsewhere(latency: Mapping[str, Any], measurement: Mapping[str, Any]) -> str:
    """What is said of a latency that another device than the exporting one had; empty for its own."""
    return "" if latency.get("fingerprint") == measurement.get("fingerprint") else " on the search's device"


def _origin(candidate: Candidate) -> str:
    """What the network was made from, in words."""
    pruned = any(group.prune_ratio > 0 for group in candidate.groups)
    distilled = candidate.distil.loss != "ce" and candidate.distil.weight > 0
    taught = f"distilled from its teacher by `{candidate.distil.loss}`" if distilled else "trained on labels alone"
    return f"`{candidate.student}` at width {candidate.width:g}, {'pruned' if pruned else 'not pruned'}, {taught}"


def _results(measurement: Mapping[str, Any]) -> list[str]:
    """Latencies are those of the export, where it timed the model."""
    search, test, teacher = (measurement.get(key, {}) for key in ("search", "test", "teacher"))
    share, lines = judge(search.get("judged_by")), []
    if test:
        low, high = (100 * bound for bound in test["interval"])
        lines.append(f"Test {share}: {100 * test['accuracy']:.2f} % of {test['images']} images, 95 % interval {low:.2f} to {high:.2f}.")
    if search:
        latency = measurement.get("latency", search["latency"])
        lines.append(
            f"Search {share}: {100 * search['accuracy']:.2f} % of {search['images']} images. {search['size_bytes'] / KB:.1f} KB. "
            f"{_speed(latency)}{elsewhere(latency, measurement)}."
        )
    if teacher:
        timed = f", {teacher['latency']['p50_ms']:.4f} ms" if "p50_ms" in teacher["latency"] else ""
        lines.append(
            f"The teacher in float32, as the search measured it: {share} {100 * teacher['accuracy']:.2f} % of the search split, "
            f"{teacher['size_bytes'] / KB:.1f} KB{timed}."
        )
    return lines or [UNKNOWN]


def _speed(latency: Mapping[str, Any]) -> str:
    """Of what was timed, or of what was only built for GPUs that were not at hand."""
    if "p50_ms" in latency:
        return f"{latency['p50_ms']:.4f} ms a call of {latency['batch']} image(s) on {latency['threads']} thread(s)"
    targets = ", ".join(latency["compute_capability"])
    return f"Latency was not measured: the engine was built for {targets} on a machine without one of them"


def _number(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)
