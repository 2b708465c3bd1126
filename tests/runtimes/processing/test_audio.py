"""Sounds: how they are read, another rate, spectra and mel filters by hand and against scipy, and what is refused."""

from __future__ import annotations

import io
import math
import sys
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import signal

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing import parse_processing
from runtimes.processing.audio import AudioInput
from runtimes.processing.resample import KAISER_BETA, ROLLOFF, ZERO_CROSSINGS, resample
from runtimes.processing.spectrogram import Mel, Spectrogram, mel_filters, window
from runtimes.processing.waveform import read_audio
from runtimes.spec import Dim
from tests.runtimes.processing.describing import processor, spec

FRAMES = {"op": "spectrogram", "n_fft": 8, "hop": 1}


def record(*steps: dict[str, Any], rate: int = 8000, **keys: Any) -> AudioInput:
    made = {"kind": "audio", "from": "x", "rate": rate, "steps": list(steps), **keys}
    entry = parse_processing({"inputs": {"x": made}, "outputs": {}}, "test").inputs["x"]
    assert isinstance(entry, AudioInput)
    return entry


def tone(hertz: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)


def wav(samples: np.ndarray, rate: int, width: int) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


# reading

def test_integers_become_minus_one_to_one_and_channels_their_mean() -> None:
    assert read_audio(np.array([0, 16384, -32768], np.int16), 8000)[0].tolist() == [0, 0.5, -1]
    assert read_audio(np.array([128, 192, 0], np.uint8), 8000)[0].tolist() == [0, 0.5, -1]
    assert read_audio(np.array([2**30], np.int32), 8000)[0].tolist() == [0.5]
    assert read_audio(np.array([[0.5, 0.0], [0.25, -0.25]], np.float32), 8000)[0].tolist() == [0.25, 0]


def test_the_forms_of_a_waveform() -> None:
    array = np.array([0.5, 0.25])
    for value in ((array, 44100), {"array": array, "sampling_rate": 44100},
                  {"array": [0.5, 0.25], "sampling_rate": 44100}, (array, np.int64(44100))):
        samples, rate = read_audio(value, 8000)
        assert (samples.tolist(), rate) == ([0.5, 0.25], 44100)
    assert read_audio(array, 8000)[1] == 8000
    assert read_audio({"array": [1, 0, -1], "sampling_rate": 8000}, 8000)[0].tolist() == [1, 0, -1]    # as JSON has 1.0


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wav_files_of_every_width(width: int, tmp_path: Path) -> None:
    values = np.array([0, 0.5, -0.5, -1])
    if width == 1:
        samples = (values * 128 + 128).astype(np.uint8)
    elif width == 3:
        samples = (values * 2**23).astype("<i4").view(np.uint8).reshape(-1, 4)[:, :3].copy().reshape(-1)
    else:
        samples = (values * 2 ** (8 * width - 1)).astype(f"<i{width}")
    data = wav(samples if width != 3 else samples.view(np.uint8), 22050, width)
    (tmp_path / "a.wav").write_bytes(data)
    for value in (data, tmp_path / "a.wav", str(tmp_path / "a.wav")):
        found, rate = read_audio(value, 8000)
        assert (found.tolist(), rate) == (values.tolist(), 22050)


def test_other_formats_through_soundfile_and_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    soundfile = pytest.importorskip("soundfile", reason="soundfile is not installed")
    for format, subtype in (("FLAC", "PCM_16"), ("WAV", "FLOAT")):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.array([0.0, 0.5, -0.25]), 16000, format=format, subtype=subtype)
        assert read_audio(buffer.getvalue(), 8000)[0].tolist() == [0, 0.5, -0.25]
    with pytest.raises(FeedError, match="is no sound file that can be read"):
        read_audio(b"nothing", 8000)
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(FeedError, match=r'is no WAV file of whole numbers .* pip install "compress-edge\[audio\]"'):
        read_audio(buffer.getvalue(), 8000)
    with pytest.raises(FeedError, match=r"is no WAV file of whole numbers \(it ends too early\); for other formats"):
        read_audio(b"RIF", 8000)


@pytest.mark.parametrize(("value", "message"), [
    (np.array([0.0, np.nan]), r"has a value that is not finite \(nan\) at sample 1"),
    (np.array([np.inf]), r"not finite \(inf\) at sample 0"),
    ({"array": ["a"], "sampling_rate": 8000}, "has a list of samples that is not one of numbers"),
    ({"array": [[0.5], [0.5, 1]], "sampling_rate": 8000}, "has a list of samples that is not one of numbers"),
    (np.zeros(0), r"is float64 of shape \(0,\), expected an array of samples"),
    (np.zeros((2, 8000)), r"has shape \(2, 8000\), expected \(samples, channels\): transpose it"),
    (np.zeros((2, 2, 2)), r"of shape \(2, 2, 2\), expected"),
    (np.array(["a"]), "is <U1 of shape"),
    ((np.zeros(4), 0), "has the rate 0, expected a whole number of Hz up to 384000"),
    ((np.zeros(4), 8000.5), "has the rate 8000.5"),
    ((np.zeros(4), True), "has the rate True"),
    ("a.wav", "names 'a.wav', which cannot be read"),
    (None, "is a NoneType, expected an array of samples"),
    (np.broadcast_to(np.float32(0), (2**26 + 1,)), "has 67108865 samples, more than 67108864"),
    ((np.broadcast_to(np.float32(0), (2**20,)), 10), "has 1048576 samples of 10 Hz, too many"),
    (wav(np.zeros(2, np.int16), 8000, 2)[:40], "is no sound file|no WAV file"),
])
def test_what_is_no_waveform_is_refused(value: Any, message: str) -> None:
    entry = {"kind": "audio", "from": "speech", "rate": 8000}
    made = processor({"x": entry}, takes=[spec("x", "float32", Dim("t", 1, 1, 9))])
    with pytest.raises(FeedError, match=message) as caught:
        made.feed({"speech": value})
    assert str(caught.value).startswith("raw input 'speech' ")


def test_damaged_wav_files_are_refused_or_read() -> None:
    whole = wav((tone(440, 8000, 0.02) * 2**14).astype(np.int16), 8000, 2)
    rng, refused = np.random.default_rng(0), 0
    for _ in range(500):
        changed = bytearray(whole)
        for at in rng.integers(0, 48, rng.integers(1, 5)):
            changed[at] = rng.integers(256)
        try:
            assert read_audio(bytes(changed), 8000)[0].ndim == 1
        except FeedError:
            refused += 1
    assert refused > 100


# another rate

@pytest.mark.parametrize(("rate", "wanted"), [(44100, 16000), (8000, 16000), (48000, 16000), (16000, 22050)])
def test_a_tone_stays_the_tone_it_was(rate: int, wanted: int) -> None:
    """1 kHz, at 0.25 of the lowest Nyquist frequency here: equal to the tone at the other rate, within 1e-4."""
    made = resample(tone(1000, rate), rate, wanted)
    expected = tone(1000, wanted)
    assert len(made) == math.ceil(rate * 0.5 * wanted / rate)
    inner = slice(wanted // 20, -wanted // 20)      # away from the silence around
    np.testing.assert_allclose(made[inner], expected[: len(made)][inner], atol=1e-4)


def test_the_filters_promises() -> None:
    """Of 44.1 to 16 kHz: flat within 0.001 dB to 0.9 of the new Nyquist frequency, 90 dB down from it on."""
    inner = slice(1000, -1000)
    for hertz in (100, 3000, 7200):
        level = np.sqrt(2 * np.mean(resample(tone(hertz, 44100, 1), 44100, 16000)[inner] ** 2))
        assert abs(20 * np.log10(level)) < 0.001, hertz
    for hertz in (8000, 9000, 15000, 21000):
        level = np.sqrt(2 * np.mean(resample(tone(hertz, 44100, 1), 44100, 16000)[inner] ** 2))
        assert 20 * np.log10(level) < -90, hertz


@pytest.mark.parametrize(("rate", "wanted"), [(3, 2), (2, 3), (441, 160), (1, 4)])
def test_it_is_the_polyphase_filter_that_scipy_has(rate: int, wanted: int) -> None:
    samples = np.random.default_rng(0).standard_normal(700)
    cutoff = ROLLOFF * min(1, wanted / rate)
    half = math.ceil(ZERO_CROSSINGS / cutoff)
    times = np.arange(-half * wanted, half * wanted + 1) / wanted
    taps = cutoff * np.sinc(cutoff * times) * signal.windows.kaiser(len(times), KAISER_BETA)
    whole = signal.upfirdn(taps, samples, wanted, 1)[half * wanted :: rate]
    np.testing.assert_allclose(resample(samples, rate, wanted), whole[: math.ceil(700 * wanted / rate)], atol=1e-12)


def test_one_rate_to_itself_changes_nothing() -> None:
    assert resample(np.array([1.0, 2.0]), 8000, 8000).tolist() == [1, 2]


# spectra

def test_the_hann_window_by_hand() -> None:
    np.testing.assert_allclose(window("hann", 4), [0, 0.5, 1, 0.5], atol=1e-15)             # sin(pi n / 4) squared
    np.testing.assert_allclose(window("hann", 5, False), [0, 0.5, 1, 0.5, 0], atol=1e-15)   # the same, to 4
    np.testing.assert_allclose(window("povey", 5, False), [0, 0.5**0.85, 1, 0.5**0.85, 0], atol=1e-15)
    np.testing.assert_allclose(window("hamming", 4), [0.08, 0.54, 1, 0.54], atol=1e-15)
    assert window("boxcar", 3).tolist() == [1, 1, 1]


def test_mel_filters_by_hand() -> None:
    """Two filters on the slaney scale, linear below 1 kHz: edges 0, 300, 600, 900 Hz, bins every 100 Hz."""
    filters = mel_filters(Mel(count=2, high_hz=900, norm="none"), 20, 2000)
    third = 1 / 3
    np.testing.assert_allclose(filters[:, 0], [0, third, 2 * third, 1, 2 * third, third, 0, 0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(filters[:, 1], [0, 0, 0, 0, third, 2 * third, 1, 2 * third, third, 0, 0], atol=1e-12)
    normed = mel_filters(Mel(count=2, high_hz=900), 20, 2000)
    np.testing.assert_allclose(normed, filters * 2 / 600, atol=1e-12)      # each triangle is 600 Hz wide, of area 1


def test_the_mel_scales_by_hand() -> None:
    """The one filter of htk between 0 and 1 kHz peaks at 700 * (sqrt(1 + 1000 / 700) - 1) = 390.9 Hz."""
    peak = 700 * (math.sqrt(1 + 1000 / 700) - 1)
    for scale in ("htk", "kaldi"):
        filters = mel_filters(Mel(count=1, high_hz=1000, scale=scale, norm="none"), 200, 2000)[:, 0]
        np.testing.assert_allclose(filters[[30, 50]], [300 / peak, (1000 - 500) / (1000 - peak)], rtol=1e-12)
    above = mel_filters(Mel(count=1, low_hz=1000, high_hz=6400, norm="none"), 128, 12800)[:, 0]     # logarithmic there
    top = math.sqrt(1000 * 6400)        # 2530 Hz
    np.testing.assert_allclose(above[[25, 26]], [1500 / (top - 1000), 3800 / (6400 - top)], rtol=1e-9)
    in_mel = mel_filters(Mel(count=1, high_hz=1000, scale="htk", norm="none", in_mel=True), 200, 2000)[:, 0]
    np.testing.assert_allclose(in_mel[30], 2 * math.log10(1 + 300 / 700) / math.log10(1 + 1000 / 700), rtol=1e-12)


def test_the_power_of_a_tone_by_hand() -> None:
    """A cosine on bin 2 under a boxcar of 8: its line is (8 / 2) squared, the others are 0."""
    samples = np.cos(2 * np.pi * 2 * np.arange(8) / 8)
    made = Spectrogram(n_fft=8, hop=8, window="boxcar", center=False)(samples, 8000)
    np.testing.assert_allclose(made, [[0], [0], [16], [0], [0]], atol=1e-20)
    logs: dict[Any, float] = {"log10": math.log10(16), "ln": math.log(16), "db": 10 * math.log10(16)}
    for log, expected in logs.items():
        made = Spectrogram(n_fft=8, hop=8, window="boxcar", center=False, log=log)(samples, 8000)
        assert made[2, 0] == pytest.approx(expected)
    step = Spectrogram(n_fft=8, hop=8, window="boxcar", center=False, power=1.0, log="db", floor=1e-5)
    amplitude = step(samples, 8000)
    assert amplitude[2, 0] == pytest.approx(20 * math.log10(4))
    assert amplitude[0, 0] == pytest.approx(-100)       # the floor


@pytest.mark.parametrize("pad", ["reflect", "constant"])
def test_a_centred_spectrum_is_scipys(pad: Any) -> None:
    samples = np.random.default_rng(0).standard_normal(5000)
    made = Spectrogram(n_fft=64, hop=16, pad=pad)(samples, 8000)
    around = np.pad(samples, 32, mode=pad)
    expected = signal.ShortTimeFFT(signal.windows.hann(64, sym=False), 16, 8000).spectrogram(around, p0=2, p1=315)
    np.testing.assert_allclose(made, expected[:, : made.shape[1]], rtol=1e-9)
    assert made.shape == (33, 1 + 5000 // 16)


def test_many_frames_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = np.random.default_rng(0).standard_normal(3000)
    step = Spectrogram(n_fft=32, hop=8, preemphasis=0.97, remove_offset=True)
    whole = step(samples, 8000)
    monkeypatch.setattr("runtimes.processing.spectrogram.BLOCK", 7)
    np.testing.assert_array_equal(step(samples, 8000), whole)


# steps

def test_fit_by_hand() -> None:
    samples = np.array([1.0, 2, 3])
    def fitted(length: int, **keys: Any) -> list[float]:
        made: list[float] = record({"op": "fit", "length": length, **keys}).prepare(samples).array.tolist()
        return made

    assert fitted(2) == [1, 2]
    assert fitted(1, keep="middle") == [2]
    assert fitted(5) == [1, 2, 3, 0, 0]
    assert fitted(7, fill="repeat") == [1, 2, 3, 1, 2, 3, 1]
    assert fitted(7, fill="repeat_zero") == [1, 2, 3, 1, 2, 3, 0]


def test_the_other_steps_by_hand() -> None:
    samples = np.array([1.0, 2, 3])
    made = record({"op": "standardize", "epsilon": 1e-12}).prepare(samples).array
    np.testing.assert_allclose(made, [-math.sqrt(1.5), 0, math.sqrt(1.5)], rtol=1e-6)
    steps = {"op": "floor_below_max", "range": 1.5}, {"op": "rescale", "scale": 2, "offset": 1}
    assert record(*steps).prepare(samples).array.tolist() == [4, 5, 7]
    assert record({"op": "normalize", "mean": 1, "std": 2}).prepare(samples).array.tolist() == [0, 0.5, 1]


def test_layout_copies_and_values_per_feature() -> None:
    steps = [{"op": "spectrogram", "n_fft": 8, "hop": 4, "center": False}]
    samples = np.random.default_rng(0).standard_normal(20)
    plain = record(*steps).prepare(samples).array
    assert plain.shape == (5, 4)
    np.testing.assert_array_equal(record(*steps, layout="TF", copies=2).prepare(samples).array, [plain.T] * 2)
    normal = {"op": "normalize", "mean": [0, 1, 2, 3, 4], "std": 1}
    np.testing.assert_allclose(record(*steps, normal).prepare(samples).array, plain - np.arange(5)[:, None], atol=1e-6)
    with pytest.raises(FeedError, match=r"has shape \(5, 4\) when normalised with 2 values a frame"):
        record(*steps, {**normal, "mean": [0, 1]}).prepare(samples)


def test_a_batch_is_padded_with_its_mask() -> None:
    time = Dim("time", 1, 8, 100)
    takes = [spec("x", "float32", time), spec("mask", "int32", time)]
    entry = {"kind": "audio", "from": "a", "rate": 8000, "pad_value": -1}
    made = processor({"x": entry, "mask": {"kind": "mask", "of": "x"}}, takes=takes)
    feed = made.feed({"a": [np.array([0.5]), np.array([0.25, 0.125])]})
    np.testing.assert_array_equal(feed["x"], [[0.5, -1], [0.25, 0.125]])
    np.testing.assert_array_equal(feed["mask"], [[1, 0], [1, 1]])


def test_the_mask_of_frames_counts_what_was_sound() -> None:
    entry = record({"op": "fit", "length": 32}, {"op": "spectrogram", "n_fft": 8, "hop": 8})
    made = entry.prepare(np.ones(10), mask=True)
    assert made.mask is not None
    assert made.mask.tolist() == [True, True, False, False, False]      # those at 0 and 8


@pytest.mark.parametrize(("keys", "message"), [
    ({"rate": 0}, "has the rate 0"),
    ({"rate": 8000.0}, "'rate' must be an integer"),
    ({"copies": 65}, "has the number of copies 65"),
    ({"steps": [{"op": "fit", "length": 0}]}, "has the length 0"),
    ({"steps": [{"op": "fit", "length": 10**12}]}, "has the length 1000000000000"),
    ({"steps": [{"op": "standardize", "epsilon": 0}]}, "has the epsilon 0"),
    ({"steps": [{"op": "floor_below_max", "range": -1}]}, "has the range -1"),
    ({"steps": [{"op": "normalize", "mean": 0, "std": 0}]}, "has the std 0"),
    ({"steps": [{"op": "spectrogram", "n_fft": 2**17, "hop": 1}]}, "has n_fft 131072"),
    ({"steps": [{"op": "spectrogram", "n_fft": 8, "hop": 0}]}, "has the hop 0"),
    ({"steps": [{**FRAMES, "frame": 9}]}, "has the frame 9"),
    ({"steps": [{**FRAMES, "power": 0}]}, "has the power 0"),
    ({"steps": [{**FRAMES, "floor": 0}]}, "has the floor 0"),
    ({"steps": [{**FRAMES, "preemphasis": 2}]}, "has the preemphasis 2"),
    ({"steps": [{**FRAMES}] * 2}, "has the step 'spectrogram' twice"),
    ({"steps": [{**FRAMES, "mel": {"count": 0, "high_hz": 1}}]}, "number of mel filters 0"),
    ({"steps": [{**FRAMES, "mel": {"count": 1, "high_hz": 0}}]}, "from 0.0 to 0.* a rising"),
    ({"steps": [{**FRAMES, "mel": {"count": 1, "high_hz": 5000}}]},
     "has mel filters up to 5000.* Hz, beyond half of 8000 Hz"),
])
def test_bad_records(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimesError, match=message):
        parse_processing({"inputs": {"x": {"kind": "audio", "from": "x", "rate": 8000, **keys}}, "outputs": {}}, "test")


def test_a_sound_too_short_for_a_frame() -> None:
    for center in (True, False):
        with pytest.raises(FeedError, match="has 4 samples, too few for a frame of 16"):
            record({"op": "spectrogram", "n_fft": 16, "hop": 8, "center": center}).prepare(np.zeros(4))
