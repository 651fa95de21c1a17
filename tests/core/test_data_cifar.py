"""CIFAR-10 from archives in the real binary layout, and no network."""

import hashlib
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.config import DataConfig
from core.data import cifar
from core.data.cifar import CLASSES, TEST_FILE, TRAIN_FILES, URL, load_cifar10, parse_records
from core.data.types import RawData
from core.errors import UserError


def batch(seed: int, number: int = 20) -> bytes:
    records = np.random.RandomState(seed).randint(0, 256, (number, 3073), dtype=np.uint8)
    records[:, 0] = np.arange(number) % 10
    return records.tobytes()


BATCHES = {name: batch(seed) for seed, name in enumerate((*TRAIN_FILES, TEST_FILE))}


def write_archive(root: Path, batches: dict[str, bytes] = BATCHES) -> Path:
    path = root / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {"batches.meta.txt": b"airplane\n", "readme.html": b"", **batches}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
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


def load(root: Path | None, **options: object) -> RawData:
    return load_cifar10(DataConfig.model_validate({"name": "cifar10", "dir": root, **options}), Path("unused"))


def test_records_are_a_label_and_three_planes() -> None:
    images, labels = parse_records(BATCHES["data_batch_1.bin"], "data_batch_1.bin")
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
    assert packed.test.images.numpy().tobytes() == parse_records(BATCHES[TEST_FILE], "")[0].tobytes()
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
    assert load_cifar10(config, tmp_path / "cache").classes == ("cat", "dog")


@pytest.mark.usefixtures("no_network")
def test_without_archive_and_network_it_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load(None)
    message = str(caught.value)
    for part in (URL, "c32a1d4ab5d03f1284b67883e8d87530", "data/cifar-10-binary.tar.gz", "--data-dir at an image folder"):
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
        parse_records(content, "batch")


def test_a_label_beyond_nine_is_refused() -> None:
    with pytest.raises(UserError, match=r"labels must be 0\.\.9, but batch has 10"):
        parse_records(b"\x0a" + batch(0)[1:], "batch")


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An archive in the folder of a local web server, and its address and MD5 in place of the official ones."""
    folder = tmp_path / "served"
    folder.mkdir()
    path = write_archive(folder)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    monkeypatch.setattr(cifar, "URL", f"http://127.0.0.1:{server.server_port}/{path.name}")
    monkeypatch.setattr(cifar, "MD5", hashlib.md5(path.read_bytes()).hexdigest())
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield path
    server.shutdown()
    thread.join()
    server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_missing_archive_is_downloaded_once(served: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    assert len(load(root).train) == 100
    assert [path.name for path in root.iterdir()] == [served.name]
    served.unlink()
    assert len(load(root).train) == 100


def test_a_download_with_another_md5_is_refused_and_not_kept(served: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    served.write_bytes(served.read_bytes() + b"\0")
    with pytest.raises(UserError, match=r"download failed \(File not found or corrupted"):
        load(root)
    assert list(root.iterdir()) == []
