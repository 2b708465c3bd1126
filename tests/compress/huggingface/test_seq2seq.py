"""A decoder's step behind any number of cached tokens scores as the library's whole decoder does without a cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress.huggingface import vision_encoder_decoder
from compress.huggingface import whisper as whisper_family
from compress.huggingface.caches import CROSS, PAST, PRESENT
from compress.huggingface.folder import read_folder
from compress.huggingface.parts import Parts
from compress.huggingface.seq2seq import Seq2Seq
from tests.compress.huggingface.generators import reader, whisper

KINDS = ("whisper", "trocr", "gpt2", "bert")


def parts_of(kind: str, folder: Path) -> Parts:
    if kind == "whisper":
        return whisper_family.read(read_folder(whisper(folder)), "WhisperForConditionalGeneration")
    return vision_encoder_decoder.read(read_folder(reader(folder, kind)), "VisionEncoderDecoderModel")


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_steps_score_as_the_whole(kind: str, tmp_path: Path) -> None:
    parts = parts_of(kind, tmp_path / "it")
    module: Any = parts.module
    assert isinstance(module, Seq2Seq)
    feed = {name: parts.example[name] for name in parts.graphs["encoder"].inputs} if parts.graphs else {}
    ids = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(3))
    expected = module.model(**feed, decoder_input_ids=ids, use_cache=False).logits
    crossed = module.encoder(**feed)
    assert list(crossed) == module.cache.names(CROSS)
    past = module.cache.example(PAST, 2, 0)     # of no length
    at = 0
    for length in (4, 1, 1, 3):
        given = {**past, **crossed}
        found = module.decoder(input_ids=ids[:, at : at + length], **given)
        at += length
        torch.testing.assert_close(found["logits"], expected[:, at - 1], atol=1e-4, rtol=1e-4)
        assert list(found) == ["logits", *module.cache.names(PRESENT)]
        past = {name: found[present] for name, present in module.cache.state().items()}
        assert all(tensor.shape[2] == at for tensor in past.values())
