"""CIFAR-10 and CIFAR-100 from archives in the real binary layout, and no network."""

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.config import DataConfig
from core.data.cifar import CIFAR10, CIFAR100, Archive, load_cifar, parse_records
from core.data.types import RawData
from core.errors import UserError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FINE = tuple(f"fine_{number}" for number in range(100))
TEST_FILE = CIFAR10.test


def batch(seed: int, number: int = 20, archive: Archive = CIFAR10) -> bytes:
    records = np.random.RandomState(seed).randint(0, 256, (number, archive.record), dtype=np.uint8)
    records[:, archive.label_bytes - 1] = np.arange(number) % archive.classes
    return records.tobytes()


BATCHES = {name: batch(seed) for seed, name in enumerate((*CIFAR10.train, CIFAR10.test))} | {
    CIFAR10.names: "\n".join((*CLASSES, "", "")).encode()  # ends with an empty line, as published
}
BATCHES100 = {
    "train.bin": batch(0, 300, CIFAR100),
    "test.bin": batch(1, 100, CIFAR100),
    "fine_label_names.txt": "\n".join((*FINE, "")).encode(),
    "coarse_label_names.txt": b"aquatic_mammals\n",
}


def write_archive(root: Path, batches: dict[str, bytes] = BATCHES, archive: Archive = CIFAR10) -> Path:
    path = root / archive.name
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"readme.html": b"", **batches}.items():
            member = tarfile.TarInfo(f"{archive.folder}/{name}")
            member.size = len(content)
            tar.addfile(member, BytesIO(content))
    return path


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses every connection at once."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def load(root: Path | None, archive: Archive = CIFAR10, **options: object) -> RawData:
    return load_cifar(archive, DataConfig.model_validate({"name": "cifar10", "dir": root, **options}), Path("unused"))


def test_records_are_a_label_and_three_planes() -> None:
    images, labels = parse_records(CIFAR10, BATCHES["data_batch_1.bin"], "data_batch_1.bin")
    assert images.shape == (20, 3, 32, 32)
    assert labels.tolist() == [i % 10 for i in range(20)]
    assert images[1].tobytes() == BATCHES["data_batch_1.bin"][3074:6146]


def test_the_archive_and_its_unpacked_files_are_the_same_data(tmp_path: Path) -> None:
    packed = load_from(tmp_path / "packed", write_archive)
    unpacked = load_from(tmp_path / "unpacked", lambda root: unpack(root / "cifar-10-batches-bin"))
    flat = load_from(tmp_path / "flat", unpack)
    assert packed.classes == CLASSES
    assert packed.train.images.shape == (100, 3, 32, 32)
    assert packed.test is not None
    assert packed.test.images.numpy().tobytes() == parse_records(CIFAR10, BATCHES[TEST_FILE], "")[0].tobytes()
    for other in (unpacked, flat):
        assert (other.train.images == packed.train.images).all()
        assert (other.train.labels == packed.train.labels).all()


def load_from(root: Path, write: object) -> RawData:
    root.mkdir()
    write(root)  # type: ignore[operator]
    return load(root)


def unpack(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in BATCHES.items():
        (folder / name).write_bytes(content)


def test_the_default_root_is_the_folder_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    write_archive(tmp_path / "data")
    assert len(load(None).train) == 100


def test_size_and_channels_can_be_changed(tmp_path: Path) -> None:
    write_archive(tmp_path)
    raw = load(tmp_path, image_size=16, channels=1)
    assert raw.train.images.shape == (100, 1, 16, 16)
    assert raw.test is not None
    assert raw.test.images.shape == (20, 1, 16, 16)


def test_an_image_folder_is_read_in_its_place(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(3):
            Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / "set" / name / f"{index}.jpg")
    config = DataConfig(name="cifar10", dir=tmp_path / "set")
    assert load_cifar(CIFAR10, config, tmp_path / "cache").classes == ("cat", "dog")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("archive", [CIFAR10, CIFAR100])
def test_without_archive_and_network_it_says_which_file_to_put_where(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load(None, archive)
    message = str(caught.value)
    for part in (archive.url, archive.md5, f"data/{archive.name}", "--data-dir at an image folder"):
        assert part in message
    assert "\n" not in message
    assert list((tmp_path / "data").iterdir()) == []


def test_a_missing_folder_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--data-dir must be a folder, but .*gone is none"):
        load(tmp_path / "gone")


@pytest.mark.parametrize("keep", [0, 5, 0.5, -8])
def test_a_truncated_archive_is_refused(keep: float, tmp_path: Path) -> None:
    path = write_archive(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz must .*; delete it"):
        load(tmp_path)


def test_an_archive_with_altered_bytes_is_refused(tmp_path: Path) -> None:
    path = write_archive(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)
    with pytest.raises(UserError, match="delete it"):
        load(tmp_path)


def test_an_archive_that_lacks_a_batch_names_it(tmp_path: Path) -> None:
    write_archive(tmp_path, {name: content for name, content in BATCHES.items() if name != "data_batch_3.bin"})
    with pytest.raises(UserError, match=r"lacks data_batch_3\.bin"):
        load(tmp_path)


@pytest.mark.parametrize("content", [b"", batch(0)[:-1]])
def test_a_batch_of_another_length_is_refused(content: bytes) -> None:
    with pytest.raises(UserError, match=r"records of 3073 bytes, but batch has"):
        parse_records(CIFAR10, content, "batch")


def test_a_label_beyond_nine_is_refused() -> None:
    with pytest.raises(UserError, match=r"labels must be 0\.\.9, but batch has 10"):
        parse_records(CIFAR10, b"\x0a" + batch(0)[1:], "batch")


def test_the_fine_label_of_cifar_100_counts_and_its_names_come_from_the_archive(tmp_path: Path) -> None:
    write_archive(tmp_path, BATCHES100, CIFAR100)
    raw = load(tmp_path, CIFAR100)
    assert raw.classes == FINE
    assert raw.train.labels.tolist() == [i % 100 for i in range(300)]
    assert raw.train.take(torch.tensor([1])).numpy().tobytes() == BATCHES100["train.bin"][3074 + 2 : 2 * 3074]
    assert raw.test is not None
    assert len(raw.test) == 100


def test_names_of_another_number_of_classes_are_refused(tmp_path: Path) -> None:
    write_archive(tmp_path, BATCHES100 | {"fine_label_names.txt": b"apple\nbee\n"}, CIFAR100)
    with pytest.raises(UserError, match=r"CIFAR-100 has 100 classes, but fine_label_names\.txt names 2; fetch cifar-100"):
        load(tmp_path, CIFAR100)


def test_a_superclass_is_no_label_and_a_fine_label_beyond_99_is_refused() -> None:
    record = bytearray(batch(0, 1, CIFAR100))
    record[0] = 200
    parse_records(CIFAR100, bytes(record), "batch")
    record[1] = 100
    with pytest.raises(UserError, match=r"CIFAR-100 labels must be 0\.\.99, but batch has 100"):
        parse_records(CIFAR100, bytes(record), "batch")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Archive]]:
    """An archive in the folder of a local web server, and what the loader knows of it."""
    folder = tmp_path / "served"
    folder.mkdir()
    path = write_archive(folder)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield path, replace(CIFAR10, site=f"http://127.0.0.1:{server.server_port}", md5=hashlib.md5(path.read_bytes()).hexdigest())
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_missing_archive_is_downloaded_once(served: tuple[Path, Archive], tmp_path: Path) -> None:
    path, archive = served
    root = tmp_path / "root"
    root.mkdir()
    assert len(load(root, archive).train) == 100
    assert [entry.name for entry in root.iterdir()] == [path.name]
    path.unlink()
    assert len(load(root, archive).train) == 100


def test_a_download_with_another_md5_is_refused_and_not_kept(served: tuple[Path, Archive], tmp_path: Path) -> None:
    path, archive = served
    root = tmp_path / "root"
    root.mkdir()
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"download failed \(File not found or corrupted"):
        load(root, archive)
    assert list(root.iterdir()) == []
