"""Whisper: an encoder of 30 seconds of sound and a decoder that writes down what is said."""

from __future__ import annotations

from typing import Any

import torch

from compress.errors import CompressError
from compress.huggingface.caches import Cache
from compress.huggingface.checkpoint import build
from compress.huggingface.folder import Folder
from compress.huggingface.generation import FILE, read_config, read_generation
from compress.huggingface.parts import Parts
from compress.huggingface.seq2seq import Seq2Seq, seq2seq
from compress.huggingface.sounds import read_log_mel
from compress.huggingface.tokens import read_tokenizer, tokenizer_file
from compress.model import Input
from compress.saving import BATCH

ARCHITECTURES = ("WhisperForConditionalGeneration",)
LANGUAGE = "en"     # where the folder names none: the library would listen for it first


class Whisper(Seq2Seq):
    """Features ``(batch, mels, frames)`` to states, and ids to logits of the last token."""

    def states(self, **feed: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model.model.encoder(feed["input_features"]).last_hidden_state
        return found

    def crossed(self, states: torch.Tensor) -> list[torch.Tensor]:
        attentions = [layer.encoder_attn for layer in self.model.model.decoder.layers]
        return [found for a in attentions for found in self.split(a.k_proj(states), a.v_proj(states))]

    def scores(self, **given: Any) -> torch.Tensor:
        last = self.model.model.decoder(**given).last_hidden_state[:, -1]
        scores: torch.Tensor = self.model.proj_out(last)
        return scores


def read(folder: Folder, architecture: str) -> Parts:
    """Sounds are cut or filled to what the encoder takes; timestamps are not asked for."""
    config = folder.built_config("WhisperConfig")
    tokenizer = read_tokenizer(folder)
    data = tokenizer_file(folder, tokenizer, config.vocab_size)
    entry, (mels, frames) = read_log_mel(folder)
    if (mels, frames) != (config.num_mel_bins, 2 * config.max_source_positions):
        raise CompressError(
            f"{folder.path}: its feature extractor gives {mels} features of {frames} frames, but the encoder takes "
            f"{config.num_mel_bins} of {2 * config.max_source_positions}: it is of another model"
        )
    generation = read_generation(
        folder, vocabulary=config.vocab_size, positions=config.max_target_positions, beyond_start=True,
        start=start_tokens(folder, config),
    )  # fmt: skip
    heads = config.decoder_attention_heads
    model = build(folder, architecture, config, attention="eager")
    module = Whisper(model, Cache(layers=config.decoder_layers, heads=heads, width=config.d_model // heads))
    sounds = torch.randn(2, mels, frames, generator=torch.Generator().manual_seed(0))
    return seq2seq(
        folder, module, generation, example={"input_features": sounds},
        inputs={"input_features": Input(modality="audio", dims=(BATCH,))}, entries={"input_features": entry},
        tokenizer=data, skip=_timestamps(tokenizer), vocabulary=config.vocab_size,
        positions=config.max_target_positions, states=config.max_source_positions,
        components={"audio_encoder": "model.model.encoder", "text_decoder": "model.model.decoder",
                    "lm_head": "model.proj_out"},
    )  # fmt: skip


def start_tokens(folder: Folder, config: Any) -> list[int]:
    """What the decoder begins with: start of transcript, the language, the task, and that no timestamps are wanted.

    ``language`` and ``task`` of the generation config count, else its or the config's ``forced_decoder_ids``. A model
    of many languages without any is one of :data:`LANGUAGE`, whose task is to transcribe.

    Raises:
        CompressError: if the folder names a language or a task that its network has not learnt.
    """
    settings = read_config(folder)
    languages, tasks = (getattr(settings, name, None) or {} for name in ("lang_to_id", "task_to_id"))
    language, task = (getattr(settings, name, None) for name in ("language", "task"))
    forced = {}
    if language is None and task is None:
        forced = dict(getattr(settings, "forced_decoder_ids", None) or folder.config.get("forced_decoder_ids") or ())
    if languages and language is None and forced.get(1) is None:
        language = LANGUAGE
    first = settings.decoder_start_token_id
    start = [config.decoder_start_token_id if first is None else first]
    if language is not None:
        start.append(_token(languages, f"<|{_code(language)}|>", "language", folder))
    elif forced:
        start += [token for _, token in sorted(forced.items())]
    if task is not None or (language is not None and tasks):
        start.append(_token(tasks, task or "transcribe", "task", folder))
    plain = getattr(settings, "no_timestamps_token_id", None)
    return start if plain is None or start[-1] == plain else [*start, plain]


def _code(language: str) -> str:
    """``en`` of "English", "en" and "<|en|>"."""
    from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

    name = language.lower()
    code: str = TO_LANGUAGE_CODE.get(name, name)
    return code.removeprefix("<|").removesuffix("|>")


def _token(known: dict[str, int], name: str, what: str, folder: Folder) -> int:
    if name not in known:
        raise CompressError(
            f"{folder.path / FILE}: the {what} {name!r:.40} is none of this model's: "
            f"{', '.join(sorted(known)[:8]) or 'it has no choice of it'}"
        )
    return int(known[name])


def _timestamps(tokenizer: Any) -> list[int]:
    """The tokens of points in time, which are not special ones of the tokenizer, and no text."""
    return sorted(index for word, index in tokenizer.get_added_vocab().items() if word[2:-2].replace(".", "").isdigit())
