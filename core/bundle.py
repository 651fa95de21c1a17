"""A bundle: one folder that holds a compressed model and everything needed to run it. This program reads it as data, never as code.

    model.onnx  weights.pack  candidate.yaml  measurement.json  labels.json  preprocessing.json  bundle.json
    README.md  MODEL_CARD.md  verify.py  requirements.txt, and where asked for: model.engine or model.blob, timing.cache or kernels.cache

`bundle.json` is the manifest: format version, runtime, and the SHA-256 of every other file. `verify.py` is core/bundle_verify.py: it checks
the bundle where this program is not installed, with what requirements.txt lists.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from core import bundle_verify
from core.bundle_card import model_card
from core.bundle_readme import readme
from core.candidate import Candidate, Frozen
from core.errors import UserError
from core.files import write_atomically
from core.runtimes.types import ENGINE_FILES, installed_version
from core.yaml_io import load_yaml, parse

FORMAT = "paretopress-bundle"
VERSION = 2
MANIFEST = "bundle.json"
FILES = (
    *("model.onnx", "weights.pack", "candidate.yaml", "measurement.json", "labels.json", "preprocessing.json"),
    *("README.md", "MODEL_CARD.md", "verify.py", "requirements.txt"),
)
OF_FILE_MANAGERS = {".DS_Store", ".directory", "Thumbs.db", "desktop.ini"}
"""Files that looking at a folder leaves in it: nobody's work."""
VERIFIED_WITH = {"openvino": "openvino"}
"""Runtime -> what verify.py runs a bundle in; others by ONNX Runtime, which reads every grid."""
Precision = Literal["f32", "bf16", "f16"]


class Preprocessing(Frozen):
    """From a decoded image to the network's input. `mean` and `std` are per channel, on the [0, 1] scale."""

    image_size: Annotated[int, Field(ge=1)]
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0.0)], ...]

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> Preprocessing:
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} values each, but have {len(self.mean)} and {len(self.std)}")
        return self

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """uint8 (N, C, H, W) -> float32 (N, C, H, W): (x / 255 - mean) / std."""
        mean, std = (np.asarray(values, np.float32).reshape(-1, 1, 1) for values in (self.mean, self.std))
        return (images.astype(np.float32) / np.float32(255) - mean) / std


class EngineFacts(Frozen):
    """What the optional engine files are for: they load at once where all of it is equal, and nowhere else."""

    files: tuple[Literal["model.engine", "model.blob", "timing.cache", "kernels.cache"], ...]
    runtime: str
    version: str
    device: str
    """Compute capabilities ("SM86, SM89"), or the processor or GPU that built them."""
    batch: int


class Manifest(Frozen):
    """What bundle.json holds. `files`: name -> SHA-256 in hex."""

    format: Literal["paretopress-bundle"] = "paretopress-bundle"
    version: Literal[2] = 2
    runtime: str
    precision: Precision = "f32"
    files: dict[str, str]
    engine: EngineFacts | None = None


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and whose digests fit. The two model files stay on disk, at `onnx` and `packed`."""

    path: Path
    candidate: Candidate
    measurement: dict[str, Any]
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    runtime: str
    precision: Precision

    @property
    def onnx(self) -> Path:
        return self.path / "model.onnx"

    @property
    def packed(self) -> Path:
        return self.path / "weights.pack"


def write_bundle(
    path: Path,
    *,
    onnx: bytes,
    packed: bytes,
    candidate: Candidate,
    measurement: Mapping[str, Any],
    labels: Sequence[str],
    preprocessing: Preprocessing,
    runtime: str,
    precision: Precision = "f32",
    readme_facts: Mapping[str, object] | None = None,
    engine: EngineFacts | None = None,
    engine_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write the folder `path` atomically: it is the old one or the new one, complete, whatever interrupts.

    `readme_facts` (name -> value) are listed in the README, `engine_files` lie beside the model; `engine` says what they are for.
    An existing bundle or an empty folder is replaced.
    Errors: UserError when `path` holds anything else, or cannot be written.
    """
    assert set(engine.files if engine else ()) == set(engine_files or {}), (engine, list(engine_files or {}))
    path = path.resolve()
    check_replaceable(path)
    contents = {
        "model.onnx": onnx,
        "weights.pack": packed,
        "candidate.yaml": yaml.safe_dump(candidate.model_dump(mode="json"), sort_keys=False).encode(),
        "measurement.json": to_json(measurement),
        "labels.json": to_json(list(labels)),
        "preprocessing.json": to_json(preprocessing.model_dump(mode="json")),
        "README.md": readme(runtime, labels, preprocessing.image_size, readme_facts or {}, _engine_row(engine)).encode(),
        "MODEL_CARD.md": model_card(candidate, measurement, labels, runtime).encode(),
        "verify.py": Path(bundle_verify.__file__).read_bytes(),
        "requirements.txt": requirements(runtime).encode(),
    }
    contents |= engine_files or {}
    digests = {name: digest(content) for name, content in contents.items()}
    manifest = Manifest(runtime=runtime, precision=precision, files=digests, engine=engine)
    try:
        replace_folder(path, {**contents, MANIFEST: to_json(manifest.model_dump(mode="json", exclude_none=True))})
    except OSError as error:
        raise UserError(f"a bundle needs a folder that can be written, but {error}; free space or choose another folder") from error


def _engine_row(engine: EngineFacts | None) -> str:
    """For the README's table of files."""
    if engine is None:
        return ""
    names = ", ".join(f"`{name}`" for name in engine.files)
    where = f"{engine.runtime} {engine.version} on {engine.device}, {engine.batch} image(s) a call"
    return f"| {names} | what {where} loads at once; elsewhere use `model.onnx` |\n"


def requirements(runtime: str) -> str:
    """What verify.py and the README's snippet need, in the versions installed here: of ONNX Runtime also those of its build for GPUs."""
    names = dict.fromkeys((VERIFIED_WITH.get(runtime, "onnxruntime"), "onnxruntime", "numpy", "pillow"))
    versions = {name: installed_version(name, f"{name}-gpu") for name in names}
    return "".join(f"{name}=={version}\n" for name, version in versions.items() if version is not None)


def read_bundle(path: Path) -> Bundle:
    """The bundle in the folder `path`, every digest verified. Errors: UserError naming the file that is missing, changed or malformed."""
    manifest = read_manifest(path)
    contents = {name: read_file(path, name) for name in (*FILES, *(manifest.engine.files if manifest.engine else ()))}
    for name, content in contents.items():
        if manifest.files.get(name) != digest(content):
            raise UserError(f"a bundle's files must stay as written, but {name} in {path} has another SHA-256; export the bundle again")
    try:
        return Bundle(
            path=path,
            candidate=parse(Candidate, load_yaml(path / "candidate.yaml"), str(path / "candidate.yaml")),
            measurement=TypeAdapter(dict[str, Any]).validate_json(contents["measurement.json"]),
            labels=TypeAdapter(tuple[str, ...]).validate_json(contents["labels.json"]),
            preprocessing=Preprocessing.model_validate_json(contents["preprocessing.json"]),
            runtime=manifest.runtime,
            precision=manifest.precision,
        )
    except ValueError as error:
        raise UserError(f"{path} is no bundle that this version reads: {first_line(error)}; export it again") from error


def read_manifest(path: Path) -> Manifest:
    """bundle.json of `path`; UserError when the folder or the file is missing, foreign, or of another version."""
    if not path.is_dir():
        reason = "it is a file" if path.exists() else "there is no such folder"
        raise UserError(f"{path} is no bundle: {reason}; name a folder written by search.export_best")
    try:
        data = json.loads(read_file(path, MANIFEST))
    except ValueError as error:
        raise UserError(f"{path} is no bundle: {MANIFEST} is not JSON ({first_line(error)}); export it again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise UserError(f"{path} is no bundle: {MANIFEST} is not of the format {FORMAT!r}; name a folder written by search.export_best")
    if data.get("version") != VERSION:
        raise UserError(f"a bundle must have format version {VERSION}, but {path} has {data.get('version')!r}; export it again")
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        raise UserError(f"{path} is no bundle: {MANIFEST}: {first_line(error)}; export it again") from error


def check_writable(path: Path) -> None:
    """UserError unless the folder `path` could be made: the nearest one above it that exists must be a folder that may be written."""
    above = next(parent for parent in path.parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "is not" if above.is_dir() else "is a file"
        raise UserError(f"a bundle's folder must be writable, but {above} {reason}; choose another folder")


def check_replaceable(path: Path) -> None:
    """UserError unless `path` can be made, and is free, empty, or a folder with a bundle's files alone (and those of file managers)."""
    check_writable(path)
    if not path.exists():
        return
    if not path.is_dir():
        raise UserError(f"a bundle is a folder, but {path} is a file; choose another folder")
    names = {entry.name for entry in path.iterdir()} - OF_FILE_MANAGERS
    foreign = sorted(names - {*FILES, *ENGINE_FILES, MANIFEST})
    if foreign:
        raise UserError(f"only a bundle or an empty folder is replaced, but {path} holds {foreign[0]}; choose another folder")
    if names:
        read_manifest(path)


def replace_folder(path: Path, contents: Mapping[str, bytes]) -> None:
    """Write `contents` to a folder beside `path`, then rename it to `path`; what was there is removed last."""
    token = uuid.uuid4().hex[:8]
    new, old = (path.with_name(f".{path.name}.{token}.{kind}") for kind in ("new", "old"))
    try:
        new.mkdir(parents=True)
        for name, content in contents.items():
            write_atomically(new / name, content)
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def read_file(path: Path, name: str) -> bytes:
    """The bytes of one file of a bundle; UserError when it is missing or cannot be read."""
    try:
        return (path / name).read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is no bundle: {name} is missing; name a folder written by search.export_best") from error
    except OSError as error:
        raise UserError(f"{path} is no bundle that can be read: {error}") from error


def to_json(value: object) -> bytes:
    """UTF-8 JSON, one key a line."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def digest(content: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(content).hexdigest()


def first_line(error: Exception) -> str:
    """Key and reason of a pydantic error, or the first line of any other."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ".".join(str(part) for part in first["loc"]) + ": " + first["msg"]
    return str(error).split("\n")[0]
