"""Quantization schemes as data: which integers a target's kernels multiply, and how a range becomes a scale."""

from __future__ import annotations

from dataclasses import dataclass

from calibration import Grid
from compress.errors import CompressError


@dataclass(frozen=True, kw_only=True)
class Integers:
    """A grid of integers: its type, its ends, and whether zero sits in the middle of it."""

    dtype: str
    low: int
    high: int
    symmetric: bool

    @property
    def grid(self) -> Grid:
        """These integers as what a range is chosen for."""
        return Grid(levels=self.high - self.low + 1, symmetric=self.symmetric)

    def scale_and_zero_point(self, low: float, high: float) -> tuple[float, int]:
        """Step and zero point that cover ``[low, high]`` widened to hold zero, which must be exact.

        Source: Jacob et al. 2018, arXiv:1712.05877, equations 1 and 11-13; a range of zero width gets step 1.
        """
        low, high = min(low, 0.0), max(high, 0.0)
        if self.symmetric:
            scale = max(-low, high) / self.high
            return (scale if scale > 0 else 1.0), 0
        scale = (high - low) / (self.high - self.low)
        if scale <= 0:
            return 1.0, 0
        return scale, int(min(max(round(self.low - low / scale), self.low), self.high))


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Activations per tensor, weights per output channel, both ahead of time.

    ``products`` are the integers of what attention multiplies, two activations; None where that stays float. They have
    no zero point: it would have to be subtracted from every sum. ``tables`` are those of what rows are looked up in,
    each with a scale of its own; None where it stays float. ``states`` are those of what an LSTM reads, its own state
    among it; None where that stays float. ``groups`` are those of a weight that alone is quantized to
    four bits, in groups of inputs.
    """

    name: str
    activations: Integers
    weights: Integers
    products: Integers | None = None
    tables: Integers | None = None
    states: Integers | None = None
    groups: Integers = Integers(dtype="uint4", low=0, high=15, symmetric=False)


_U8 = Integers(dtype="uint8", low=0, high=255, symmetric=False)
_S8 = Integers(dtype="int8", low=-128, high=127, symmetric=True)
_S8_WEIGHTS = Integers(dtype="int8", low=-127, high=127, symmetric=True)
_S4_WEIGHTS = Integers(dtype="int4", low=-7, high=7, symmetric=True)
_S7_WEIGHTS = Integers(dtype="int8", low=-63, high=63, symmetric=True)

SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(name="x86-vnni", activations=_U8, weights=_S8_WEIGHTS, products=_S8, tables=_S8_WEIGHTS,
               states=_S8),
        # Without VNNI, pmaddubsw adds two u8*s8 products in 16 bits and saturates: seven-bit weights keep it exact.
        Scheme(name="x86", activations=_U8, weights=_S7_WEIGHTS, tables=_S8_WEIGHTS),
        Scheme(name="arm64", activations=_S8, weights=_S8_WEIGHTS, tables=_S8_WEIGHTS),
        # TensorRT's parser refuses a zero point other than zero.
        Scheme(name="tensorrt", activations=_S8, weights=_S8_WEIGHTS, groups=_S4_WEIGHTS),
    )
}


def get_scheme(name: str) -> Scheme:
    if name not in SCHEMES:
        raise CompressError(f"unknown quantization scheme {name!r}: expected one of {sorted(SCHEMES)}")
    return SCHEMES[name]
