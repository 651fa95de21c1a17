"""Any image file to uint8 (C, S, S). Used for training sets and for prediction alike, so both see the same pixels; imports no torch."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from core.errors import UserError, one_line

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm"})
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "I;16N"})

# What Pillow's decoders raise on damaged files (seen by flipping bytes of every format in the tests).
_DAMAGE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    MemoryError,
    NotImplementedError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(path: Path, image_size: int, channels: int) -> np.ndarray:
    """The image as uint8 (channels, image_size, image_size), its centre square scaled where the size differs.

    Transparency is laid over white, 16-bit greys are scaled to 8 bits, EXIF orientation is applied, of an animation the
    first frame counts. `channels` is 1 (ITU-R 601 luma) or 3 (RGB). Raises UserError naming a file that cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            # JPEG decodes at 1/2, 1/4 or 1/8 for a fraction of the time; twice the size is left to the scaling filter.
            image.draft(None, (2 * image_size, 2 * image_size))
            image.load()
            square = _square(_eight_bits(image), image_size)
            turn = _UPRIGHT.get(_orientation(image))
            return _to_array(square if turn is None else square.transpose(turn), channels)
    except _DAMAGE as error:
        raise unreadable(path, error) from error


def load_upright(path: Path, channels: int) -> Image.Image:
    """The whole picture in its own size, upright, as `decode_image` sees it: mode L (`channels` 1) or RGB (3).

    Raises UserError naming a file that cannot be decoded.
    """
    try:
        with Image.open(path) as image:
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
            plain = _eight_bits(image).convert("L" if channels == 1 else "RGB")
            return plain if turn is None else plain.transpose(turn)
    except _DAMAGE as error:
        raise unreadable(path, error) from error


def image_header(path: Path) -> tuple[tuple[int, int], str]:
    """(width, height) and Pillow's mode from the file's header alone. Raises UserError naming a file that cannot be opened."""
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except _DAMAGE as error:
        raise unreadable(path, error) from error


def adapt(images: np.ndarray, image_size: int | None, channels: int | None) -> np.ndarray:
    """Images uint8 (N, C, S, S) in the asked size and channels, as `decode_image` would give them; None keeps what they have."""
    size, depth = image_size or images.shape[-1], channels or images.shape[1]
    if (depth, size) == (images.shape[1], images.shape[-1]):
        return images
    adapted = np.empty((len(images), depth, size, size), np.uint8)
    for index, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        adapted[index] = _to_array(_square(Image.fromarray(pixels), size), depth)
    return adapted


def unreadable(path: Path, error: BaseException) -> UserError:
    """One line for a file that cannot be decoded."""
    if isinstance(error, UnidentifiedImageError):
        reason = "no image, or of a format that Pillow does not know"
    else:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error) or type(error).__name__
    return UserError(f"an image must be readable, but {path} is not: {reason}")


@contextmanager
def quiet_decoder() -> Iterator[None]:
    """Pillow warns about odd metadata, once per file; an image that is really damaged is reported as such."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in mode L or RGB, opaque."""
    if image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which turns a 16-bit photograph white.
        levels = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its brightness is in fractions without a range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _square(image: Image.Image, side: int) -> Image.Image:
    """The centre square, scaled to `side`: the shorter side resized, the longer one cropped, without computing what is cropped away."""
    width, height = image.size
    if width == height == side:
        return image
    edge = min(width, height)
    left, top = (width - edge) / 2, (height - edge) / 2
    return image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + edge, top + edge))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 where the block is missing or damaged, for the pixels are sound all the same."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except _DAMAGE:
        return 1
    return value if isinstance(value, int) else 1


def _to_array(image: Image.Image, channels: int) -> np.ndarray:
    """uint8 (channels, H, W)"""
    if channels == 1:
        return np.array(image.convert("L"))[None]
    return np.ascontiguousarray(np.asarray(image.convert("RGB")).transpose(2, 0, 1))
