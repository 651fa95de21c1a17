import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from core.bundle import Preprocessing, read_bundle
from core.cli import run_main
from core.predict import BATCH, load_engine, main
from core.runtimes import RUNTIMES, why_not_here
from tests.core.bundle_samples import COLOURS, LABELS, make_bundle, save_image

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "core.predict"]
RUNNING = [name for name, entry in RUNTIMES.items() if why_not_here(entry()) is None]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def predict(bundle: Path, *arguments: object) -> int:
    return run_main(main, ["--bundle", str(bundle), *map(str, arguments)])


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines()))


# What is answered


@pytest.mark.parametrize("runtime", RUNNING)
def test_each_image_gets_a_line_with_its_classes_best_first(tmp_path: Path, capfd: pytest.CaptureFixture[str], runtime: str) -> None:
    images = [save_image(tmp_path / f"{colour}.png", colour) for colour in COLOURS]
    assert predict(make_bundle(tmp_path / "bundle", runtime=runtime), *images) == 0
    out, err = capfd.readouterr()
    # The network's logits are 8 for the image's colour and 0 for the two others: e^8 / (e^8 + 2) = 0.9993.
    assert out.splitlines()[0] == f"{images[0]}  red 0.9993  green 0.0003  blue 0.0003"
    assert [line.split("  ")[1] for line in out.splitlines()] == ["red 0.9993", "green 0.9993", "blue 0.9993"]
    assert err == ""


def test_top_k_is_the_number_of_classes_shown(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = save_image(tmp_path / "a.png", "blue")
    assert predict(bundle, "--top-k", 1, image) == 0
    assert capsys.readouterr().out == f"{image}  blue 0.9993\n"


def test_the_bundles_own_normalisation_is_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inverted = Preprocessing(image_size=4, channels=3, mean=(1.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert predict(make_bundle(tmp_path / "b", preprocessing=inverted), "--top-k", 1, save_image(tmp_path / "a.png", "green")) == 0
    assert " green 0.9997" in capsys.readouterr().out  # red has logit -8 here, not 0


def test_images_of_any_size_and_mode_are_answered(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = save_image(tmp_path / "large.jpg", "green", (60, 31))
    palette = tmp_path / "palette.gif"
    Image.new("RGBA", (5, 5), (0, 0, 255, 255)).convert("P").save(palette)
    assert predict(bundle, "--top-k", 1, large, palette) == 0
    assert [line.split("  ")[1].split()[0] for line in capsys.readouterr().out.splitlines()] == ["green", "blue"]


@pytest.mark.parametrize("runtime", RUNNING)
def test_a_folder_goes_in_sorted_and_csv_comes_out(tmp_path: Path, runtime: str) -> None:
    for index in range(BATCH + 3):  # one full batch and a part of one
        save_image(tmp_path / "in" / f"{index % 2}" / f"{index:03}.png", LABELS[index % 3])
    (tmp_path / "in" / "notes.txt").write_text("no image")
    save_image(tmp_path / "in" / ".thumbnails" / "x.png", "red")
    assert predict(make_bundle(tmp_path / "bundle", runtime=runtime), "--csv", tmp_path / "out.csv", tmp_path / "in") == 0
    header, *answers = rows((tmp_path / "out.csv").read_text())
    assert header == ["path", "label", "probability"]
    assert [path for path, _, _ in answers] == sorted(str(path) for path in (tmp_path / "in").glob("[01]/*.png"))
    for path, label, probability in answers:
        assert label == LABELS[int(Path(path).stem) % 3]
        assert float(probability) == pytest.approx(0.99933, abs=1e-5)


def test_csv_has_a_row_per_asked_class_and_probabilities_that_sum_to_one(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save_image(tmp_path / 'a, "b".png', "green")
    assert predict(bundle, "--csv", "-", "--top-k", 3, image) == 0
    _, *answers = rows(capsys.readouterr().out)
    assert [row[:2] for row in answers] == [[str(image), label] for label in ("green", "red", "blue")]
    assert sum(float(row[2]) for row in answers) == pytest.approx(1.0, abs=1e-5)


def test_paths_on_standard_input_are_answered_one_by_one(tmp_path: Path, bundle: Path) -> None:
    images = [save_image(tmp_path / f"{colour}.png", colour) for colour in COLOURS]
    command = [*COMMAND, "--bundle", bundle, "--top-k", "1", "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for image, colour in zip(images, COLOURS, strict=True):
            process.stdin.write(f"{image}\n\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{image}  {colour} 0.9993\n"  # though standard input is still open
        process.stdin.close()
        assert process.wait() == 0


def test_paths_need_not_be_utf8(tmp_path: Path, bundle: Path) -> None:
    image = os.fsencode(tmp_path) + b"/caf\xe9.png"
    os.rename(save_image(tmp_path / "a.png", "red"), image)
    for arguments, stdin in ([image], b""), ([b"-"], image):
        done = subprocess.run(
            [*COMMAND, "--bundle", bundle, "--top-k", "1", *arguments], input=stdin, cwd=ROOT, capture_output=True, check=False
        )
        assert (done.stdout, done.stderr) == (image + b"  red 0.9993\n", b"")


# What cannot be answered


def test_a_corrupt_image_is_named_and_all_others_are_answered(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [save_image(tmp_path / "a.png", "red"), save_image(tmp_path / "c.png", "blue")]
    bad = tmp_path / "b.png"
    bad.write_bytes(good[0].read_bytes()[:40])
    assert predict(bundle, "--top-k", 1, good[0], bad, good[1]) == 2
    out, err = capsys.readouterr()
    assert [line.split("  ")[1] for line in out.splitlines()] == ["red 0.9993", "blue 0.9993"]
    assert str(bad) in err
    assert len(err.splitlines()) == 1


def test_a_batch_of_corrupt_images_alone_is_no_answer(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.png").touch()
    assert predict(bundle, "--csv", tmp_path / "out.csv", tmp_path / "b.png") == 2
    assert (tmp_path / "out.csv").read_text() == "path,label,probability\n"
    assert capsys.readouterr().out == f"{tmp_path}/out.csv: 0 images answered, 1 not readable\n"


def test_a_wrong_path_on_standard_input_ends_nothing(tmp_path: Path, bundle: Path) -> None:
    image = save_image(tmp_path / "a.png", "green")
    paths = f"{tmp_path}/nowhere.png\n{tmp_path}\n{image}\n"
    done = subprocess.run([*COMMAND, "--bundle", bundle, "-"], input=paths, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.returncode == 2
    assert done.stdout.startswith(f"{image}  green")
    assert len(done.stderr.splitlines()) == 2
    assert "nowhere.png" in done.stderr


def test_bad_arguments_are_one_line_and_exit_code_2(tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = save_image(tmp_path / "a.png", "red")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[tuple[object, ...], str]] = [
        ((), "needs images, but none is named"),
        (("-", image), "stands alone"),
        ((tmp_path / "none.png",), "there is no file or folder"),
        ((tmp_path / "empty",), "a folder must hold images"),
        (("--top-k", 0, image), "from 1 to the bundle's 3 classes, but got 0"),
        (("--top-k", 4, image), "but got 4"),
        (("--csv", tmp_path / "no" / "out.csv", image), "--csv needs an existing folder"),
        (("--csv", tmp_path / "empty", image), "--csv names a file"),
    ]
    for arguments, message in cases:
        assert predict(bundle, *arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1


def test_a_folder_that_is_no_bundle_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(tmp_path, save_image(tmp_path / "a.png", "red")) == 2
    assert "is no bundle: bundle.json is missing" in capsys.readouterr().err


def test_an_unknown_runtime_lists_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(make_bundle(tmp_path / "b", runtime="openvin"), save_image(tmp_path / "a.png", "red")) == 2
    assert "did you mean 'openvino'?; known: onnxruntime, onnxruntime_cuda, openvino, tensorrt" in capsys.readouterr().err


def test_labels_or_preprocessing_that_do_not_fit_the_model_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = save_image(tmp_path / "a.png", "red")
    grey = Preprocessing(image_size=4, channels=1, mean=(0.0,), std=(1.0,))
    for changes, message in ({"labels": ["a", "b"]}, "2 finite logits"), ({"preprocessing": grey}, "not (1, 1, 4, 4)"):
        assert predict(make_bundle(tmp_path / "b", **changes), image) == 2
        assert message in capsys.readouterr().err


def test_an_interrupted_csv_leaves_the_old_one(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "out.csv").write_text("old")
    # labels that do not fit are found with the first batch, after the file was opened
    make_bundle(bundle, labels=["a", "b"])
    assert predict(bundle, "--csv", tmp_path / "out.csv", save_image(tmp_path / "in" / "a.png", "red")) == 2
    assert (tmp_path / "out.csv").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["bundle", "in", "out.csv"]


def test_csv_can_go_to_a_device(tmp_path: Path, bundle: Path) -> None:
    command = [*COMMAND, "--bundle", bundle, "--csv", "/dev/stdout", save_image(tmp_path / "a.png", "red")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False, text=True)
    assert done.stdout.startswith("path,label,probability\n")
    assert done.stderr == ""


def test_a_reader_that_stops_reading_is_no_error(tmp_path: Path, bundle: Path) -> None:
    image = save_image(tmp_path / "a.png", "red")
    command = [*COMMAND, "--bundle", bundle, "-"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        _, err = process.communicate(os.fsencode(image))
    assert (process.returncode, err) == (141, b"")


# What is imported


def test_help_imports_neither_numpy_nor_a_runtime_and_a_prediction_no_torch(tmp_path: Path, bundle: Path) -> None:
    code = (
        "import sys; from core.predict import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print({'numpy', 'pydantic', 'torch', 'onnxruntime', 'openvino'} & {*sys.modules})\n"
        "main(sys.argv[1:]); print({'torch', 'openvino', 'sklearn', 'pandas'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code, "--bundle", bundle, save_image(tmp_path / "a.png", "red")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("set()") == 2
    assert "--top-k" in done.stdout


def test_a_bundle_of_a_precision_that_this_processor_lacks_is_computed_in_f32(tmp_path: Path) -> None:
    # ONNX Runtime has no bfloat16 on any CPU
    engine = load_engine(read_bundle(make_bundle(tmp_path / "out", precision="bf16")), 1)
    assert engine.artifact()["precision"] == "f32"
