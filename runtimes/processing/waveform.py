"""Waveforms as apps pass them: an array with its rate, or a file."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.errors import FeedError

MOST_SAMPLES = 2**26        # 70 minutes at 16 kHz
MOST_BYTES = 2**29          # of a file
HIGHEST_RATE = 384_000
INSTALL = 'install soundfile: pip install "compress-edge[audio]"'


def read_audio(value: Any, rate: int) -> tuple[np.ndarray, int]:
    """What the app passed as ``((samples,) float64 in -1..1, its rate in Hz)``; a bare array has ``rate``.

    Raises:
        FeedError: if it is no waveform, holds no sample, too many, or one that is not finite.
    """
    if isinstance(value, Mapping) and value.keys() >= {"array", "sampling_rate"}:
        value = (_listed(value["array"]), value["sampling_rate"])
    if isinstance(value, tuple) and len(value) == 2:
        value, rate = value[0], _checked_rate(value[1])
    elif isinstance(value, str | Path | bytes | bytearray | memoryview):
        value, rate = _read_file(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu" or value.ndim not in (1, 2) or not value.size:
        what = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else f"a {type(value).__name__}"
        raise FeedError(
            f"is {what}, expected an array of samples, (array, rate), a path, or the bytes of a WAV file")
    if value.ndim == 2 and value.shape[1] > 32:
        raise FeedError(f"has shape {value.shape}, expected (samples, channels): transpose it")
    if len(value) > MOST_SAMPLES:
        raise FeedError(f"has {len(value)} samples, more than {MOST_SAMPLES}: cut it in parts")
    floats = _to_float(value)
    if not np.isfinite(floats).all():
        bad = int(np.argwhere(~np.isfinite(floats))[0][0])
        raise FeedError(f"has a value that is not finite ({floats[bad]}) at sample {bad}")
    return floats.mean(axis=1, dtype=np.float64) if floats.ndim == 2 else floats, rate


def _listed(value: Any) -> Any:
    """The samples of a list, as JSON brings them, are floats whatever they look like; else ``value``."""
    if not isinstance(value, list):
        return value
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise FeedError(f"has a list of samples that is not one of numbers ({error})") from error


def _to_float(array: np.ndarray) -> np.ndarray:
    """In -1..1, of float32 where that holds each value exactly, else of float64."""
    wide = np.float64 if array.dtype.itemsize > (4 if array.dtype.kind == "f" else 2) else np.float32
    floats: np.ndarray = array.astype(wide, copy=False)
    if array.dtype.kind == "f":
        return floats
    size = 2.0 ** (8 * array.dtype.itemsize - 1)
    return (floats - (size if array.dtype.kind == "u" else 0)) / size


def _checked_rate(rate: Any) -> int:
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 1 <= rate <= HIGHEST_RATE:
        raise FeedError(f"has the rate {rate!r:.80}, expected a whole number of Hz up to {HIGHEST_RATE}")
    return int(rate)


def _read_file(value: str | Path | bytes | bytearray | memoryview) -> tuple[np.ndarray, int]:
    if isinstance(value, str | Path):
        try:
            with Path(value).open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            raise FeedError(f"names {str(value)!r:.200}, which cannot be read ({error})") from error
    else:
        data = bytes(value)
    if len(data) > MOST_BYTES:
        raise FeedError(f"has more than {MOST_BYTES} bytes: cut it in parts")
    try:
        return _read_wav(data)
    except FeedError as error:
        return _read_other(data, error)


def _read_wav(data: bytes) -> tuple[np.ndarray, int]:
    """A WAV file of whole numbers, with the standard library."""
    import wave

    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.readframes(min(file.getnframes(), len(data)))
    except (wave.Error, EOFError, RuntimeError, ValueError, OverflowError) as error:
        raise FeedError(f"is no WAV file of whole numbers ({str(error) or 'it ends too early'})") from error
    if width not in (1, 2, 3, 4) or not 1 <= channels <= 32:
        raise FeedError(f"is a WAV file of {channels} channels of {width} bytes, which is not read")
    frames = frames[: len(frames) // (width * channels) * width * channels]
    if width == 3:      # no numpy type has 24 bits: make them the upper ones of 32
        wide = np.zeros((len(frames) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, 3)
        samples = wide.view("<i4")[:, 0]
    else:
        samples = np.frombuffer(frames, {1: "u1", 2: "<i2", 4: "<i4"}[width])
    return samples.reshape(-1, channels), _checked_rate(rate)


def _read_other(data: bytes, why: FeedError) -> tuple[np.ndarray, int]:
    try:
        import soundfile
    except (ImportError, OSError):
        raise FeedError(f"{why}; for other formats {INSTALL}") from why
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            samples = file.read(MOST_SAMPLES + 1, dtype="float64", always_2d=True)
            return samples, _checked_rate(file.samplerate)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ValueError) as error:
        raise FeedError(f"is no sound file that can be read ({error})") from error
