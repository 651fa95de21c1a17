"""Does this bundle still do what it says? python verify.py [IMAGES]     IMAGES: a folder of <class>/*.png, *.jpg ...

Derives size, accuracy (on your images) and latency anew, puts them beside what the bundle states, and says what differs; also whether
engine files, where there are some, are stale here.
It needs nothing but what requirements.txt lists. Exit code: 0 all agrees, 1 something differs, 2 it could not be checked.
"""

# Written into every bundle as verify.py, so it must not import this project.
from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"}
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
X86 = {"x86_64", "amd64", "i386", "i686"}
LATENCY_SLACK = 0.15
"""On the same kind of machine a median may differ by this share: another day, another load."""
BATCH = 50
DISTRIBUTIONS = {
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu12"),
    "tensorrt_rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings"),
}
"""Runtime with engine files of its own -> what it is installed as."""
Row = tuple[str, str, str, bool | None]
"""What, stated, found, and whether they agree; None: no verdict."""
Run = Callable[[np.ndarray], np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="?", type=Path, metavar="IMAGES", help="folder with a folder per class; without it no accuracy")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="to time the model (default %(default)s)")
    args = parser.parse_args()
    try:
        manifest, measured = read("bundle.json"), read("measurement.json")
        rows = [*check_files(manifest), check_size(measured), *check_latency(manifest, measured, args.seconds), *check_engine(manifest)]
        if args.images is not None:
            rows.append(check_accuracy(manifest, measured, args.images))
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        remedy = "; pip install -r requirements.txt" if isinstance(error, ImportError) else ""
        print(f"error: this bundle cannot be checked: {type(error).__name__}: {error}{remedy}", file=sys.stderr)
        return 2
    for what, stated, found, agrees in rows:
        print(f"{'DIFFERS' if agrees is False else '       ' if agrees is None else 'ok     '} {what:12} stated {stated:34} found {found}")
    different = [what for what, _, _, agrees in rows if agrees is False]
    print(f"differs: {', '.join(different)}" if different else "all that was checked agrees")
    return 1 if different else 0


def read(name: str) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def check_files(manifest: dict[str, Any]) -> Iterator[Row]:
    """A row for every file whose digest is another, or one for all."""
    changed = [name for name, digest in manifest["files"].items() if hashlib.sha256((HERE / name).read_bytes()).hexdigest() != digest]
    if not changed:
        yield "files", f"{len(manifest['files'])} digests", "the same", True
    for name in changed:
        yield name, "its digest", "another", False


def check_size(measured: dict[str, Any]) -> Row:
    found = (HERE / "weights.pack").stat().st_size
    stated = measured.get("search", {}).get("size_bytes")
    return "size", "nothing" if stated is None else f"{stated} bytes", f"{found} bytes", None if stated is None else stated == found


def check_accuracy(manifest: dict[str, Any], measured: dict[str, Any], folder: Path) -> Row:
    """On the images given; it agrees when the stated one lies in the 95 % interval of the found one, or the other way round.

    No verdict where the stated one is an agreement with the teacher: folders show what the images are, not what the teacher answers.
    """
    labels, inputs = read("labels.json"), read("preprocessing.json")
    files = [(path, index) for index, label in enumerate(labels) for path in sorted((folder / label).glob("**/*"))]
    files = [(path, index) for path, index in files if path.suffix.lower() in SUFFIXES and not is_hidden(path.relative_to(folder))]
    if not files:
        raise ValueError(f"{folder} must hold a folder of images per class ({', '.join(labels[:5])} ...), but has none")
    run, right = load(manifest, BATCH, 1)[0], 0
    for start in range(0, len(files), BATCH):
        part = files[start : start + BATCH]
        images = np.zeros((BATCH, inputs["channels"], inputs["image_size"], inputs["image_size"]), np.float32)
        images[: len(part)] = [prepare(path, inputs) for path, _ in part]
        right += int((run(images)[: len(part)].argmax(1) == [index for _, index in part]).sum())
    found, stated = right / len(files), measured.get("test", {})
    low, high = interval(right, len(files))
    text = f"{100 * found:.2f} % of {len(files)} images"
    if "accuracy" not in stated:
        return "accuracy", "nothing", text, None
    if measured.get("search", {}).get("judged_by") == "teacher":
        return "accuracy", f"{100 * stated['accuracy']:.2f} % as the teacher answers", text, None
    least, most = stated["interval"]
    agrees = low <= stated["accuracy"] <= high or least - 1e-9 <= found <= most + 1e-9  # older bundles: 0.9999999999999999 for 1
    return "accuracy", f"{100 * stated['accuracy']:.2f} % of {stated['images']} test images", text, agrees


def check_latency(manifest: dict[str, Any], measured: dict[str, Any], seconds: float) -> Iterator[Row]:
    """Median of calls. A verdict only on the same kind of processor, and where the stated one is stable; else the numbers are shown."""
    stated = measured.get("latency") or measured.get("search", {}).get("latency") or {}
    run, runtime, version = load(manifest, stated.get("batch", 1), stated.get("threads", 1))
    inputs = read("preprocessing.json")
    shape = (stated.get("batch", 1), inputs["channels"], inputs["image_size"], inputs["image_size"])
    found = median_ms(run, np.random.default_rng(0).standard_normal(shape, dtype=np.float32), seconds)
    yield "runtime", f"{manifest['runtime']} {measured.get('device', {}).get('runtime_version', '')}".strip(), f"{runtime} {version}", None
    if "p50_ms" not in stated:
        yield "latency", "nothing", f"{found:.4f} ms", None
        return
    here, there = processor(), measured.get("device", {}).get("cpu", "an unknown processor")
    same = runtime == manifest["runtime"] and here == there and measured.get("device", {}).get("gpu") is None
    note = "" if same else f" (on {here}, not {there})" if here != there else " (not the runtime it was measured in)"
    low, high = stated.get("ci_ms", (stated["p50_ms"], stated["p50_ms"]))
    slack, steady = LATENCY_SLACK * stated["p50_ms"], stated.get("stable", True)
    agrees = low - slack <= found <= high + slack if same and steady else None
    yield "latency", f"{stated['p50_ms']:.4f} ms median{'' if steady else ' (unstable)'}", f"{found:.4f} ms{note}", agrees


def check_engine(manifest: dict[str, Any]) -> Iterator[Row]:
    """Whether the engine files fit what is installed here; OpenVINO's is also run, beside the model that it was made of."""
    facts = manifest.get("engine")
    if facts is None:
        return
    stated, names = f"{facts['runtime']} {facts['version']} on {facts['device']}", DISTRIBUTIONS[facts["runtime"]]
    versions = [version for name in names if (version := installed(name)) is not None]
    if not versions:
        yield "engine", stated, f"{facts['runtime']} is not installed", None
    elif versions[0] != facts["version"]:
        yield "engine", stated, f"{versions[0]}: stale here, use model.onnx", False
    elif "model.blob" not in facts["files"]:
        yield "engine", stated, f"{versions[0]}, not run", None
    else:
        yield "engine", stated, *run_blob(manifest, facts["batch"])


def run_blob(manifest: dict[str, Any], batch: int) -> tuple[str, bool]:
    """What OpenVINO's compiled model answers on random images, in words, and whether that is what model.onnx answers."""
    openvino = import_openvino()
    inputs = read("preprocessing.json")
    shape = (batch, inputs["channels"], inputs["image_size"], inputs["image_size"])
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    expected = load(manifest, batch, 1)[0](images)
    try:
        core = openvino.Core()
        blob, properties = (HERE / "model.blob").read_bytes(), openvino_properties(core, manifest, 1)
        request = core.import_model(blob, "CPU", properties).create_infer_request()
        found = np.array(next(iter(request.infer([images]).values())))
    except RuntimeError as error:
        return f"it does not load ({str(error).splitlines()[0][:80]}), use model.onnx", False
    slack = 0.001 if properties["INFERENCE_PRECISION_HINT"] == "f32" else 0.01
    same = bool(np.allclose(found, expected, rtol=slack, atol=slack * float(np.abs(expected).max())))
    return ("loads, the same logits" if same else "loads, other logits: use model.onnx"), same


def installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def load(manifest: dict[str, Any], batch: int, threads: int) -> tuple[Run, str, str]:
    """A function of images (batch, C, H, W), and the runtime's name and version. Runtimes of GPUs are stood in for by ONNX Runtime."""
    model = str(HERE / "model.onnx")
    if manifest["runtime"] == "openvino":
        openvino = import_openvino()
        core = openvino.Core()
        network = core.read_model(model)
        network.reshape({network.input(0): [batch, *list(network.input(0).partial_shape)[1:]]})
        properties = openvino_properties(core, manifest, threads)
        if clips_sums() and any(map(beyond_seven_bits, network.get_ordered_ops())):
            properties["LP_TRANSFORMS_MODE"] = False  # as written, in float
        request = core.compile_model(network, "CPU", properties).create_infer_request()
        return lambda x: np.array(next(iter(request.infer([x]).values()))), "openvino", openvino.__version__.split("-")[0]
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.x64quantprecision", "1")  # exact also where sums of 8-bit products saturate
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(["logits"], {"images": x})[0], "onnxruntime", onnxruntime.__version__


def import_openvino() -> Any:
    """OpenVINO, which reports its own import unless another package is missing: nothing is sent from here."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino


def clips_sums() -> bool:
    """Whether this is x86 without VNNI, where pairs of u8 x s8 products are added in 16 bits."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text(errors="replace").split() if cpuinfo.is_file() else []
    return platform.machine().lower() in X86 and not {"avx_vnni", "avx512_vnni", "amx_int8"} & set(flags)


def beyond_seven_bits(op: Any) -> bool:
    """Whether OpenVINO's operation would run in INT8 with weights whose sums are clipped there."""
    if op.get_type_name() not in ("Convolution", "GroupConvolution", "MatMul"):
        return False
    image, weight = (integers(op.input_value(place)) for place in (0, 1))
    stored = image is not None and weight is not None and weight.get_type_name() == "Constant"
    return bool(stored and np.abs(weight.data.astype(np.int16)).max() > 64)


def integers(value: Any) -> Any:
    """The operation whose 8-bit integers a dequantisation turns into `value`, or None."""
    op = value.get_node()
    while op.get_output_element_type(0).to_string() not in ("i8", "u8"):
        if op.get_type_name() not in ("Convert", "Subtract", "Multiply", "Reshape"):
            return None
        op = op.input_value(0).get_node()
    return op


def openvino_properties(core: Any, manifest: dict[str, Any], threads: int) -> dict[str, Any]:
    """Options to compile or to import with: without its precision, float layers run in bfloat16 wherever the processor can."""
    properties = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": manifest.get("precision", "f32")}
    supported = core.get_property("CPU", "SUPPORTED_PROPERTIES")
    if "CPU_DENORMALS_OPTIMIZATION" in supported:
        properties["CPU_DENORMALS_OPTIMIZATION"] = True
    if "DYNAMIC_QUANTIZATION_GROUP_SIZE" in supported:
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    return properties


def median_ms(run: Run, images: np.ndarray, seconds: float) -> float:
    """Milliseconds a call: after a quarter of the time as warm-up, the median of calls of the rest."""
    calls: list[float] = []
    start = time.perf_counter()
    while not calls or time.perf_counter() < start + seconds:
        begin = time.perf_counter()
        run(images)
        if begin - start >= seconds / 4 or not calls:
            calls.append(1000 * (time.perf_counter() - begin))
    return statistics.median(calls)


def prepare(path: Path, inputs: dict[str, Any]) -> np.ndarray:
    """From a file to the network's input, float32 (C, size, size), as in training."""
    size = inputs["image_size"]
    with Image.open(path) as image:
        if image.mode == "F":
            raise ValueError(f"{path}: its brightness is in fractions without a range; save it with 8 or 16 bits")
        image.draft(None, (2 * size, 2 * size))
        image.load()
        edge = min(image.size)
        left, top = (image.width - edge) / 2, (image.height - edge) / 2
        square = opaque(image)
        if square.size != (size, size):
            square = square.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + edge, top + edge))
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
        square = (square if turn is None else square.transpose(turn)).convert("L" if inputs["channels"] == 1 else "RGB")
    pixels = np.asarray(square, np.float32).reshape(size, size, inputs["channels"]).transpose(2, 0, 1)
    mean, std = (np.asarray(inputs[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    return (pixels / np.float32(255) - mean) / std


def is_hidden(path: Path) -> bool:
    """Whether a search, which ignores hidden files and folders, has not read it."""
    return any(part.startswith(".") for part in path.parts)


def opaque(image: Image.Image) -> Image.Image:
    """Mode L or RGB: 16 bits scaled to 8, transparency laid over white."""
    if image.mode.startswith("I"):
        return Image.fromarray(((np.clip(np.asarray(image).astype(np.int64), 0, 65535) + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def interval(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927)."""
    share = right / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5
    return (0.0 if right == 0 else centre - half), (1.0 if right == count else centre + half)  # exact where rounding is not


def processor() -> str:
    """As Linux names it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "an unknown processor")


if __name__ == "__main__":
    sys.exit(main())
