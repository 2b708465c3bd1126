"""Short-time spectra and mel filter banks with numpy alone."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing.fields import in_range

MelScale = Literal["slaney", "htk", "kaldi"]
Window = Literal["hann", "hamming", "povey", "boxcar"]
MOST_MELS = 1024
LONGEST_FRAME = 2**16
SMALLEST = 1e-30            # of a floor whose energies float32 holds as well as any
BLOCK = 256                 # frames transformed at once: they stay in the cache, and memory bounded


@dataclass(frozen=True, kw_only=True)
class Mel:
    """Triangular filters, ``count`` of them from ``low_hz`` to ``high_hz``, equally spaced on a mel ``scale``.

    ``norm="slaney"`` gives each the same area. ``in_mel`` makes the triangles straight on the mel scale, not in Hz.
    """

    count: int
    low_hz: float = 0.0
    high_hz: float
    scale: MelScale = "slaney"
    norm: Literal["slaney", "none"] = "slaney"
    in_mel: bool = False

    def __post_init__(self) -> None:
        in_range(self.count, 1, MOST_MELS, "the number of mel filters")
        if not 0 <= self.low_hz < self.high_hz:
            raise RuntimesError(f"has mel filters from {self.low_hz} to {self.high_hz} Hz, expected a rising pair")


@dataclass(frozen=True, kw_only=True)
class Spectrogram:
    """Frames of a waveform to ``(features, frames)``: window, Fourier transform, power, mel filters, logarithm.

    ``frame`` samples every ``hop`` are zero-padded to ``n_fft``. ``center`` puts the first frame's middle on sample 0,
    with ``pad`` around the waveform. ``log``: ``log10``, ``ln``, ``db`` (10 log10 of a power, 20 of an amplitude) or
    ``none``, of values not below ``floor``. ``preemphasis`` and ``remove_offset`` work on each frame before the window.
    """

    KIND: ClassVar[str] = "spectrogram"
    n_fft: int
    hop: int
    frame: int | None = None
    window: Window = "hann"
    periodic: bool = True
    center: bool = True
    pad: Literal["reflect", "constant"] = "reflect"
    power: float = 2.0
    preemphasis: float | None = None
    remove_offset: bool = False
    mel: Mel | None = None
    log: Literal["none", "log10", "ln", "db"] = "none"
    floor: float = 1e-10
    drop_last: bool = False

    def __post_init__(self) -> None:
        in_range(self.n_fft, 2, LONGEST_FRAME, "n_fft")
        in_range(self.hop, 1, LONGEST_FRAME, "the hop")
        in_range(self.length, 2, self.n_fft, "the frame")
        in_range(self.power, 0.25, 4, "the power")
        in_range(self.preemphasis, 0, 1, "the preemphasis")
        in_range(self.floor, 1e-45, 1, "the floor")

    @property
    def length(self) -> int:
        return self.n_fft if self.frame is None else self.frame

    def frames(self, samples: int) -> int:
        """How many frames ``samples`` give; below 1 where they are too few."""
        around = self.length // 2 * 2 if self.center else 0
        return 1 + (samples + around - self.length) // self.hop - self.drop_last

    def __call__(self, waveform: np.ndarray, rate: int) -> np.ndarray:
        """``waveform`` ``(samples,)`` of ``rate`` Hz to ``(mels or n_fft // 2 + 1, frames)``.

        Transformed in float64. Energies are float32 from there on where none matters that float32 lacks: nothing is
        subtracted from them any more, and below ``floor`` they are not told apart.
        """
        half = self.length // 2
        if self.frames(len(waveform)) < 1 or (self.center and self.pad == "reflect" and len(waveform) <= half):
            raise FeedError(f"has {len(waveform)} samples, too few for a frame of {self.length}")
        if self.center:
            waveform = np.pad(waveform, half, mode=self.pad)
        frames = np.lib.stride_tricks.sliding_window_view(waveform, self.length)[:: self.hop]
        frames = frames[: len(frames) - self.drop_last]
        blocks = [self._block(frames[start : start + BLOCK], rate) for start in range(0, len(frames), BLOCK)]
        return np.concatenate(blocks).T

    def _block(self, frames: np.ndarray, rate: int) -> np.ndarray:
        if self.remove_offset or self.preemphasis is not None:
            frames = frames.astype(np.float64)
        if self.remove_offset:
            frames -= frames.mean(axis=1, keepdims=True)
        if self.preemphasis is not None:
            frames[:, 1:] -= self.preemphasis * frames[:, :-1]
            frames[:, 0] *= 1 - self.preemphasis
        weighed = np.multiply(frames, window(self.window, self.length, self.periodic), dtype=np.float64)
        parts = np.fft.rfft(weighed, self.n_fft).view(np.float64)   # real and imaginary ones in turn
        np.square(parts, out=parts)                             # several times quicker than the absolute value
        narrow = np.float32 if self.power == 2 and self.log != "none" and self.floor >= SMALLEST else np.float64
        energy: np.ndarray = np.add(parts[:, ::2], parts[:, 1::2]).astype(narrow, copy=False)
        spectrum = energy if self.power == 2 else energy ** (self.power / 2)
        if self.mel is not None:
            spectrum = spectrum @ mel_filters(self.mel, self.n_fft, rate).astype(narrow, copy=False)
        if self.log == "none":
            return spectrum
        logarithm = np.log if self.log == "ln" else np.log10
        scale = 20 / self.power if self.log == "db" else 1.0    # 10 of a power, 20 of an amplitude
        levels: np.ndarray = np.maximum(spectrum, self.floor, out=spectrum)
        logarithm(levels, out=levels)
        return levels if scale == 1 else np.multiply(levels, scale, out=levels)


@functools.lru_cache(maxsize=8)
def window(kind: Window, length: int, periodic: bool = True) -> np.ndarray:
    """The window's ``length`` values, float64; a periodic one leaves out the last of ``length + 1``."""
    size = length + 1 if periodic else length
    if kind == "boxcar":
        values = np.ones(size)
    elif kind == "hamming":
        values = np.hamming(size)
    else:
        values = np.hanning(size)
    if kind == "povey":     # Kaldi's
        values = values**0.85
    return values[:length]


@functools.lru_cache(maxsize=8)
def mel_filters(mel: Mel, n_fft: int, rate: int) -> np.ndarray:
    """Weights ``(n_fft // 2 + 1, mels)``, float64, of each frequency in each filter.

    Raises:
        RuntimesError: if the filters reach beyond half the rate.

    Source: Slaney, Auditory Toolbox (1998); O'Shaughnessy's formula for ``htk``; Kaldi's feature-functions for
    ``kaldi``.
    """
    if mel.high_hz > rate / 2:
        raise RuntimesError(f"has mel filters up to {mel.high_hz} Hz, beyond half of {rate} Hz")
    low, high = _to_mel(np.array([mel.low_hz, mel.high_hz]), mel.scale).tolist()
    edges = np.linspace(low, high, mel.count + 2)
    hertz = np.arange(n_fft // 2 + 1) * (rate / n_fft)
    if mel.in_mel:
        points, at = edges, _to_mel(hertz, mel.scale)
    else:
        points, at = _from_mel(edges, mel.scale), hertz
    rising = (at[:, None] - points[:-2]) / np.diff(points)[:-1]
    falling = (points[2:] - at[:, None]) / np.diff(points)[1:]
    filters = np.clip(np.minimum(rising, falling), 0, None)
    if mel.norm == "slaney":
        ends = _from_mel(edges, mel.scale)
        filters *= 2 / (ends[2:] - ends[:-2])
    return np.asarray(filters)


def _to_mel(hertz: np.ndarray, scale: MelScale) -> np.ndarray:
    if scale == "htk":
        return 2595 * np.log10(1 + hertz / 700)
    if scale == "kaldi":
        return 1127 * np.log(1 + hertz / 700)
    above = 15 + np.log(np.maximum(hertz, 1e-9) / 1000) * (27 / math.log(6.4))
    return np.where(hertz >= 1000, above, 3 * hertz / 200)     # linear below 1 kHz


def _from_mel(mels: np.ndarray, scale: MelScale) -> np.ndarray:
    if scale == "htk":
        return 700 * (10 ** (mels / 2595) - 1)
    if scale == "kaldi":
        return 700 * (np.exp(mels / 1127) - 1)
    return np.where(mels >= 15, 1000 * np.exp((mels - 15) * (math.log(6.4) / 27)), 200 * mels / 3)
