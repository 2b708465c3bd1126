from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.errors import FeedError, RuntimesError
from runtimes.spec import Dim, TensorSpec, check_feed

BATCH, LENGTH = Dim("batch", 1, 1, 4), Dim("length", 2, 4, 8)
IMAGE = TensorSpec(name="image", dtype="float32", shape=(BATCH, 3), modality="image")
TEXT = TensorSpec(name="text", dtype="int64", shape=(BATCH, LENGTH), modality="text")


def feed(**changes: Any) -> dict[str, Any]:
    return {"image": np.ones((2, 3), np.float32), "text": np.ones((2, 4), np.int64), **changes}


def test_good_feed_comes_back_contiguous_in_the_order_of_the_specs() -> None:
    image = np.ones((3, 2), np.float32).T
    checked = check_feed((TEXT, IMAGE), feed(image=image))
    assert list(checked) == ["text", "image"]
    assert checked["image"].flags.c_contiguous
    np.testing.assert_array_equal(checked["image"], image)


@pytest.mark.parametrize(("changes", "message"), [
    ({"image": np.ones((2, 3))}, r"'image' has dtype float64, expected float32: convert it with \.astype\('float32'\)"),
    ({"image": np.ones((2, 3), ">f4")}, "'image' has dtype >f4, expected float32"),
    ({"image": np.ones(3, np.float32)}, r"'image' has shape \(3,\), expected 2 dimensions: float32\[batch=1\.\.4, 3\]"),
    ({"image": np.ones((2, 4), np.float32)}, "input 'image' .*expected size 3 on axis 1"),
    ({"text": np.ones((2, 9), np.int64)}, r"input 'text' .*length is 9, outside 2\.\.8"),
    ({"text": np.ones((3, 4), np.int64)}, "input 'text' has batch=3, but input 'image' has batch=2"),
    ({"image": np.array([[0, 0, 0], [0, np.inf, 0]], np.float32)}, r"'image' .*not finite \(inf\) at index \(1, 1\)"),
    ({"image": np.array([[0, 0, np.nan], [0, 0, 0]], np.float32)}, r"not finite \(nan\) at index \(0, 2\)"),
    ({"other": 1}, "f.npz has an unknown input 'other': expected the inputs"),
])
def test_bad_feed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FeedError, match=message):
        check_feed((IMAGE, TEXT), feed(**changes), source="f.npz")


def test_no_mapping() -> None:
    with pytest.raises(FeedError, match=r"feed is a list, expected a mapping with the inputs \['image', 'text'\]"):
        check_feed((IMAGE, TEXT), [np.ones((1, 3), np.float32)])  # type: ignore[arg-type]


def test_missing_input() -> None:
    with pytest.raises(FeedError, match="feed lacks input 'text'"):
        check_feed((IMAGE, TEXT), {"image": np.ones((1, 3), np.float32)})


def test_large_finite_values_are_not_taken_for_infinite() -> None:
    huge = np.full((2, 3), np.finfo(np.float32).max, np.float32)
    np.testing.assert_array_equal(check_feed((IMAGE,), {"image": huge})["image"], huge)


def test_sizes() -> None:
    assert TEXT.sized() == (1, 4)
    assert TEXT.sized(batch=3, length=8) == (3, 8)
    assert TEXT.dims == (BATCH, LENGTH)
    assert TEXT.describe() == "int64[batch=1..4, length=2..8]"


@pytest.mark.parametrize(("arguments", "message"), [
    (("a b",), "'a b' is not an identifier"),
    (("n", 0, 0, 1), "0 <= min <= opt <= max and 0 < opt, got 0, 0, 1"),
    (("n", -1, 1, 1), "got -1, 1, 1"),
    (("n", 2, 1, 3), "got 2, 1, 3"),
])
def test_bad_dimension(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        Dim(*arguments)


def test_unknown_modality() -> None:
    with pytest.raises(RuntimesError, match="tensor 'x': unknown modality 'smell'"):
        TensorSpec(name="x", dtype="float32", shape=(), modality="smell")  # type: ignore[arg-type]


@given(name=st.text(min_size=1, max_size=5), dtype=st.sampled_from(["float32", "int64", "bool", "uint8", "float16"]),
       shape=st.lists(st.integers(0, 9) | st.just(BATCH), max_size=4), axis=st.none() | st.integers(0, 3))
def test_json_round_trip(name: str, dtype: str, shape: list[int | Dim], axis: int | None) -> None:
    spec = TensorSpec(name=name, dtype=dtype, shape=tuple(shape), batch_axis=axis)
    assert TensorSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("change", [
    {"dtype": "object"}, {"dtype": "complex64"}, {"dtype": "nonsense"}, {"dtype": 4}, {"dtype": "(2,)f4"},
    {"shape": [-1]}, {"shape": [float("inf")]}, {"shape": None}, {"shape": [{"name": "n"}]}, {"batch_axis": "x"},
])
def test_bad_json(change: dict[str, Any]) -> None:
    with pytest.raises(RuntimesError, match="not a tensor spec"):
        TensorSpec.from_json({**IMAGE.to_json(), **change})


@pytest.mark.parametrize("values", [[1], [0, 1.5], "01", [True, 2], {"0": 1}])
def test_bounds_that_are_none_are_refused(values: object) -> None:
    record = {**TensorSpec(name="x", dtype="int64", shape=(2,)).to_json(), "values": values}
    with pytest.raises(RuntimesError, match="not a tensor spec"):
        TensorSpec.from_json(record)
    with pytest.raises(RuntimesError, match=r"tensor 'x': values \(0, 3\) are not the bounds of a float32 tensor"):
        TensorSpec(name="x", dtype="float32", shape=(2,), values=(0, 3))
    with pytest.raises(RuntimesError, match=r"values \(3, 0\) are not the bounds"):
        TensorSpec(name="x", dtype="int64", shape=(2,), values=(3, 0))
