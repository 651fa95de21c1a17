import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from core.bundle import FILES, MANIFEST, Preprocessing, digest, read_bundle
from core.errors import UserError
from tests.core.bundle_samples import CANDIDATE, LABELS, PLAIN, colour_model, make_bundle, save_image

ROOT = Path(__file__).parents[2]


def rewrite(bundle: Path, name: str, content: bytes) -> None:
    """Change a file and its digest, as a foreign writer of bundles would."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][name] = digest(content)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def test_a_bundle_reads_back_as_it_was_written(tmp_path: Path) -> None:
    bundle = read_bundle(make_bundle(tmp_path / "out", precision="bf16", labels=["rot", "grün", "blau"]))
    assert bundle.candidate == CANDIDATE
    assert bundle.preprocessing == PLAIN
    assert bundle.labels == ("rot", "grün", "blau")
    assert bundle.measurement["latency"]["p50_ms"] == 0.19
    assert (bundle.runtime, bundle.precision) == ("onnxruntime", "bf16")
    assert bundle.onnx.read_bytes() == colour_model()
    assert bundle.packed.read_bytes() == b"packed weights"


def test_equal_bundles_have_equal_bytes(tmp_path: Path) -> None:
    first, second = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b")
    for name in (*FILES, MANIFEST):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_a_bundle_may_be_moved(tmp_path: Path) -> None:
    make_bundle(tmp_path / "a").rename(tmp_path / "b")
    assert read_bundle(tmp_path / "b").labels == LABELS


def test_normalisation_is_per_channel_on_the_unit_scale() -> None:
    preprocessing = Preprocessing(image_size=1, channels=3, mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 2.0))
    images = np.array([0, 255, 255], np.uint8).reshape(1, 3, 1, 1)
    x = preprocessing.normalise(images)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x.ravel(), [0.0, 1.0, 0.0])


@pytest.mark.parametrize("changes", [{"mean": (0.0,)}, {"std": (1.0, 1.0)}, {"std": (1.0, 0.0, 1.0)}, {"channels": 2}, {"sizes": 3}])
def test_preprocessing_that_does_not_fit_its_channels_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Preprocessing.model_validate(PLAIN.model_dump() | changes)


# Writing


def test_an_older_bundle_is_replaced_and_leaves_nothing_behind(tmp_path: Path) -> None:
    make_bundle(tmp_path / "out")
    make_bundle(tmp_path / "out", runtime="openvino")
    assert read_bundle(tmp_path / "out").runtime == "openvino"
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_is_filled_and_missing_parents_are_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert read_bundle(make_bundle(tmp_path / "empty")).labels == LABELS
    assert read_bundle(make_bundle(tmp_path / "a" / "b")).labels == LABELS


def test_a_link_to_a_bundle_stays_a_link(tmp_path: Path) -> None:
    make_bundle(tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    make_bundle(tmp_path / "link", runtime="openvino")
    assert (tmp_path / "link").is_symlink()
    assert read_bundle(tmp_path / "real").runtime == "openvino"


def test_a_folder_of_the_user_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"only a bundle or an empty folder is replaced.*thesis\.txt"):
        make_bundle(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_notes_that_the_user_put_into_a_bundle_are_not_lost(tmp_path: Path) -> None:
    (make_bundle(tmp_path / "out") / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt"):
        make_bundle(tmp_path / "out")
    assert read_bundle(tmp_path / "out").labels == LABELS


def test_what_a_file_manager_left_in_a_bundle_is_nobodys(tmp_path: Path) -> None:
    (make_bundle(tmp_path / "out") / ".DS_Store").touch()
    assert read_bundle(make_bundle(tmp_path / "out", runtime="openvino")).runtime == "openvino"
    (tmp_path / "out" / ".gitignore").touch()
    with pytest.raises(UserError, match=r"\.gitignore"):
        make_bundle(tmp_path / "out")


def test_files_with_a_bundles_names_but_no_manifest_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my project")
    with pytest.raises(UserError, match=r"bundle\.json is missing"):
        make_bundle(tmp_path)
    assert (tmp_path / "README.md").read_text() == "my project"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        make_bundle(tmp_path / "out")


def test_a_full_disk_leaves_the_old_bundle_and_no_litter(tmp_path: Path) -> None:
    make_bundle(tmp_path / "out")
    # A limit on the size of files stands in for a full disk: the write itself fails, in the middle.
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from core.errors import UserError; from tests.core.bundle_samples import make_bundle\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try: make_bundle(Path(sys.argv[1]), packed=bytes(9000))\n"
        "except UserError as error: print(error)"
    )
    command = [sys.executable, "-B", "-c", code, tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "free space or" in done.stdout
    assert read_bundle(tmp_path / "out").packed.read_bytes() == b"packed weights"
    assert os.listdir(tmp_path) == ["out"]


# Reading


def test_a_missing_folder_and_a_file_are_no_bundles(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no bundle: there is no such folder"):
        read_bundle(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is no bundle: it is a file"):
        read_bundle(tmp_path / "file")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "out")
    (bundle / name).unlink()
    with pytest.raises(UserError, match=rf"is no bundle: {re.escape(name)} is missing"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_named(tmp_path: Path, name: str) -> None:
    bundle = make_bundle(tmp_path / "out")
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(name)} .* has another SHA-256; export the bundle again"):
        read_bundle(bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "other"}', "\xff"])
def test_a_foreign_manifest_is_no_bundle(tmp_path: Path, text: str) -> None:
    bundle = make_bundle(tmp_path / "out")
    (bundle / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"is no bundle: bundle\.json"):
        read_bundle(bundle)


def test_another_format_version_is_said_so(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "out")
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / MANIFEST).write_text(json.dumps(manifest | {"version": 1}))
    with pytest.raises(UserError, match=r"format version 2, but .* has 1"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("labels.json", b"{}"),
        ("labels.json", b"[1]"),
        ("measurement.json", b"[]"),
        ("preprocessing.json", b"{}"),
        ("candidate.yaml", b"student: [resnet8]"),
        ("candidate.yaml", b"&a [*a]"),
        ("candidate.yaml", b"!!python/object:os.system {}"),
        ("candidate.yaml", b""),
    ],
)
def test_a_bundle_is_data_and_its_data_are_checked(tmp_path: Path, name: str, content: bytes) -> None:
    bundle = make_bundle(tmp_path / "out")
    rewrite(bundle, name, content)
    with pytest.raises(UserError) as caught:
        read_bundle(bundle)
    assert str(bundle) in str(caught.value)
    assert "\n" not in str(caught.value)


# The README inside


def test_the_readme_states_the_facts_and_the_classes(tmp_path: Path) -> None:
    text = (make_bundle(tmp_path / "out", labels=[f"c{i}" for i in range(12)]) / "README.md").read_text()
    assert "- Test accuracy: 97.0 % of 360 images" in text
    assert "Classes (12): `c0`, `c1`" in text
    assert "`c9`, ... (all in `labels.json`)" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("size", [(4, 4), (9, 6)])
def test_the_readmes_onnxruntime_lines_run_alone(tmp_path: Path, size: tuple[int, int]) -> None:
    bundle = make_bundle(tmp_path / "out")
    (snippet,) = re.findall(r"```python\n(.*?)```", (bundle / "README.md").read_text(), flags=re.DOTALL)
    assert len(snippet.strip().split("\n")) <= 10
    image = save_image(tmp_path / "photo.png", "green", size)
    clear = tmp_path / "clear.png"
    Image.new("RGBA", size, (0, 255, 0, 0)).save(clear)
    for path, answer in ((image, "green"), (clear, "red")):  # on white, all three are equally likely
        command = [sys.executable, "-W", "error", "-c", snippet, bundle, path]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == (f"{answer}\n", "")
    make_bundle(bundle)  # the lines leave nothing in it
