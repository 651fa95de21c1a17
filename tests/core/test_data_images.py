"""Decoding: any mode and orientation comes out as the same upright uint8 square, and damage never as anything but a UserError."""

import subprocess
import sys
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from core.data.images import adapt, decode_image, image_header
from core.errors import UserError

GRADIENT = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_a_picture_of_the_asked_size_comes_back_bit_exactly(tmp_path: Path) -> None:
    colours = np.random.RandomState(0).randint(0, 256, (8, 8, 3), dtype=np.uint8)
    decoded = decode_image(saved(Image.fromarray(colours), tmp_path / "a.png"), 8, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    assert (decoded == colours.transpose(2, 0, 1)).all()


def test_grey_comes_back_as_one_channel_or_three_equal_ones(tmp_path: Path) -> None:
    path = saved(Image.fromarray(GRADIENT), tmp_path / "grey.png")
    assert (decode_image(path, 8, 1) == GRADIENT[None]).all()
    assert (decode_image(path, 8, 3) == np.stack([GRADIENT] * 3)).all()


def test_a_bilevel_picture_is_black_and_white(tmp_path: Path) -> None:
    path = saved(Image.fromarray(GRADIENT > 100), tmp_path / "a.png")
    assert (decode_image(path, 8, 1)[0] == (GRADIENT > 100) * 255).all()


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    path = saved(Image.fromarray(GRADIENT.astype(np.uint16) * 257), tmp_path / "deep.png")
    assert image_header(path)[1] == "I;16"
    assert (decode_image(path, 8, 1)[0] == GRADIENT).all()


def test_brightness_in_fractions_is_refused_as_nobody_knows_what_white_is(tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), tmp_path / "a.tiff")
    with pytest.raises(UserError, match=r"a.tiff is not: its brightness is in fractions without a range; save it with 8 or 16 bits"):
        decode_image(path, 8, 1)


def test_transparency_is_laid_over_white_in_every_mode_that_has_it(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (10, 20, 30, 0))
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    paths = [
        saved(clear, tmp_path / "rgba.png"),
        saved(Image.new("LA", (8, 8), (10, 0)), tmp_path / "la.png"),
        saved(palette, tmp_path / "p.png", transparency=1),
        saved(palette, tmp_path / "p.gif", transparency=1),
        saved(palette, tmp_path / "bytes.png", transparency=b"\xff\x00"),
        saved(Image.new("RGB", (8, 8), (1, 2, 3)), tmp_path / "key.png", transparency=(1, 2, 3)),
        saved(Image.new("L", (8, 8), 5), tmp_path / "greykey.png", transparency=5),
    ]
    for path in paths:
        assert (decode_image(path, 8, 3) == 255).all(), path
        assert (decode_image(path, 4, 1) == 255).all(), path


def test_half_transparent_colour_is_half_way_to_white(tmp_path: Path) -> None:
    path = saved(Image.new("RGBA", (8, 8), (0, 0, 0, 128)), tmp_path / "a.png")
    assert (decode_image(path, 8, 3) == 127).all()


def test_a_palette_becomes_its_colours(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert decode_image(saved(palette, tmp_path / "a.png"), 8, 3)[:, 0, 0].tolist() == [10, 20, 30]


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    decoded = decode_image(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), tmp_path / "a.tif"), 8, 3)
    assert decoded[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(8, 8), (8, 13)])
def test_every_exif_orientation_shows_the_picture_upright(orientation: int, shape: tuple[int, int], tmp_path: Path) -> None:
    upright = np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / "turned.png", exif=exif)
    plain = saved(Image.fromarray(upright), tmp_path / "plain.png")
    assert np.abs(decode_image(turned, 8, 1).astype(int) - decode_image(plain, 8, 1)).max() <= 1


@pytest.mark.parametrize("shape", [(20, 60), (60, 20), (10, 18), (3, 9), (15, 15)])
def test_the_shorter_side_is_scaled_and_the_centre_kept(shape: tuple[int, int], tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8))
    decoded = decode_image(saved(picture, tmp_path / "a.png"), 5, 1)[0]
    width, height = (round(5 * side / min(picture.size)) for side in picture.size)
    left, top = (width - 5) // 2, (height - 5) // 2
    expected = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 5, top + 5)))
    assert np.abs(decoded.astype(int) - expected).max() <= 1


def test_a_very_long_picture_costs_no_memory(tmp_path: Path) -> None:
    path = saved(Image.new("L", (20000, 1), 7), tmp_path / "line.png")
    assert (decode_image(path, 16, 1) == 7).all()


def test_a_large_jpeg_looks_the_same_as_its_png(tmp_path: Path) -> None:
    grid = np.linspace(0, 255, 640)
    picture = Image.fromarray(np.add.outer(grid, grid[::-1]).clip(0, 255).astype(np.uint8))
    jpeg = decode_image(saved(picture, tmp_path / "a.jpg", quality=95), 16, 1)
    png = decode_image(saved(picture, tmp_path / "a.png"), 16, 1)
    assert np.abs(jpeg.astype(int) - png).max() <= 3


def test_of_an_animation_the_first_frame_counts(tmp_path: Path) -> None:
    frames = [Image.new("L", (8, 8), 40), Image.new("L", (8, 8), 200)]
    assert (decode_image(saved(frames[0], tmp_path / "a.gif", save_all=True, append_images=frames[1:]), 8, 1) == 40).all()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"an image must be readable, but .*bad\.png is not: \w+") as caught:
        decode_image(path, 8, 3)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png is not: No such file"):
        decode_image(tmp_path / "gone.png", 8, 3)
    with pytest.raises(UserError, match=r"is not: Is a directory"):
        decode_image(tmp_path, 8, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "tif"])
def test_a_truncated_file_is_refused(suffix: str, tmp_path: Path) -> None:
    path = saved(Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64), dtype=np.uint8)), tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match="must be readable"):
        decode_image(path, 32, 1)


def encoded(suffix: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if suffix in ("jpeg", "png", "webp", "tiff") else {}
    buffer = BytesIO()
    Image.fromarray(np.random.RandomState(1).randint(0, 256, (9, 12, 3), dtype=np.uint8)).save(buffer, suffix, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["jpeg", "png", "bmp", "gif", "tiff", "webp", "ppm"])
@given(st.data())
@settings(max_examples=60)
def test_damaged_bytes_give_pixels_or_one_clear_error(tmp_path_factory: pytest.TempPathFactory, suffix: str, data: st.DataObject) -> None:
    content = bytearray(encoded(suffix))
    for place in data.draw(st.lists(st.integers(0, min(len(content) - 1, 400)), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (lambda: decode_image(path, 8, 3).shape, lambda: image_header(path)):
            with suppress(UserError):
                read()


def test_arrays_are_adapted_exactly_as_files_are_decoded(tmp_path: Path) -> None:
    colours = np.random.RandomState(0).randint(0, 256, (2, 3, 9, 9), dtype=np.uint8)
    assert adapt(colours, None, None) is colours
    for size, channels in ((9, 1), (6, 3), (20, 1)):
        adapted = adapt(colours, size, channels)
        for index, image in enumerate(colours):
            path = saved(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))), tmp_path / "a.png")
            assert (adapted[index] == decode_image(path, size, channels)).all()


def test_decoding_imports_no_torch() -> None:
    script = "import sys, core.data.images; sys.exit(any(name in sys.modules for name in ('torch', 'pydantic', 'sklearn', 'joblib')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
