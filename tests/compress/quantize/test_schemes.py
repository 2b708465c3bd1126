"""Scales and zero points by hand, and what a round trip may lose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import CompressError
from compress.quantize.schemes import SCHEMES, Integers, get_scheme
from compress.targets import targets

U8 = SCHEMES["x86-vnni"].activations
S8 = SCHEMES["tensorrt"].activations


@pytest.mark.parametrize(
    ("grid", "low", "high", "scale", "zero_point"),
    [
        (U8, -1.0, 1.55, 0.01, 100),  # 2.55 / 255
        (U8, 0.0, 5.1, 0.02, 0),
        (U8, -5.1, 0.0, 0.02, 255),
        (U8, 1.0, 5.1, 0.02, 0),  # widened to zero
        (U8, -5.1, -1.0, 0.02, 255),
        (U8, -1.0, 3.0, 4 / 255, 64),  # 63.75 rounds up
        (S8, -1.27, 0.3, 0.01, 0),
        (S8, -0.3, 2.54, 0.02, 0),
        (SCHEMES["x86-vnni"].weights, -1.27, 1.0, 0.01, 0),
        (SCHEMES["x86"].weights, -0.63, 0.5, 0.01, 0),
        (U8, 0.0, 0.0, 1.0, 0),
        (S8, 0.0, 0.0, 1.0, 0),
    ],
)
def test_scale_and_zero_point_by_hand(
    grid: Integers, low: float, high: float, scale: float, zero_point: int
) -> None:
    found = grid.scale_and_zero_point(low, high)
    assert found[0] == pytest.approx(scale, rel=1e-12)
    assert found[1] == zero_point


def test_the_schemes_as_their_kernels_need_them() -> None:
    rows = {
        name: (s.activations.dtype, s.activations.symmetric, s.weights.low, s.weights.high)
        for name, s in SCHEMES.items()
    }
    assert rows == {
        "x86-vnni": ("uint8", False, -127, 127),
        "x86": ("uint8", False, -63, 63),
        "arm64": ("int8", True, -127, 127),
        "tensorrt": ("int8", True, -127, 127),
    }
    assert all(s.weights.symmetric and s.weights.dtype == "int8" for s in SCHEMES.values())
    assert {target.scheme for target in targets().values()} <= set(SCHEMES)


def test_seven_bit_weights_cannot_saturate_a_pair_of_products() -> None:
    """pmaddubsw adds two u8 x s8 products in 16 bits."""
    weights = SCHEMES["x86"].weights
    assert 2 * U8.high * weights.high <= np.iinfo(np.int16).max
    assert 2 * U8.high * SCHEMES["x86-vnni"].weights.high > np.iinfo(np.int16).max


finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@settings(deadline=None)
@given(
    ends=st.tuples(finite, finite).map(sorted), share=st.floats(0, 1),
    grid=st.sampled_from([U8, S8, SCHEMES["x86"].weights]),
)  # fmt: skip
def test_a_round_trip_errs_by_at_most_half_a_step(ends: list[float], share: float, grid: Integers) -> None:
    low, high = min(ends[0], 0.0), max(ends[1], 0.0)
    value = low + share * (high - low)
    scale, zero_point = grid.scale_and_zero_point(low, high)
    integer = round(value / scale) + zero_point
    # A zero point is rounded too, so that one end of an affine range may lie half a step outside.
    error = abs((min(max(integer, grid.low), grid.high) - zero_point) * scale - value)
    at_end = integer not in range(grid.low, grid.high + 1)
    assert error <= scale * (1.0 if at_end else 0.5) * (1 + 1e-9)
    assert grid.low <= zero_point <= grid.high  # zero is exact


def test_an_unknown_scheme_is_refused_with_those_there_are() -> None:
    with pytest.raises(CompressError, match=r"unknown quantization scheme 'int4': expected one of .*'arm64'"):
        get_scheme("int4")
