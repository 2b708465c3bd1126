"""Pictures to tensors: convert, resize as Pillow does, crop, pad, rescale, normalise.

Sizes are ``(height, width)``. Steps run in their order, on grey levels 0..255 until ``rescale`` or ``normalize``, which
work channel by channel in memory: eight times as quick as along a last axis of three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Union

import numpy as np

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing.fields import in_range
from runtimes.processing.picture import (
    MOST_PIXELS,
    Picture,
    array_of,
    converted,
    open_picture,
    pillow,
    pillow_of,
    size_of,
)
from runtimes.processing.sample import Padding, Sample

if TYPE_CHECKING:
    from PIL import Image

LARGEST_SIDE = 16384            # of what a step makes


@dataclass(frozen=True, kw_only=True)
class Resize:
    """Resize as Pillow does (antialiased), to ``size``, or keeping the aspect ratio.

    ``shortest_edge`` makes the shorter side that long, ``longest_edge`` the longer one; with both the shorter side is
    as asked unless the longer would exceed its limit. Sides that follow are rounded ``down`` or to the ``nearest``
    and then down to a multiple of ``multiple_of``.
    """

    KIND: ClassVar[str] = "resize"
    size: tuple[int, int] | None = None
    shortest_edge: int | None = None
    longest_edge: int | None = None
    multiple_of: int = 1
    rounding: Literal["down", "nearest"] = "down"
    resample: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"] = "bicubic"

    def __post_init__(self) -> None:
        if (self.size is None) == (self.shortest_edge is None and self.longest_edge is None):
            raise RuntimesError("needs either 'size', or 'shortest_edge' or 'longest_edge' or both")
        for side in (*(self.size or ()), self.shortest_edge, self.longest_edge, self.multiple_of):
            in_range(side, 1, LARGEST_SIDE, "the side")

    def target(self, height: int, width: int) -> tuple[int, int]:
        """The size that a picture of this size gets."""
        if self.size is not None:
            return self.size
        sides = self._scaled(height, width)
        whole = [int(side + 0.5) if self.rounding == "nearest" else int(side) for side in sides]
        down = [max(side // self.multiple_of, 1) * self.multiple_of for side in whole]
        return down[0], down[1]

    def _scaled(self, height: float, width: float) -> tuple[float, float]:
        if self.shortest_edge is not None:
            short = min(height, width)
            height, width = self.shortest_edge * height / short, self.shortest_edge * width / short
        if self.longest_edge is not None and (self.shortest_edge is None or max(height, width) > self.longest_edge):
            long = max(height, width)
            height, width = self.longest_edge * height / long, self.longest_edge * width / long
        return height, width

    def __call__(self, picture: Picture) -> Picture:
        now = size_of(picture)
        height, width = self.target(*now)
        if height * width > MOST_PIXELS:
            raise FeedError(f"of {now[0]}x{now[1]} would be resized to {height}x{width}: crop it, it is too long")
        if (height, width) == now:
            return picture
        resized: Image.Image = pillow_of(picture).resize(
            (width, height), getattr(pillow().Resampling, self.resample.upper()))
        return resized


@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """Cut ``size`` out of the middle; what is smaller is set amid zeros.

    An odd rest is split ``down`` (the part cut off above and left is the smaller) or as ``nearest``, to the even.
    """

    KIND: ClassVar[str] = "center_crop"
    size: tuple[int, int]
    rounding: Literal["down", "nearest"] = "down"

    def __post_init__(self) -> None:
        for side in self.size:
            in_range(side, 1, LARGEST_SIDE, "the side")

    def __call__(self, picture: Picture) -> Picture:
        array = array_of(picture)
        for axis, wanted in enumerate(self.size):
            rest = array.shape[axis] - wanted
            if rest > 0:
                start = rest // 2 if self.rounding == "down" else round(rest / 2)
                array = array[start : start + wanted] if axis == 0 else array[:, start : start + wanted]
            elif rest < 0:
                array = _pad(array, axis, (-rest + 1) // 2, -rest // 2, 0)
        return array


@dataclass(frozen=True, kw_only=True)
class Pad:
    """Pad to ``size`` with ``fill`` (one value, or one a channel): content in the middle, or at the top left."""

    KIND: ClassVar[str] = "pad"
    size: tuple[int, int]
    fill: float | tuple[float, ...] = 0.0
    content: Literal["center", "top_left"] = "center"

    def __post_init__(self) -> None:
        for side in self.size:
            in_range(side, 1, LARGEST_SIDE, "the side")

    def __call__(self, picture: Picture) -> Picture:
        array = array_of(picture)
        if array.shape[0] > self.size[0] or array.shape[1] > self.size[1]:
            here = f"{array.shape[0]}x{array.shape[1]}"
            raise FeedError(f"is {here} when padded to {self.size}: it needs a 'resize' first")
        for axis, wanted in enumerate(self.size):
            rest = wanted - array.shape[axis]
            before = rest // 2 if self.content == "center" else 0
            array = _pad(array, axis, before, rest - before, self.fill)
        return array


@dataclass(frozen=True, kw_only=True)
class Rescale:
    """``value * scale + offset``, in float32."""

    KIND: ClassVar[str] = "rescale"
    scale: float = 1 / 255
    offset: float = 0.0

    def __call__(self, picture: Picture) -> Picture:
        planes = array_of(picture).transpose(2, 0, 1)
        scaled: np.ndarray = np.multiply(planes, np.float32(self.scale), dtype=np.float32, order="C")
        if self.offset:
            scaled += np.float32(self.offset)
        return scaled.transpose(1, 2, 0)


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """``(value - mean) / std``, in float32; one number, or one a channel."""

    KIND: ClassVar[str] = "normalize"
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __post_init__(self) -> None:
        if not np.all(np.asarray(self.std) > 0):
            raise RuntimesError(f"has the std {self.std}, expected numbers above 0")

    def __call__(self, picture: Picture) -> Picture:
        array = array_of(picture)
        channels = array.shape[2]
        for values in (self.mean, self.std):
            if isinstance(values, tuple) and len(values) != channels:
                raise FeedError(f"has {channels} channels when normalised with {len(values)} values: correct 'mode'")
        mean, std = (np.reshape(np.array(values, np.float32), (-1, 1, 1)) for values in (self.mean, self.std))
        centred: np.ndarray = np.subtract(array.transpose(2, 0, 1), mean, dtype=np.float32, order="C")
        centred /= std
        return centred.transpose(1, 2, 0)


ImageStep = Union[Resize, CenterCrop, Pad, Rescale, Normalize]  # noqa: UP007 - read at run time, on Python 3.10 too


@dataclass(frozen=True, kw_only=True)
class ImageInput:
    """A picture: a Pillow image, uint8 array (height, width[, 1, 3 or 4 channels]), path, or JPEG or PNG bytes.

    ``orient`` turns a photograph as its EXIF record says. ``background`` is what transparency shows (without it the
    alpha channel is dropped, as Pillow's ``convert`` does). ``pad_batch`` pads the pictures of a batch at the bottom
    and right to one size with zeros; without it they must be of one size.
    """

    KIND: ClassVar[str] = "image"
    from_: str
    mode: Literal["RGB", "BGR", "L"] = "RGB"
    orient: bool = True
    background: tuple[int, int, int] | None = None
    steps: tuple[ImageStep, ...] = ()
    layout: Literal["CHW", "HWC", "HW"] = "CHW"
    pad_batch: bool = False

    def __post_init__(self) -> None:
        for level in self.background or ():
            in_range(level, 0, 255, "the background level")
        if self.layout == "HW" and self.mode != "L":
            raise RuntimesError(f"has layout 'HW' with mode {self.mode!r}: only 'L' has no channel axis")
        floating = False
        for index, step in enumerate(self.steps):
            if floating and isinstance(step, Resize):
                raise RuntimesError(f"has the step 'resize' at {index}, after the levels became floats: put it before")
            if not floating and isinstance(step, Pad):
                for level in np.atleast_1d(step.fill).tolist():
                    in_range(level, 0, 255, "the grey level to pad with")
            floating |= isinstance(step, Rescale | Normalize)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.from_,)

    @property
    def padding(self) -> Padding | None:
        return Padding() if self.pad_batch else None

    def prepare(self, value: Any, *, mask: bool = False) -> Sample:
        """One picture as ``layout`` says; the mask is ``(height, width)``, False where a step or the batch padded."""
        picture = self._in_mode(open_picture(value, orient=self.orient))
        content: np.ndarray = np.ones((*size_of(picture), 1), bool) if mask else np.empty(0)
        for step in self.steps:
            picture = step(picture)
            if mask and isinstance(step, Resize):
                content = np.ones((*size_of(picture), 1), bool)
            elif mask and isinstance(step, CenterCrop):
                content = array_of(step(content))
            elif mask and isinstance(step, Pad):
                content = array_of(Pad(size=step.size, content=step.content)(content))
        array = array_of(picture)
        array = {"CHW": array.transpose(2, 0, 1), "HWC": array, "HW": array[:, :, 0]}[self.layout]
        return Sample(array, mask=content[:, :, 0] if mask else None)

    def _in_mode(self, opened: Picture) -> Picture:
        if isinstance(opened, np.ndarray) and (opened.shape[2] < 4 or self.background is None):
            return converted(opened[:, :, :3], self.mode)
        picture = pillow_of(opened)
        if picture.mode in ("F", "I") or picture.mode.startswith("I;"):
            raise FeedError(f"has Pillow's mode {picture.mode!r}, more than 8 bits a channel: convert it to 'L'")
        wanted = "L" if self.mode == "L" else "RGB"
        if self.background is not None and (picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info):
            below = pillow().new("RGBA", picture.size, (*self.background, 255))
            picture = pillow().alpha_composite(below, picture.convert("RGBA"))
        elif picture.mode in ("P", "PA"):
            picture = picture.convert("RGBA")   # Pillow warns where it goes straight
        picture = picture if picture.mode == wanted else picture.convert(wanted)
        return array_of(picture)[:, :, ::-1] if self.mode == "BGR" else picture


def _pad(array: np.ndarray, axis: int, before: int, after: int, fill: float | Sequence[float]) -> np.ndarray:
    if before == after == 0:
        return array
    shape = list(array.shape)
    shape[axis] += before + after
    if isinstance(fill, tuple) and len(fill) != shape[2]:
        raise FeedError(f"has {shape[2]} channels when padded with {len(fill)} values: correct 'fill' or 'mode'")
    padded = np.empty(shape, array.dtype)
    padded[...] = np.asarray(fill).astype(array.dtype)
    place = [slice(None)] * 3
    place[axis] = slice(before, before + array.shape[axis])
    padded[tuple(place)] = array
    return padded
