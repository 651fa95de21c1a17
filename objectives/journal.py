"""What every stage of a candidate made of it, in numbers, where a study asks for them (`journal: true`)."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from core.candidate import BuildReport, LatencyReport, Measurement, ShapePlan, StageRecord, milliseconds
from core.compress import draft, recoded
from core.export import export_onnx, float_tensors, structure_key
from core.files import write_atomically
from core.layers import count_macs, count_parameters
from core.pack import pack
from core.train import predict_all, share
from objectives.accuracy import simulate
from objectives.bench import Stages, Workbench

FILE = "stages.json"
"""In a candidate's folder, also where a limit, a rung or an error ends the trial."""
STAGE = "journal"
"""What its own looks are called in the account."""


@dataclass
class Journal:
    """Looks at the network after each stage. Switched off it does nothing: a look costs a pass over the search split and an engine."""

    bench: Workbench
    stages: Stages
    folder: Path
    counted: float = 0.0
    """Seconds of stages that belong to records already."""

    def note(self, stage: str, model: nn.Module, plan: ShapePlan | None = None, quantiser: str = "ptq") -> None:
        """After `stage`: accuracy and loss in PyTorch; size and latency of the network in float, or by `plan` as `quantiser` stores it."""
        if not self.bench.config.journal:
            return
        seconds, shape = self._since(), self.bench.input_shape
        with self.stages(STAGE):
            logits = predict_all(model, self.bench.data.search, self.bench.teacher.normalise, self.bench.device)
            plain = copy.deepcopy(model.cpu()).float().eval()
            size, latency = self._in_float(plain) if plan is None else self._by_plan(plain, plan, quantiser)
            self._add(stage, logits, size, count_parameters(plain), count_macs(plain, shape), latency, seconds)

    def finish(self, measured: Measurement, graph: nn.Module) -> None:
        """After the last stage: the engine's own numbers, and the loss of its simulation `graph`."""
        if not self.bench.config.journal:
            return
        images, seconds = map(self.bench.teacher.normalise, self.bench.data.search.chunks()), self._since()
        with self.stages(STAGE):
            logits = torch.cat([simulate(graph, part) for part in images])
        last = (measured.size_bytes, measured.parameters, measured.macs, measured.latency, seconds)
        self._add("quantise", logits, *last, accuracy=measured.accuracy)

    def _add(
        self,
        stage: str,
        logits: Tensor,
        size: int,
        parameters: int,
        macs: int,
        latency: LatencyReport | BuildReport,
        seconds: float,
        accuracy: float | None = None,
    ) -> None:
        labels = self.bench.data.search.labels.cpu()
        right = share(logits.argmax(1) == labels)
        record = StageRecord(
            stage=stage,
            accuracy=right if accuracy is None else accuracy,
            loss=float(nn.functional.cross_entropy(logits.float(), labels)),
            size_bytes=size,
            parameters=parameters,
            macs=macs,
            latency_ms=next(iter(milliseconds(latency)), None),
            seconds=round(seconds, 3),
        )
        self.stages.records.append(record)
        records = [each.model_dump(mode="json") for each in self.stages.records]
        write_atomically(self.folder / FILE, json.dumps(records, indent=1) + "\n")

    def _since(self) -> float:
        """Seconds of the stages since the record before; those of the journal itself are not among them."""
        total = sum(seconds for stage, seconds in self.stages.seconds.items() if stage != STAGE)
        seconds, self.counted = total - self.counted, total
        return seconds

    def _in_float(self, model: nn.Module) -> tuple[int, LatencyReport | BuildReport]:
        exported = export_onnx(model, self.bench.input_shape)
        path = write_atomically(self.bench.engines.scratch / "stage.onnx", exported.SerializeToString())
        return len(pack(float_tensors(model))), self.bench.engines.latency(path, key=structure_key(exported))

    def _by_plan(self, model: nn.Module, plan: ShapePlan, quantiser: str) -> tuple[int, LatencyReport | BuildReport]:
        drafted = draft(model, plan, self.bench.input_shape, self.bench.engines.runtime, quantiser)
        path = drafted.save(self.bench.engines.scratch / "stage")
        return len(recoded(drafted, self.bench.coding).packed), self.bench.engines.latency(path, key=drafted.structure)
