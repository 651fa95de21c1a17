"""Bad input gets one line on stderr that starts with `error:`, exit code 2, no traceback; and nothing finished is lost."""

from __future__ import annotations

import resource
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

from search import storage
from tests.search.studies import DOT, ROOT, SPACE, begun, blobs, command, load, predict, refused, search, sets

Capture = pytest.CaptureFixture[str]

# Spaces


@pytest.mark.parametrize(
    ("text", "law"),
    [
        ("", "space.yaml is empty; it needs 'key: value' lines"),
        ("- a\n", "space.yaml must hold 'key: value' lines"),
        ("student: {name: resnet8\nprune: 3\n", "space.yaml, line 2, column 6: "),
        ("student: {name: resnet8}\nprunee: {}\n", "unknown key 'prunee' in space.yaml, did you mean 'prune'?"),
        ("student: {name: resnet8}\nprune: {ration: 0}\n", "unknown key 'ration' in space.yaml at prune, did you mean 'ratio'?"),
        ("student: {name: resnet8, width: wide}\n", "`width` must be a number, but got 'wide' (space.yaml, student.width)"),
        ("student: {name: []}\n", "`name` must have at least one choice, but the list is empty (space.yaml, student.name)"),
        ("student: {name: resnet8}\nprune: {ratio: {low: 0.6, high: 0.1}}\n", "`ratio` must have low <= high, but got low 0.6, high 0.1"),
        ("student: {name: resnet9}\n", "unknown student 'resnet9', did you mean 'resnet8'? known: airbench, hybrid_parallel, "),
        ("student: {name: resnet8}\ndistil: {loss: kl}\n", "unknown loss 'kl'"),
        ("student: {name: resnet8}\nquantise: {weight_bits: [4, 9]}\n", "must be one of 2, 3, 4, 5, 6, 7, 8, 16, but got 9"),
        ("student: {name: resnet8}\nconfig: cifar\n", "unknown config 'cifar', did you mean 'cifar10'?"),
        ("student: {name: resnet8}\nconfig: gone.yaml\n", "no such file: "),
    ],
)
def test_a_space_that_cannot_be_searched(text: str, law: str, empty: Path, capfd: Capture) -> None:
    Path("space.yaml").write_text(text)
    assert law in refused(search(capfd, "--space", "space.yaml"))
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("argv", "law"),
    [
        (["--trials", "0"], "--trials must be at least 1, but got 0"),
        (["--trials", "many"], "argument --trials: invalid int value: 'many'; see python -m search.run --help"),
        (
            ["--set", "runtime.name=openvin"],
            "unknown runtime 'openvin', did you mean 'openvino'?; known: onnxruntime, onnxruntime_cuda, openvino, tensorrt, tensorrt_rtx",
        ),
        (["--set", "data.name=mnist"], "unknown data set 'mnist'; known: cifar10, cifar100, cub200, digits, folder, imagenet, unlabelled"),
        (["--set", "teacher.name=resnet21"], "unknown student 'resnet21', did you mean 'resnet"),
        (["--set", "finetune.epoch=3"], "unknown key 'epoch' in "),
        (["--set", "finetune.epochs=two"], "`epochs` must be a number, but got 'two'"),
        (["--set", "finetune.epochs"], "--set takes dotted.key=value"),
        (["--set", "hardware.device=tpu9"], "hardware.device must be a device of this machine, but got 'tpu9'"),
        (["--set", "runtime.name=onnxruntime", "--set", "runtime.precision=bf16"], "onnxruntime executes float layers in f32 only"),
        (["--max-latency-ms", "0"], "`latency_ms` must be greater than 0, but got 0"),
        (["--max-latency-ms", "nan"], "`latency_ms` must be "),
        (["--study", "../up"], "a study's name has letters, digits, '.', '_' and '-' only, but got '../up'; choose another --study"),
        (["--weights", SPACE], "(the teacher is resnet20); name your own network with --model my_net.py:build, or another one "),
        (["--plugin", "missing.py"], "--plugin must be a Python file, but there is no missing.py"),
        (["--data-dir", "missing"], "--data-dir must be a folder of images, but missing is missing"),
        (["--storage", "study.db"], "--storage must be a database URL such as sqlite:///study.db or postgresql://"),
        (["--storage", "oracle9://host/db"], "--storage must name a database that SQLAlchemy knows"),
        (["--storage", "postgresql://me:hunter2@localhost:1/db"], "postgresql://me:***@localhost:1/db"),
        (["--storage", "postgresql://me:hun@host:ter2/db"], "write '@', ':' and '/' in a password as %40, %3A and %2F"),
    ],
)
def test_a_command_line_that_cannot_be_run(argv: list[str], law: str, empty: Path, capfd: Capture) -> None:
    message = refused(search(capfd, "--space", SPACE, "--quiet", *argv))
    assert law in message
    assert "hun" not in message.replace("invalid", "")


# Images


def images(folder: str = "images") -> Path:
    return blobs(Path(folder), 3)


def no_images(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.unlink()


def one_class(folder: Path) -> None:
    for name in ("red", "blue"):
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()


def other_classes(folder: Path) -> None:
    blobs(folder / "train", 3)
    blobs(folder / "test", 1)
    (folder / "test" / "red").rename(folder / "test" / "pink")
    for name in ("red", "green", "blue"):
        for path in (folder / name).iterdir():
            path.unlink()
        (folder / name).rmdir()


def corrupt(folder: Path) -> None:
    (folder / "red" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")


@pytest.mark.parametrize(
    ("spoil", "law"),
    [
        (no_images, "each class must have images, but images has none for 'blue', 'green', 'red'"),
        (one_class, "a classifier needs at least 2 classes, but images has only 'green'"),
        (other_classes, "they differ (only in train: 'red'; only in test: 'pink'); rename or remove folders"),
        (corrupt, "images/red/001.png"),
    ],
)
def test_images_that_cannot_be_trained_on(spoil, law: str, empty: Path, capfd: Capture) -> None:
    spoil(images())
    assert law in refused(search(capfd, "--space", SPACE, "--data-dir", "images", "--quiet"))


def test_an_empty_folder_says_what_to_put_where(empty: Path, capfd: Capture) -> None:
    Path("images").mkdir()
    assert "images has no class folders" in refused(search(capfd, "--space", SPACE, "--data-dir", "images", "--quiet"))


def test_a_download_that_is_impossible_says_which_file_to_put_where(empty: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    message = refused(search(capfd, "--space", str(ROOT / "spaces" / "cifar10.yaml"), "--quiet"))
    assert "cifar-10-binary.tar.gz" in message
    assert "--data-dir" in message


@pytest.mark.usefixtures("dot")
def test_corrupt_images_can_be_skipped(empty: Path, capfd: Capture) -> None:
    corrupt(blobs(Path("images"), 8))
    message = refused(search(capfd, *command("--data-dir", "images", settings=DOT)))
    assert message.endswith("repair or remove it, or leave such images out with --skip-bad")
    answer = search(capfd, *command("--data-dir", "images", "--skip-bad", "--dry-run", settings=DOT))
    assert answer.code == 0, answer
    assert "data       digits: " in answer.out


# Own networks

NET = """from torch import nn
def build(classes):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


@pytest.mark.parametrize(
    ("net", "spec", "law"),
    [
        ("raise ValueError('no GPU')\n", "net.py:build", "net.py:1 raised ValueError while "),
        ("def build(classes):\n    return classes / 0\n", "net.py:build", "net.py:2 raised ZeroDivisionError while "),
        ("def build(:\n", "net.py:build", "net.py:1 raised SyntaxError while "),
        ("def built():\n    ...\n", "net.py:build", "net.py has no function 'build', did you mean 'built'?"),
        ("def build():\n    return 3\n", "net.py:build", "must return a torch.nn.Module, but it returned int"),
        (NET, "gone.py:build", "there is no file gone.py"),
        (NET, "net.py", "'net.py' names a file but no function"),
        (NET, "net.py", "--model must name a Python file and a function in it"),
    ],
)
def test_a_network_that_cannot_be_built(net: str, spec: str, law: str, empty: Path, capfd: Capture) -> None:
    Path("net.py").write_text(net)
    images()
    assert law in refused(search(capfd, "--model", spec, "--data-dir", "images", "--quiet"))


@pytest.mark.parametrize(
    ("weights", "law"),
    [
        (None, "--weights must be a file, but there is no W.pt"),
        (b"", "W.pt is no weights file"),
        (b"\x80\x04\x95 not a pickle of tensors", "W.pt is no weights file"),
        ({"0.weight": torch.zeros(4, 3, 3, 3)}, "the weights in W.pt do not fit the model: 3 missing (0.bias, 3.weight, 3.bias)"),
        ([1, 2], "W.pt holds no state dict (names of tensors), but list"),
    ],
)
def test_weights_that_do_not_fit(weights, law: str, empty: Path, capfd: Capture) -> None:
    Path("net.py").write_text(NET)
    images()
    if isinstance(weights, bytes):
        Path("W.pt").write_bytes(weights)
    elif weights is not None:
        torch.save(weights, "W.pt")
    assert law in refused(search(capfd, "--model", "net.py:build", "--weights", "W.pt", "--data-dir", "images", "--quiet"))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("teacher.train.lr=1e30", "TrainingDiverged: "), ("runtime.timeout_s=0.001", "EngineBuildError: openvino did not finish in time")],
)
@pytest.mark.usefixtures("dot")
def test_a_teacher_that_does_not_train_or_run(setting: str, reason: str, empty: Path, capfd: Capture) -> None:
    message = refused(search(capfd, *command("--quiet", settings=[*DOT, "teacher.train.epochs=1", setting])))
    assert message.startswith(f"a search needs a teacher that trains and runs, but {reason}")


# Databases and disks


def test_a_locked_database_is_waited_for_and_then_named(again: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "LOCK_WAIT_S", 0.2)
    with closing(sqlite3.connect("runs/tiny/study.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        message = refused(search(capfd, *command("--trials", "3")))
    assert "sqlite:///runs/tiny/study.db is not (database is locked); nothing that is finished is lost" in message
    assert begun(load()) == ["COMPLETE", "COMPLETE"]


def test_a_database_that_is_none(empty: Path, capfd: Capture) -> None:
    Path("runs/tiny").mkdir(parents=True)
    Path("runs/tiny/study.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    assert "file is not a database" in refused(search(capfd, *command("--trials", "3")))


def test_a_study_of_another_program_is_left_alone(again: Path, capfd: Capture) -> None:
    import optuna

    optuna.create_study(study_name="foreign", storage="sqlite:///runs/tiny/study.db").optimize(lambda trial: 1.0, n_trials=1)
    argv = command("--trials", "3", "--storage", "sqlite:///runs/tiny/study.db", study="foreign")
    assert refused(search(capfd, *argv)) == "the study 'foreign' was not made by this program; choose another --study"


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes: as a full disk, but for everybody's tests to run."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_file_that_cannot_be_written_is_named_and_the_study_stays(again: Path, capfd: Capture) -> None:
    with files_up_to(1_000_000):  # front.html has more
        message = refused(search(capfd, *command("--trials", "2", "--quiet")))
    assert "File too large" in message
    assert "front.html" in message
    assert begun(load()) == ["COMPLETE", "COMPLETE"]
    assert Path("runs/tiny/front.html").stat().st_size > 1_000_000


def test_a_database_that_cannot_grow_is_named(empty: Path, capfd: Capture) -> None:
    with files_up_to(20_000):
        message = refused(search(capfd, *command("--trials", "2", "--quiet")))
    assert "the study's database must be reachable and writable, but sqlite:///runs/tiny/study.db is not" in message


def test_too_little_disk_is_said_before_anything_else(empty: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.preflight.NEEDED_MB", 10**9)
    assert "a run needs 1000000000 MB of free disk, but " in refused(search(capfd, *command("--trials", "2", "--quiet")))


def test_a_file_in_the_place_of_the_runs_folder(empty: Path, capfd: Capture) -> None:
    Path("runs").write_text("")
    assert "/runs/tiny'" in refused(search(capfd, *command("--trials", "2", "--quiet")))


# Bundles


def test_a_folder_that_is_no_bundle(empty: Path, capfd: Capture) -> None:
    Image.new("L", (8, 8)).save("image.png")
    Path("folder").mkdir()
    assert "folder is no bundle" in refused(predict(capfd, "--bundle", "folder", "image.png"))
    assert "gone is no bundle" in refused(predict(capfd, "--bundle", "gone", "image.png"))


def test_the_shipped_spaces_resolve(tmp_path: Path) -> None:
    from search.setup import build_parser, resolve_arguments

    for path in sorted((ROOT / "spaces").glob("*.yaml")):
        resolve_arguments(build_parser().parse_args(["--space", str(path), "--data-dir", str(tmp_path), *sets(["seed=1"])]))
