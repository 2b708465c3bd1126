"""Wav2Vec2: an audio tower, alone, with a classifier of the whole sound, or transcribing (CTC)."""

from __future__ import annotations

from typing import Any

import torch

from compress.errors import CompressError
from compress.huggingface.checkpoint import build
from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts, Tower, classifier, record, tower_components
from compress.huggingface.sounds import read_waveform
from compress.huggingface.tokens import read_tokenizer
from compress.model import Input
from compress.saving import BATCH
from runtimes.spec import Dim

ARCHITECTURES = ("Wav2Vec2Model", "Wav2Vec2ForSequenceClassification", "Wav2Vec2ForCTC")
SECONDS = 30        # the longest sound: the network itself has no limit, its memory grows with the square of it
CLEAN_UP = [[" .", "."], [" ?", "?"], [" !", "!"], [" ,", ","], [" ' ", "'"], [" n't", "n't"], [" 'm", "'m"],
            [" 's", "'s"], [" 've", "'ve"], [" 're", "'re"]]  # fmt: skip
"""What the library replaces in a text where ``clean_up_tokenization_spaces`` is set."""


def read(folder: Folder, architecture: str) -> Parts:
    """One graph: samples ``(batch, samples)``, and a mask where the processor gives one, to ``logits`` or states."""
    config = folder.built_config("Wav2Vec2Config")
    waveform = read_waveform(folder)
    labels: dict[str, tuple[str, ...]] = {}
    answers: dict[str, Any] = {}
    if architecture == "Wav2Vec2ForCTC":
        answers = {"logits": _transcript(folder, config)}
    elif architecture == "Wav2Vec2ForSequenceClassification":
        answers, labels = classifier(folder, config)
    model = build(folder, architecture, config, training=("masked_spec_embed",))
    most = SECONDS * waveform.rate
    least = min(_samples(config, 2), most)
    length = Dim("samples", least, max(least, waveform.rate), most)
    shortest = max(_samples(config, 8), 1600)
    sounds = torch.randn(2, shortest, generator=torch.Generator().manual_seed(0))
    example = {"input_values": sounds}
    inputs = {"input_values": waveform.entry}
    if waveform.masked:
        example["attention_mask"] = torch.ones(2, shortest, dtype=torch.int64)
        example["attention_mask"][1, shortest * 3 // 4 :] = 0
        inputs["attention_mask"] = {"kind": "mask", "of": "input_values"}
    return Parts(
        module=Tower(model, ["last_hidden_state"] if architecture == "Wav2Vec2Model" else ["logits"]),
        example=example,
        inputs={name: Input(modality="audio", dims=(BATCH, length)) for name in inputs},
        components=tower_components(model, "audio_encoder"),
        labels=labels,
        processing=record(folder, inputs, answers),
    )


def _samples(config: Any, frames: int) -> int:
    """How many samples the convolutions make ``frames`` of."""
    size = frames
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        size = (size - 1) * stride + kernel
    return size


def _transcript(folder: Folder, config: Any) -> dict[str, Any]:
    """How the scores of the folder's vocabulary are read as a text."""
    tokenizer = read_tokenizer(folder)
    by_id = {index: word for word, index in tokenizer.get_vocab().items()}
    if sorted(by_id) != list(range(config.vocab_size)):
        raise CompressError(
            f"{folder.path}: the tokenizer has {len(by_id)} tokens, but the network scores {config.vocab_size} "
            "(vocab_size): the tokenizer is of another model"
        )
    words = [by_id[index] for index in range(len(by_id))]
    replace = [[tokenizer.word_delimiter_token, tokenizer.replace_word_delimiter_char]]
    if tokenizer.clean_up_tokenization_spaces:
        replace += CLEAN_UP
    if tokenizer.do_lower_case:
        words = [word.lower() for word in words]
        replace[0][0] = replace[0][0].lower()
    return {"kind": "text", "scores": True, "vocabulary": {"words": words, "joiner": ""}, "collapse": True,
            "blank": tokenizer.pad_token_id, "replace": replace}  # fmt: skip
