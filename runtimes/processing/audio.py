"""Waveforms to tensors: mono, another rate, a length, normalised, log-mel features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Union

import numpy as np

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing.fields import in_range
from runtimes.processing.resample import resample
from runtimes.processing.sample import Padding, Sample, Side
from runtimes.processing.spectrogram import Spectrogram, mel_filters
from runtimes.processing.waveform import HIGHEST_RATE, MOST_SAMPLES, read_audio


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Cut or fill to ``samples``, of a waveform, or ``frames``, of a spectrogram.

    What is too short is followed by zeros, or first by whole repetitions of itself (``repeat_zero``), or by itself up
    to the end (``repeat``). What is too long keeps its ``start`` or its ``middle``.
    """

    KIND: ClassVar[str] = "fit"
    length: int
    fill: Literal["zero", "repeat", "repeat_zero"] = "zero"
    keep: Literal["start", "middle"] = "start"

    def __post_init__(self) -> None:
        in_range(self.length, 1, MOST_SAMPLES, "the length")


@dataclass(frozen=True, kw_only=True)
class Standardize:
    """Zero mean and unit variance of the whole sample: ``(x - mean(x)) / sqrt(var(x) + epsilon)``."""

    KIND: ClassVar[str] = "standardize"
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        in_range(self.epsilon, 1e-12, 1, "the epsilon")


@dataclass(frozen=True, kw_only=True)
class FloorBelowMax:
    """Raise what is more than ``range`` below the sample's largest value to that: ``max(x, max(x) - range)``."""

    KIND: ClassVar[str] = "floor_below_max"
    range: float

    def __post_init__(self) -> None:
        in_range(self.range, 0, 1e6, "the range")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """``value * scale + offset``."""

    KIND: ClassVar[str] = "rescale"
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Normalize:
    """``(value - mean) / std``; one number, or one a feature of a spectrogram."""

    KIND: ClassVar[str] = "normalize"
    mean: float | tuple[float, ...]
    std: float | tuple[float, ...]

    def __post_init__(self) -> None:
        if not np.all(np.asarray(self.std) > 0):
            raise RuntimesError(f"has the std {self.std}, expected numbers above 0")

    def of(self, array: np.ndarray) -> np.ndarray:
        for values in (self.mean, self.std):
            if isinstance(values, tuple) and (array.ndim != 2 or len(values) != len(array)):
                raise FeedError(f"has shape {array.shape} when normalised with {len(values)} values a frame")
        mean, std = (np.array(v, array.dtype)[:, None] if isinstance(v, tuple) else v for v in (self.mean, self.std))
        return np.asarray((array - mean) / std)


AudioStep = Union[Fit, Standardize, Spectrogram, FloorBelowMax, Scale, Normalize]  # noqa: UP007 - read at run time


@dataclass(frozen=True, kw_only=True)
class AudioInput:
    """A waveform: ``(array, rate)``, ``{"array": ..., "sampling_rate": ...}``, an array of the model's rate, or a WAV.

    An array is ``(samples,)`` or ``(samples, channels)``, float in -1..1 or integers; channels are averaged. A WAV is a
    path or bytes; other formats are read where soundfile is installed. Steps run on ``(samples,)``, in float32 where
    that holds the samples and else in float64, and after ``spectrogram`` on ``(features, frames)``. ``layout`` of a
    spectrogram: features first (``FT``) or time first (``TF``); ``copies`` adds a leading axis of that many equal ones.
    The samples of a batch are padded with ``pad_value`` to the longest.
    """

    KIND: ClassVar[str] = "audio"
    from_: str
    rate: int
    steps: tuple[AudioStep, ...] = ()
    layout: Literal["FT", "TF"] = "FT"
    copies: int | None = None
    pad_value: float = 0.0
    pad_side: Side = "right"

    def __post_init__(self) -> None:
        in_range(self.rate, 1, HIGHEST_RATE, "the rate")
        in_range(self.copies, 1, 64, "the number of copies")
        spectra = [step for step in self.steps if isinstance(step, Spectrogram)]
        if len(spectra) > 1:
            raise RuntimesError("has the step 'spectrogram' twice")
        for step in spectra:
            if step.mel is not None:
                mel_filters(step.mel, step.n_fft, self.rate)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.from_,)

    @property
    def padding(self) -> Padding:
        return Padding(fill=self.pad_value, side=self.pad_side)

    def prepare(self, value: Any, *, mask: bool = False) -> Sample:
        """One sample; its mask has the axis of time alone, True where there was sound before any step filled it up."""
        array, rate = read_audio(value, self.rate)
        if rate != self.rate and len(array) * self.rate > MOST_SAMPLES * rate:
            raise FeedError(f"has {len(array)} samples of {rate} Hz, too many: cut it in parts")
        array = resample(array, rate, self.rate)
        valid = len(array)
        for step in self.steps:
            if isinstance(step, Spectrogram):
                array, valid = step(array, self.rate), -(-valid // step.hop)
            elif isinstance(step, Fit):
                array, valid = _fit(array, step), min(valid, step.length)
            else:
                array = _apply(step, array)
        frames = array.shape[-1]
        if array.ndim == 2 and self.layout == "TF":
            array = array.T
        array = array.astype(np.float32, copy=False)
        if self.copies is not None:
            array = np.repeat(array[None], self.copies, axis=0)
        return Sample(array, mask=np.arange(frames) < valid if mask else None)


def _fit(array: np.ndarray, step: Fit) -> np.ndarray:
    size = array.shape[-1]
    if size > step.length:
        start = (size - step.length) // 2 if step.keep == "middle" else 0
        return array[..., start : start + step.length]
    if step.fill != "zero":
        times = step.length // size if step.fill == "repeat_zero" else -(-step.length // size)
        array = np.concatenate([array] * times, axis=-1)[..., : step.length]
    if array.shape[-1] == step.length:
        return array
    filled = np.zeros((*array.shape[:-1], step.length), array.dtype)
    filled[..., : array.shape[-1]] = array
    return filled


def _apply(step: Standardize | FloorBelowMax | Scale | Normalize, array: np.ndarray) -> np.ndarray:
    if isinstance(step, Standardize):
        centred: np.ndarray = array - array.mean()
        centred /= np.sqrt(np.mean(centred * centred) + step.epsilon)
        return centred
    if isinstance(step, FloorBelowMax):
        return np.asarray(np.maximum(array, array.max() - step.range))
    if isinstance(step, Scale):
        return array * step.scale + step.offset
    return step.of(array)
