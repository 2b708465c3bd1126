"""Change of a waveform's sampling rate by an exact ratio: a windowed-sinc filter, one phase at a time."""

from __future__ import annotations

import math

import numpy as np

ZERO_CROSSINGS = 64         # of the sinc, on each side
KAISER_BETA = 9.6           # 96 dB between the passband and the stopband
ROLLOFF = 0.95              # of the lower Nyquist frequency; the passband ends at about 0.9 of it


def resample(waveform: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """``waveform`` ``(samples,)`` of ``rate`` Hz, float64, at ``wanted`` Hz: ``ceil(samples * wanted / rate)`` samples.

    The filter is a sinc under a Kaiser window of :data:`ZERO_CROSSINGS` periods a side, cut at :data:`ROLLOFF` of the
    lower of both Nyquist frequencies: flat within 0.001 dB up to 0.9 of it, 90 dB down from the frequency itself on.
    What is beyond the ends counts as silence. No delay: sample 0 stays at time 0.

    Source: J. O. Smith, Digital Audio Resampling, ccrma.stanford.edu/~jos/resample.
    """
    if rate == wanted:
        return waveform
    divisor = math.gcd(rate, wanted)
    up, down = wanted // divisor, rate // divisor
    count = -(-len(waveform) * up // down)
    cutoff = ROLLOFF * min(1.0, up / down)      # as a share of the input's Nyquist frequency
    half = math.ceil(ZERO_CROSSINGS / cutoff)   # input samples on each side
    padded = np.concatenate([np.zeros(half), waveform, np.zeros(half + down + 1)])
    result = np.empty(count)
    offsets = np.arange(-half, half + 1)
    for phase in range(min(up, count)):
        position = phase * down                 # of the output sample, in 1/up of an input sample
        taps = _taps(offsets - position % up / up, cutoff, half)
        first = position // up                  # the input sample it falls on; those of this phase are ``down`` apart
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(offsets))[first::down]
        outputs = -(-(count - phase) // up)
        result[phase::up] = windows[:outputs] @ taps
    return result


def _taps(times: np.ndarray, cutoff: float, half: int) -> np.ndarray:
    """The filter at ``times``, in input samples; 0 outside the window."""
    window = np.sqrt(np.clip(1 - (times / half) ** 2, 0, None))
    taps = cutoff * np.sinc(cutoff * times) * np.i0(KAISER_BETA * window) / np.i0(KAISER_BETA)
    return np.where(np.abs(times) <= half, taps, 0.0)
