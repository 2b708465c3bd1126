"""The feature extractor of a folder as the steps of a record, for networks that take waveforms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from compress.errors import CompressError
from compress.huggingface.folder import Folder
from compress.huggingface.library import LOCAL, first_line, library

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
    if not any((folder.path / name).is_file() for name in FILES):
        raise CompressError(f"{folder.path} has no feature extractor: expected {FILES[0]} beside config.json")
    try:
        extractor = library().AutoFeatureExtractor.from_pretrained(str(folder.path), **LOCAL)
    except Exception as error:  # settings that do not fit each other fail anywhere in the library's classes
        raise CompressError(f"{folder.path}: its feature extractor cannot be read: {first_line(error)}") from error
    name = type(extractor).__name__
    if name != "Wav2Vec2FeatureExtractor" or extractor.feature_size != 1:
        raise CompressError(
            f"{folder.path}: the feature extractor {name} is not known for waveforms: expected a "
            "Wav2Vec2FeatureExtractor whose feature_size is 1"
        )
    steps = [{"op": "standardize", "epsilon": 1e-7}] if extractor.do_normalize else []
    entry = {"kind": "audio", "from": "audio", "rate": int(extractor.sampling_rate), "steps": steps,
             "pad_value": float(extractor.padding_value), "pad_side": extractor.padding_side}  # fmt: skip
    return Waveform(rate=int(extractor.sampling_rate), masked=bool(extractor.return_attention_mask), entry=entry)
