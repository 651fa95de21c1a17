"""Which networks of torchvision and timm can be compressed? python benchmarks/library_networks.py [--rows timm:resnet18:96,...]

Each is built for 10 classes at its image size, pruned (0.3 of the channels of every layer, or none where that cannot be), rounded to 4
bits, exported and run in ONNX Runtime, and its logits are compared with the simulation's on noise. It also says whether it has a map for
the losses that compare regions, and of how many cells. Networks are untrained: asked is whether they can, not how well.
Writes benchmarks/results/library_networks.json, from which benchmarks/readme.py fills the guide's table.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 (a script: the checkout comes first)
from torch import nn  # noqa: E402

from benchmarks.rows import Table  # noqa: E402
from core.candidate import Candidate, GroupPlan  # noqa: E402
from core.cli import run_main  # noqa: E402
from core.compress import check_compressible, draft, quantise, resolve  # noqa: E402
from core.errors import ParetopressError  # noqa: E402
from core.layers import layer_infos  # noqa: E402
from core.quantise.setting import untrained, weight_of  # noqa: E402
from core.runtimes import EngineOptions, running_runtime  # noqa: E402
from core.students.zoo import find_student  # noqa: E402
from core.students.zoo_net import RegionalNetwork  # noqa: E402
from core.train import Device  # noqa: E402
from objectives.first_look import adapt  # noqa: E402
from search.students import is_endless  # noqa: E402
from search.summary import versions  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "library_networks.json"
CLASSES, RATIO, COUNT = 10, 0.3, 16


@dataclass(frozen=True)
class Row:
    """A network of a library, at an image size."""

    network: str
    image_size: int

    @property
    def name(self) -> str:
        return f"{self.network}:{self.image_size}"


ROWS = (
    *(Row(f"torchvision:{name}", 32) for name in ("resnet18", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "regnet_y_400mf")),
    *(Row(f"torchvision:{name}", 96) for name in ("convnext_tiny", "mnasnet0_5", "squeezenet1_1", "shufflenet_v2_x0_5", "swin_t")),
    Row("torchvision:vit_b_16", 32),
    Row("timm:resnet18", 96),
    *(Row(f"timm:{name}", 32) for name in ("efficientnet_lite0", "regnetx_002", "repvgg_a0", "convnext_atto", "vit_tiny_patch16_224")),
    *(Row(f"timm:{name}", 32) for name in ("ghostnet_050", "lcnet_050", "tf_efficientnet_lite0")),
    Row("timm:mobilenetv3_small_050", 96),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Try the networks that are missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", help=f"{TABLE.form},... in place of all")
    parser.add_argument("--markdown", action="store_true", help="try nothing, print the table")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.set_defaults(shard="0/1")
    return TABLE.run(parser.parse_args(argv))


@contextmanager
def open_bench(args: argparse.Namespace) -> Iterator[None]:
    """Networks share nothing."""
    yield None


def tried(row: Row, _: None) -> dict[str, Any]:
    """One row: `student`, `pruned` and why not, `map_cells` (None: no map), and how far the engine is from the simulation."""
    torch.manual_seed(0)
    shape, start = (3, row.image_size, row.image_size), time.perf_counter()
    noise = torch.randn(COUNT, *shape, generator=torch.Generator().manual_seed(1))
    model = settled(find_student(row.network)(classes=CLASSES, channels=3, image_size=row.image_size), noise)
    cells = None
    if isinstance(model, RegionalNetwork):
        with torch.no_grad():
            cells = model.features(noise[:1]).shape[-1]
    facts = {"row": row.name, "network": row.network, "image_size": row.image_size, "map_cells": cells}
    pruned, why = (False, "Torch-Pruning does not end") if is_endless(row.network) else (True, None)
    try:
        check_compressible(model, shape)
    except ParetopressError as error:
        return facts | {"student": False, "pruned": False, "reason": str(error), "seconds": round(time.perf_counter() - start, 1)}
    found: dict[str, Any] | None = None
    if pruned:
        try:
            found = compressed(model, row, noise, RATIO)
        except ParetopressError as error:
            pruned, why = False, str(error)
    found = found or compressed(model, row, noise, 0.0)
    return facts | {"student": True, "pruned": pruned, "reason": why, **found, "seconds": round(time.perf_counter() - start, 1)}


@torch.no_grad()
def settled(model: nn.Module, noise: torch.Tensor) -> nn.Module:
    """With batch statistics of what passes through, and a last layer that says something: fresh ones answer nothing, or always the same."""
    adapt(model, noise, Device(torch.device("cpu"), None))
    last = layer_infos(model, (3, *noise.shape[2:]))[-1].name
    nn.init.normal_(weight_of(model, last), std=0.1)
    return model.eval()


def compressed(model: nn.Module, row: Row, noise: torch.Tensor, ratio: float) -> dict[str, Any]:
    """Sizes, and the largest difference between the logits of engine and simulation, in units of their spread."""
    runtime, shape = running_runtime("onnxruntime"), (3, row.image_size, row.image_size)
    candidate = Candidate(student=row.network, groups=(GroupPlan(weight_bits=4, prune_ratio=ratio),), quantiser="ptq")
    network, plan = resolve(model, candidate, shape, runtime)
    files, simulation = quantise(network, draft(network, plan, shape, runtime), "ptq", untrained, noise, runtime)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        engine = runtime.load(str(files.save(Path(folder))), EngineOptions(COUNT, 1, "f32"))
        answers, expected = torch.from_numpy(engine.run(noise.numpy())), simulation(noise)
        artifact = engine.artifact()
    return {
        "parameters": files.parameters,
        "packed_bytes": len(files.packed),
        "engine_error": float((answers - expected).abs().max() / expected.std()),
        "int8_layers": artifact["int8_layers"],
        "layers": artifact["layers"],
    }


def shared(_: None) -> dict[str, Any]:
    """What must be equal in all rows of a file."""
    kept = ("torch", "torchvision", "torch-pruning", "onnxruntime")
    found = versions()
    import timm

    return {"versions": {name: found[name] for name in kept} | {"timm": timm.__version__}, "ratio": RATIO, "classes": CLASSES}


def told(row: dict[str, Any]) -> str:
    """What is said when a row is finished."""
    return f"{_student(row)}; map: {_map(row)}; {row['seconds']:.0f} s"


def markdown(result: dict[str, Any]) -> str:
    """The guide's table."""
    head = "| Network | Image size, px | As a student | Engine from simulation | Map for `sdd`, `hint`, `at` |\n|---|---|---|---|---|"
    lines = (
        f"| `{row['network']}` | {row['image_size']} | {_student(row)} | {_apart(row)} | {_map(row)} |" for row in result.get("rows", [])
    )
    return "\n".join([head, *lines])


def _student(row: dict[str, Any]) -> str:
    if not row["student"]:
        return f"no: {row['reason']}"
    return "yes" if row["pruned"] else f"with `prune.ratio: 0` only: {row['reason']}"


def _apart(row: dict[str, Any]) -> str:
    return f"{row['engine_error']:.2f}" if row["student"] else "-"


def _map(row: dict[str, Any]) -> str:
    cells = row["map_cells"]
    return "none" if cells is None else f"{cells} x {cells}" if cells > 1 else "one cell"


TABLE = Table(ROWS, "network:size", open_bench, shared, tried, markdown, told)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
