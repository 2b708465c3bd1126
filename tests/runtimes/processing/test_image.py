"""Pictures: what each step makes, against Pillow and by hand, and what is refused."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing import parse_processing
from runtimes.processing.image import CenterCrop, ImageInput, Resize
from runtimes.spec import Dim
from tests.runtimes.processing.describing import processor, spec

CLIP = [
    {"op": "resize", "shortest_edge": 24}, {"op": "center_crop", "size": [24, 24]}, {"op": "rescale"},
    {"op": "normalize", "mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]},
]
GREY = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10


def record(*steps: dict[str, Any], **keys: Any) -> ImageInput:
    section = {"inputs": {"image": {"kind": "image", "from": "image", "steps": list(steps), **keys}}, "outputs": {}}
    entry = parse_processing(section, "test").inputs["image"]
    assert isinstance(entry, ImageInput)
    return entry


def colours(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def encoded(image: Image.Image, format: str = "PNG", **keys: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **keys)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG of a size that only its header claims."""
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_a_resize_by_hand() -> None:
    """Halving with a box: each value is the mean of four, as 0, 10, 40, 50 -> 25."""
    made = record({"op": "resize", "size": [2, 2], "resample": "box"}, mode="L", layout="HW").prepare(GREY)
    np.testing.assert_array_equal(made.array, [[25, 45], [105, 125]])


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(7, 9), (50, 31)])
def test_resize_is_pillows(name: str, size: tuple[int, int]) -> None:
    array = colours(23, 37)
    expected = Image.fromarray(array).resize(size[::-1], getattr(Image.Resampling, name.upper()))
    made = record({"op": "resize", "size": list(size), "resample": name}, layout="HWC").prepare(array)
    np.testing.assert_array_equal(made.array, np.asarray(expected))


@pytest.mark.parametrize(("keys", "size", "expected"), [
    ({"shortest_edge": 224}, (480, 640), (224, 298)),           # 224 * 640 / 480 = 298.67
    ({"shortest_edge": 224}, (640, 480), (298, 224)),
    ({"shortest_edge": 224, "rounding": "nearest"}, (480, 640), (224, 299)),
    ({"longest_edge": 64}, (480, 640), (48, 64)),
    ({"longest_edge": 64}, (1, 640), (1, 64)),                  # never below one pixel
    ({"shortest_edge": 384, "longest_edge": 639, "multiple_of": 32, "rounding": "nearest"}, (480, 640), (384, 512)),
    ({"shortest_edge": 384, "longest_edge": 639, "multiple_of": 32, "rounding": "nearest"}, (200, 1000), (128, 608)),
    ({"size": [10, 20]}, (480, 640), (10, 20)),
])
def test_target_sizes(keys: dict[str, Any], size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Resize(**{k: tuple(v) if isinstance(v, list) else v for k, v in keys.items()}).target(*size) == expected


def test_crop_keeps_the_middle_and_sets_what_is_smaller_amid_zeros() -> None:
    crop = record({"op": "center_crop", "size": [2, 2]}, mode="L", layout="HW")
    np.testing.assert_array_equal(crop.prepare(GREY).array, [[50, 60], [90, 100]])
    np.testing.assert_array_equal(crop.prepare(GREY[:1, :1] + np.uint8(7)).array, [[0, 0], [0, 7]])
    np.testing.assert_array_equal(crop.prepare(GREY[:, :1]).array, [[0, 40], [0, 80]])


def test_an_odd_rest_is_split_as_asked() -> None:
    row = np.arange(7, dtype=np.uint8)[None, :, None]
    assert np.asarray(CenterCrop(size=(1, 4))(row))[0, :, 0].tolist() == [1, 2, 3, 4]               # 3 // 2 = 1
    assert np.asarray(CenterCrop(size=(1, 4), rounding="nearest")(row))[0, :, 0].tolist() == [2, 3, 4, 5]   # round(1.5)


def test_pad_in_the_middle_and_at_the_top_left() -> None:
    step = {"op": "pad", "size": [1, 4], "fill": 9}
    row = GREY[:1, :1]
    assert record(step, mode="L", layout="HW").prepare(row).array.tolist() == [[9, 0, 9, 9]]
    assert record({**step, "content": "top_left"}, mode="L", layout="HW").prepare(row).array.tolist() == [[0, 9, 9, 9]]
    filled = record({"op": "pad", "size": [1, 2], "fill": [1, 2, 3], "content": "top_left"}).prepare(row)
    assert filled.array.tolist() == [[[0, 1]], [[0, 2]], [[0, 3]]]


def test_rescale_and_normalize_by_hand() -> None:
    steps = [{"op": "rescale", "scale": 0.01, "offset": 1.0}, {"op": "normalize", "mean": [1, 2, 3], "std": [1, 2, 4]}]
    made = record(*steps).prepare(np.full((1, 1, 3), 200, np.uint8)).array
    np.testing.assert_allclose(made[:, 0, 0], [2.0, 0.5, 0.0], atol=1e-6)
    assert made.dtype == np.float32


def test_layouts_and_channel_orders() -> None:
    array = colours(2, 3)
    np.testing.assert_array_equal(record().prepare(array).array, array.transpose(2, 0, 1))
    np.testing.assert_array_equal(record(layout="HWC").prepare(array).array, array)
    np.testing.assert_array_equal(record(layout="HWC", mode="BGR").prepare(array).array, array[:, :, ::-1])
    np.testing.assert_array_equal(
        record(layout="HWC", mode="BGR").prepare(Image.fromarray(array)).array, array[:, :, ::-1])


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_are_converted_as_pillow_does(mode: str, channels: int) -> None:
    array = colours(16, 16, channels)
    image = Image.fromarray(array[:, :, 0] if channels == 1 else array)
    expected = np.asarray(image.convert(mode)).reshape(16, 16, -1)
    entry = record(layout="HWC", mode=mode)
    np.testing.assert_array_equal(entry.prepare(array).array, expected)
    np.testing.assert_array_equal(entry.prepare(image).array, expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_of_8_bits_is_taken(mode: str) -> None:
    image = Image.fromarray(colours(5, 6)).convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    assert record(layout="HWC").prepare(image).array.shape == (5, 6, 3)


def test_transparency_shows_the_background() -> None:
    array = np.array([[[200, 100, 0, 255], [200, 100, 0, 0], [200, 100, 0, 51]]], np.uint8)    # opaque, clear, a fifth
    for picture in (array, Image.fromarray(array)):
        made = record(layout="HWC", background=[255, 255, 255]).prepare(picture).array
        np.testing.assert_array_equal(made, [[[200, 100, 0], [255, 255, 255], [244, 224, 204]]])
        np.testing.assert_array_equal(record(layout="HWC").prepare(picture).array, array[:, :, :3])


def test_a_path_bytes_an_image_and_an_array_are_one(tmp_path: Path) -> None:
    array = colours(30, 40)
    data = encoded(Image.fromarray(array))
    (tmp_path / "a.png").write_bytes(data)
    entry = record(*CLIP)
    expected = entry.prepare(array).array
    path = tmp_path / "a.png"
    for value in (data, bytearray(data), memoryview(data), path, str(path), Image.fromarray(array)):
        np.testing.assert_array_equal(entry.prepare(value).array, expected)


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6        # turn by 90 degrees
    data = encoded(Image.fromarray(colours(2, 5)), exif=exif)
    assert record(layout="HWC").prepare(data).array.shape == (5, 2, 3)
    assert record(layout="HWC", orient=False).prepare(data).array.shape == (2, 5, 3)


@settings(max_examples=150, deadline=None)
@given(height=st.integers(1, 64), width=st.integers(1, 64), channels=st.sampled_from([1, 3, 4]))
def test_any_size_gives_the_specs_shape(height: int, width: int, channels: int) -> None:
    letterbox = [{"op": "resize", "longest_edge": 24}, {"op": "pad", "size": [24, 24]}, {"op": "rescale"}]
    takes = [spec("clip", "float32", 3, 24, 24), spec("letterbox", "float32", 3, 24, 24)]
    made = processor({"clip": {"kind": "image", "from": "image", "steps": CLIP},
                      "letterbox": {"kind": "image", "from": "image", "steps": letterbox}}, takes=takes)
    for array in made.feed({"image": colours(height, width, channels)}).values():
        assert (array.shape, array.dtype) == ((1, 3, 24, 24), np.float32)
        assert np.isfinite(array).all()


def test_a_batch_of_two_sizes_is_padded_with_its_mask() -> None:
    side = Dim("side", 1, 8, 64)
    takes = [spec("pixels", "uint8", 3, side, side), spec("mask", "int64", side, side)]
    inputs = {"pixels": {"kind": "image", "from": "image", "pad_batch": True}, "mask": {"kind": "mask", "of": "pixels"}}
    feed = processor(inputs, takes=takes).feed({"image": [np.full((2, 3), 5, np.uint8), np.full((3, 1), 6, np.uint8)]})
    np.testing.assert_array_equal(feed["pixels"][0, 0], [[5, 5, 5], [5, 5, 5], [0, 0, 0]])
    np.testing.assert_array_equal(feed["mask"], [[[1, 1, 1], [1, 1, 1], [0, 0, 0]], [[1, 0, 0]] * 3])
    assert feed["mask"].dtype == np.int64
    inputs["pixels"].pop("pad_batch")
    with pytest.raises(FeedError, match=r"raw input 'image': samples of one batch have the shapes \(3, 2, 3\) and"):
        processor(inputs, takes=takes).feed({"image": [colours(2, 3), colours(3, 1)]})


def test_the_mask_follows_crop_and_pad() -> None:
    steps = [{"op": "center_crop", "size": [2, 3]}, {"op": "pad", "size": [3, 3], "content": "top_left"}]
    made = record(*steps).prepare(np.full((2, 1), 5, np.uint8), mask=True)
    assert made.mask is not None
    np.testing.assert_array_equal(made.mask, [[0, 1, 0], [0, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize(("value", "message"), [
    (np.zeros((4, 4)), r"is float64 of shape \(4, 4\), expected uint8 \(height, width\)"),
    (np.zeros((4, 4, 2), np.uint8), r"uint8 of shape \(4, 4, 2\), expected"),
    (np.zeros((0, 4, 3), np.uint8), r"of shape \(0, 4, 3\)"),
    (np.broadcast_to(np.uint8(0), (2**14, 2**13, 3)), "is 16384x8192, expected a picture of 1 to 67108864 pixels"),
    (3, "is a int, expected a Pillow image"),
    (b"GIF89a", "is no JPEG or PNG that can be read"),
    (b"", "is no JPEG or PNG that can be read"),
    (encoded(Image.fromarray(colours(8, 8)))[:60], "is no JPEG or PNG that can be read"),
    (encoded(Image.fromarray(colours(8, 8)), "BMP"), "is no JPEG or PNG that can be read"),
    (png_header(9000, 9000), "is 9000x9000, expected a picture of 1 to 67108864 pixels"),
    (png_header(12000, 12000), "is too large a picture"),
    (png_header(60000, 60000), "is too large a picture"),
    ("/nowhere/a.png", "names '/nowhere/a.png', which cannot be read"),
    ("a\0b", "which cannot be read"),
    (Image.new("I;16", (2, 2)), "has Pillow's mode 'I;16', more than 8 bits a channel"),
    (Image.new("F", (2, 2)), "has Pillow's mode 'F'"),
    (np.zeros((1, 200_000, 3), np.uint8), "of 1x200000 would be resized to 24x4800000: crop it"),
])
def test_what_is_no_picture_is_refused(value: Any, message: str) -> None:
    takes = [spec("pixels", "float32", 3, 24, 24)]
    made = processor({"pixels": {"kind": "image", "from": "photo", "steps": CLIP}}, takes=takes)
    with pytest.raises(FeedError, match=message) as caught:
        made.feed({"photo": value})
    assert str(caught.value).startswith("raw input 'photo' ")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_records_are_read_or_refused() -> None:
    """2,000 records with changed bytes: a picture or a FeedError, and at least one of each."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    whole, image, rng = exif.tobytes(), Image.fromarray(colours(4, 4)), np.random.default_rng(0)
    entry, seen = record(), set()
    for _ in range(2000):
        changed = bytearray(whole)
        for at in rng.integers(6, len(whole), rng.integers(1, 6)):
            changed[at] = rng.integers(256)
        data = encoded(image, "JPEG", exif=bytes(changed))
        try:
            seen.add(entry.prepare(data).array.shape)
        except FeedError as error:
            seen.add(str(error)[:27])
    assert seen == {(3, 4, 4), "has an EXIF record that can"}


@pytest.mark.parametrize(("keys", "message"), [
    ({"mode": "RGBA"}, r"'mode' is 'RGBA', expected one of \['RGB', 'BGR', 'L'\]"),
    ({"layout": "HW"}, "has layout 'HW' with mode 'RGB'"),
    ({"background": [0, 0, 256]}, "has the background level 256"),
    ({"background": [0, 0]}, "'background' has 2 items, expected 3"),
    ({"steps": [{"op": "rotate"}]}, r"'steps'\[0\]: 'op' is 'rotate', expected one of"),
    ({"steps": [{"op": "resize"}]}, "needs either 'size', or 'shortest_edge' or 'longest_edge'"),
    ({"steps": [{"op": "resize", "size": [1, 1], "longest_edge": 3}]}, "needs either 'size', or"),
    ({"steps": [{"op": "resize", "size": [1, 100000]}]}, "has the side 100000, expected a number from 1 to 16384"),
    ({"steps": [{"op": "resize", "shortest_edge": 0}]}, "has the side 0"),
    ({"steps": [{"op": "center_crop", "size": [0, 1]}]}, "has the side 0"),
    ({"steps": [{"op": "pad", "size": [1, -1]}]}, "has the side -1"),
    ({"steps": [{"op": "pad", "size": [1, 1], "fill": 300}]}, "the grey level to pad with 300"),
    ({"steps": [{"op": "rescale"}, {"op": "resize", "size": [1, 1]}]}, "has the step 'resize' at 1, after the levels"),
    ({"steps": [{"op": "normalize", "mean": 0, "std": [1, 0, 1]}]}, "expected numbers above 0"),
    ({"steps": [{"op": "normalize", "std": 1}]}, "lacks 'mean'"),
    ({"steps": [{"op": "normalize", "mean": 1e999, "std": 1}]}, "'mean' is not a finite number"),
    ({"steps": {}}, "'steps' must be a list"),
    ({"code": "x"}, "has the unknown key 'code'"),
])
def test_bad_records(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        parse_processing({"inputs": {"x": {"kind": "image", "from": "x", **keys}}, "outputs": {}}, "test")


@pytest.mark.parametrize(("steps", "message"), [
    ([{"op": "normalize", "mean": [1, 2], "std": 1}], "has 3 channels when normalised with 2 values: correct 'mode'"),
    ([{"op": "pad", "size": [9, 9], "fill": [1, 2]}], "has 3 channels when padded with 2 values: correct 'fill'"),
    ([{"op": "pad", "size": [2, 9]}], r"is 4x4 when padded to \(2, 9\): it needs a 'resize' first"),
])
def test_steps_that_do_not_fit_the_picture(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(FeedError, match=message):
        record(*steps).prepare(colours(4, 4))


def test_without_pillow_arrays_of_the_right_size_still_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    grey = record({"op": "center_crop", "size": [2, 2]}, {"op": "rescale"}, mode="L")
    assert grey.prepare(colours(4, 4)).array.shape == (1, 2, 2)
    with pytest.raises(RuntimesError, match=r'Pillow, which is not installed: .* pip install "compress-edge\[image\]"'):
        record({"op": "resize", "size": [2, 2]}).prepare(colours(4, 4))
