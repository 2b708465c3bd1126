"""The feature extractor of a folder as the steps of a record: waveforms, and CLAP's spectrograms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.errors import CompressError
from compress.huggingface.folder import Folder
from compress.huggingface.library import LOCAL, first_line, library

FILL = {"repeatpad": "repeat_zero", "repeat": "repeat", "pad": "zero"}
FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True, kw_only=True)
class Waveform:
    """A waveform at ``rate`` Hz; ``masked`` where the network is told what is padding."""

    rate: int
    masked: bool
    entry: dict[str, Any]       # of the samples, from the raw input ``audio``


def read_waveform(folder: Folder) -> Waveform:
    """The settings of a ``Wav2Vec2FeatureExtractor``.

    Raises:
        CompressError: if the folder has none, or one of another kind.
    """
    extractor = _extractor(folder, "Wav2Vec2FeatureExtractor")
    if extractor.feature_size != 1:
        raise CompressError(f"{folder.path}: its feature extractor has feature_size {extractor.feature_size}, not 1")
    steps = [{"op": "standardize", "epsilon": 1e-7}] if extractor.do_normalize else []
    entry = {"kind": "audio", "from": "audio", "rate": int(extractor.sampling_rate), "steps": steps,
             "pad_value": float(extractor.padding_value), "pad_side": extractor.padding_side}  # fmt: skip
    return Waveform(rate=int(extractor.sampling_rate), masked=bool(extractor.return_attention_mask), entry=entry)


def read_spectrogram(folder: Folder) -> tuple[dict[str, Any], tuple[int, int, int]]:
    """The settings of a ``ClapFeatureExtractor``, and the shape ``(1, frames, features)`` it gives.

    Raises:
        CompressError: as :func:`read_waveform`, or if it stacks parts of long sounds.
    """
    extractor = _extractor(folder, "ClapFeatureExtractor")
    if extractor.truncation != "rand_trunc" or extractor.padding not in FILL:
        raise CompressError(
            f"{folder.path}: its feature extractor has truncation {extractor.truncation!r} and padding "
            f"{extractor.padding!r}: known are 'rand_trunc', and {', '.join(map(repr, FILL))}"
        )
    samples = int(extractor.max_length_s * extractor.sampling_rate)
    mel = {"count": extractor.feature_size, "low_hz": extractor.frequency_min, "high_hz": extractor.frequency_max,
           "scale": "slaney", "norm": "slaney"}  # fmt: skip
    steps = [{"op": "fit", "length": samples, "fill": FILL[extractor.padding], "keep": "start"},
             {"op": "spectrogram", "n_fft": extractor.fft_window_size, "hop": extractor.hop_length, "log": "db",
              "mel": mel}]  # fmt: skip
    entry = {"kind": "audio", "from": "audio", "rate": int(extractor.sampling_rate), "steps": steps, "layout": "TF",
             "copies": 1}  # fmt: skip
    return entry, (1, 1 + samples // extractor.hop_length, extractor.feature_size)


def read_log_mel(folder: Folder) -> tuple[dict[str, Any], tuple[int, int]]:
    """The settings of a ``WhisperFeatureExtractor``, and the shape ``(features, frames)`` it gives.

    Raises:
        CompressError: as :func:`read_waveform`, or if it adds noise.
    """
    extractor = _extractor(folder, "WhisperFeatureExtractor")
    if extractor.dither:
        raise CompressError(f"{folder.path}: its feature extractor adds noise (dither {extractor.dither}): set it to 0")
    samples = int(extractor.chunk_length * extractor.sampling_rate)
    steps = [
        {"op": "fit", "length": samples},
        {"op": "spectrogram", "n_fft": extractor.n_fft, "hop": extractor.hop_length, "log": "log10", "drop_last": True,
         "mel": {"count": extractor.feature_size, "high_hz": 8000.0}},
        {"op": "floor_below_max", "range": 8.0},
        {"op": "rescale", "scale": 0.25, "offset": 1.0},
    ]  # fmt: skip
    entry = {"kind": "audio", "from": "audio", "rate": int(extractor.sampling_rate), "steps": steps}
    return entry, (extractor.feature_size, samples // extractor.hop_length)


def _extractor(folder: Folder, expected: str) -> Any:
    """The feature extractor object of the library, of the class ``expected``."""
    if not any((folder.path / name).is_file() for name in FILES):
        raise CompressError(f"{folder.path} has no feature extractor: expected {FILES[0]} beside config.json")
    try:
        extractor = library().AutoFeatureExtractor.from_pretrained(str(folder.path), **LOCAL)
    except Exception as error:  # settings that do not fit each other fail anywhere in the library's classes
        raise CompressError(f"{folder.path}: its feature extractor cannot be read: {first_line(error)}") from error
    if type(extractor).__name__ != expected:
        raise CompressError(f"{folder.path}: its feature extractor is a {type(extractor).__name__}, not a {expected}")
    return extractor
