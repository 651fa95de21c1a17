"""A finished point on another runtime's grid, and the same network without quantisation: both rebuilt without training."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.bundle import Preprocessing
from core.candidate import SELF, Candidate, Measurement
from core.cli import required
from core.compress import calibration_indices, recoded, refit, resolve
from core.config import Config
from core.data.types import SearchData
from core.eager import time_eager
from core.engines import EngineHost
from core.errors import UserError
from core.export import export_onnx
from core.files import write_atomically
from core.pack import coding_of, unpack
from core.teacher import build_network, network_digest
from core.views import Normalisation, viewed
from objectives.accuracy import score
from results.record import TrialRecord
from search.final_score import answers


def reexport(
    record: TrialRecord,
    config: Config,
    data: SearchData,
    preprocessing: Preprocessing,
    engines: EngineHost,
    packed: Path,
    folder: Path,
    network: str | None,
) -> Measurement:
    """Write model.onnx and weights.pack for the runtime of `engines` to `folder`, and measure all three objectives there.

    Weights are taken over bit for bit, activation scales are calibrated on the training images of the search. Raises UserError when the
    network cannot be rebuilt or the runtime refuses it. `network`: as of `time_twins`.
    """
    assert record.candidate is not None
    assert record.measurement is not None
    normalise = Normalisation(preprocessing.mean, preprocessing.std)
    dense = _dense(record.candidate, config, data, network)
    pruned, plan = resolve(dense, record.candidate, data.info.shape, engines.runtime)
    train = viewed(data.train, normalise, config.views, config.seed, torch.device("cpu"))
    calibration = train.plain(calibration_indices(len(train), config.quantise.calibration_images))
    content = packed.read_bytes()
    quantiser, rule = record.candidate.quantiser, config.quantise.activations
    compressed, graph = refit(pruned, plan, unpack(content), calibration, engines.runtime, quantiser, rule)
    compressed = recoded(compressed, coding_of(content))
    model = compressed.save(folder)
    with required(f"the point must run in {engines.runtime.name}"):
        labels = data.search.labels
        if record.measurement.judged_by == "teacher":
            labels = labels.new_tensor(answers(engines, folder.parents[1] / "teacher" / "model.onnx", preprocessing, data.search).argmax(1))
        scored = score(engines, model, graph, map(normalise, data.search.chunks()), labels)
        latency = engines.latency(model, key=compressed.structure)
    changed = {"accuracy": scored.accuracy, "agreement": scored.agreement, "size_bytes": len(compressed.packed), "latency": latency}
    return record.measurement.model_copy(update=changed | {"mean_bits": compressed.plan.mean_bits})


def time_twins(
    record: TrialRecord, config: Config, data: SearchData, engines: EngineHost, model: Path, network: str | None
) -> list[dict[str, Any]]:
    """The point itself and the same shapes in float, one after the other in one runtime: {what, precision, engine, latency} each.

    The float network comes at every precision that the runtime has, and in PyTorch, unless an agent times: that would be here.
    `network`: what the search's own network file said (core/teacher.py), None where nobody kept it. Raises UserError when it cannot be
    rebuilt.
    """
    assert record.candidate is not None
    runtime = engines.runtime
    with required("the point and its float twin must run to be compared"), tempfile.TemporaryDirectory() as work:
        rows = [_timed("this model", engines, model)]
        dense = _dense(record.candidate, config, data, network)
        pruned, _ = resolve(dense, record.candidate, data.info.shape, runtime)
        path = write_atomically(Path(work, "float.onnx"), export_onnx(pruned, data.info.shape).SerializeToString())
        for precision in runtime.precisions:
            with _at(precision, engines, Path(work)) as host:
                rows.append(_timed(f"the same network in float, {precision}", host, path))
        if engines.config.agent is None:
            rows.append(_eager(pruned, data.info.shape, engines))
    return rows


def _dense(candidate: Candidate, config: Config, data: SearchData, network: str | None) -> nn.Module:
    """The untrained network that was compressed. Raises UserError where its file says something else now."""
    if candidate.student == SELF and network not in (None, network_digest(config.teacher)):
        raise UserError(f"the network's file must say what it said in the search, but {config.teacher.model} was changed; restore it")
    return build_network(candidate.student, candidate.width, config.teacher, data.info).eval()


@contextmanager
def _at(precision: str, engines: EngineHost, work: Path) -> Iterator[EngineHost]:
    """A host of the same runtime at another float precision; `engines` itself where it has it."""
    if engines.config.precision == precision:
        yield engines
        return
    config = engines.config.model_copy(update={"name": engines.runtime.name, "precision": precision})
    with EngineHost(config, work) as host:
        yield host


def _eager(network: nn.Module, input_shape: tuple[int, int, int], engines: EngineHost) -> dict[str, Any]:
    """What everyone has to compare with."""
    on_gpu = engines.runtime.device == "cuda"
    latency = time_eager(network, input_shape, engines.config, on_gpu=on_gpu)
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules())
    return {
        "what": f"the same network in PyTorch {torch.__version__.partition('+')[0]}, {'a CUDA graph' if on_gpu else 'eager'}, f32",
        "precision": latency.precision,
        "engine": {"runtime": latency.runtime, "precision": latency.precision, "int8_layers": 0, "layers": layers},
        "latency": latency.model_dump(mode="json"),
    }


def _timed(what: str, engines: EngineHost, model: Path) -> dict[str, Any]:
    latency, artifact = engines.time_model(model)
    return {
        "what": what,
        "precision": artifact.precision,
        "engine": artifact.model_dump(mode="json", exclude={"model_path"}),
        "latency": latency.model_dump(mode="json"),
    }
