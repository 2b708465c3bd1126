"""Pictures as apps pass them: opened, turned upright, checked, and moved between numpy and Pillow."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from runtimes.errors import FeedError, RuntimesError

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 2**26             # decoded, or after a step; 67 million
MOST_BYTES = 2**28              # of an encoded picture
FORMATS = ("JPEG", "PNG")       # each further decoder is code that reads what strangers send
INSTALL = 'install Pillow: pip install "compress-edge[image]"'

# What Pillow's readers raise for damaged files.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, KeyError, IndexError, TypeError, OverflowError, MemoryError)

Picture: TypeAlias = "np.ndarray | Image.Image"     # an array has the axes (height, width, channels)


def open_picture(value: Any, *, orient: bool = True) -> Picture:
    """What the app passed, as a Pillow image or an array ``(height, width, channels)``.

    Raises:
        FeedError: if it is no picture, is damaged, or too large.
    """
    if isinstance(value, np.ndarray):
        return _checked(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _oriented(_decode(bytes(value)), orient)
    if isinstance(value, str | Path):
        return _oriented(_decode(_read(Path(value))), orient)
    module = sys.modules.get("PIL.Image")
    if module is not None and isinstance(value, module.Image):
        _check_pixels(value.height, value.width)
        return _oriented(value, orient)
    raise FeedError(
        f"is a {type(value).__name__}, expected a Pillow image, a uint8 array, a path, or the bytes of a JPEG or PNG"
    )


def _checked(array: np.ndarray) -> np.ndarray:
    shaped = array[:, :, None] if array.ndim == 2 else array
    if array.dtype != np.uint8 or shaped.ndim != 3 or shaped.shape[2] not in (1, 3, 4) or 0 in shaped.shape:
        raise FeedError(
            f"is {array.dtype} of shape {array.shape}, expected uint8 (height, width), or with 1, 3 or 4 channels"
        )
    _check_pixels(*shaped.shape[:2])
    return shaped


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise FeedError(f"names {str(path)!r:.200}, which cannot be read ({error})") from error


def _decode(data: bytes) -> Image.Image:
    if len(data) > MOST_BYTES:
        raise FeedError(f"has more than {MOST_BYTES} bytes: it is too large a picture")
    pil = pillow()
    try:
        image: Image.Image = pil.open(io.BytesIO(data), formats=FORMATS)
        _check_pixels(image.height, image.width)    # known from the header, before a pixel is decoded
        image.load()
    except (pil.DecompressionBombError, pil.DecompressionBombWarning) as error:
        raise FeedError(f"is too large a picture ({error})") from error
    except _DAMAGE as error:
        raise FeedError(f"is no JPEG or PNG that can be read ({error})") from error
    return image


def _oriented(image: Image.Image, orient: bool) -> Image.Image:
    if not orient:
        return image
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # whatever a damaged EXIF record makes Pillow raise, of many kinds
        raise FeedError(f"has an EXIF record that cannot be read ({error})") from error


def _check_pixels(height: int, width: int) -> None:
    if height * width > MOST_PIXELS or height < 1 or width < 1:
        raise FeedError(f"is {height}x{width}, expected a picture of 1 to {MOST_PIXELS} pixels: shrink it first")


def converted(array: np.ndarray, mode: str) -> np.ndarray:
    """``array`` of 1 or 3 channels in ``mode``; grey levels weighed as Pillow does (ITU-R 601-2, 16 bits)."""
    if mode == "L" and array.shape[2] == 3:
        grey = array.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((grey + 0x8000) >> 16).astype(np.uint8)[:, :, None]
    if mode != "L" and array.shape[2] == 1:
        return np.repeat(array, 3, axis=2)
    return array[:, :, ::-1] if mode == "BGR" else array


def array_of(picture: Picture) -> np.ndarray:
    array = np.asarray(picture)
    return array[:, :, None] if array.ndim == 2 else array


def size_of(picture: Picture) -> tuple[int, int]:
    return (picture.shape[0], picture.shape[1]) if isinstance(picture, np.ndarray) else (picture.height, picture.width)


def pillow_of(picture: Picture) -> Image.Image:
    if not isinstance(picture, np.ndarray):
        return picture
    flat = picture[:, :, 0] if picture.shape[2] == 1 else picture
    image: Image.Image = pillow().fromarray(np.ascontiguousarray(flat))
    return image


def pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise RuntimesError(f"this picture needs Pillow, which is not installed: {INSTALL}") from error
    return Image
