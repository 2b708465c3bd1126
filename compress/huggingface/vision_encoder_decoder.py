"""Vision-Encoder-Decoder: an encoder of pictures and a decoder that reads or describes them (TrOCR, captioners)."""

from __future__ import annotations

from typing import Any

import torch

from compress.errors import CompressError
from compress.huggingface.caches import Cache
from compress.huggingface.checkpoint import build
from compress.huggingface.folder import Folder
from compress.huggingface.generation import read_generation
from compress.huggingface.parts import Parts
from compress.huggingface.pictures import image_entry, image_example
from compress.huggingface.seq2seq import Seq2Seq, seq2seq
from compress.huggingface.tokens import read_tokenizer, tokenizer_file
from compress.model import Input
from compress.saving import BATCH

ARCHITECTURES = ("VisionEncoderDecoderModel",)
ENCODERS = ("deit", "vit")
DECODERS = ("bert", "gpt2", "trocr")


class VisionEncoderDecoder(Seq2Seq):
    """Pixels ``(batch, channels, height, width)`` to states, and ids to logits."""

    def states(self, **feed: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model.encoder(**feed).last_hidden_state
        return self.model.enc_to_dec_proj(found) if hasattr(self.model, "enc_to_dec_proj") else found

    def crossed(self, states: torch.Tensor) -> list[torch.Tensor]:
        decoder, kind = self.model.decoder, self.model.config.decoder.model_type
        if kind == "trocr":
            attentions = [layer.encoder_attn for layer in decoder.model.decoder.layers]
            return [found for a in attentions for found in self.split(a.k_proj(states), a.v_proj(states))]
        if kind == "bert":
            attentions = [layer.crossattention.self for layer in decoder.bert.encoder.layer]
            return [found for a in attentions for found in self.split(a.key(states), a.value(states))]
        both = [block.crossattention.c_attn(states) for block in decoder.transformer.h]
        return [found for pair in both for found in self.split(*pair.chunk(2, dim=-1))]

    def scores(self, **given: Any) -> torch.Tensor:
        if self.model.config.decoder.model_type == "trocr":     # counts the cached ones itself
            del given["position_ids"]
        found: torch.Tensor = self.model.decoder(**given).logits
        return found[:, -1]


def read(folder: Folder, architecture: str) -> Parts:
    """The decoder's own settings say how many tokens it can be given; the processor's picture goes in whole."""
    config = folder.built_config("VisionEncoderDecoderConfig")
    known = ((config.encoder, ENCODERS, "encoder"), (config.decoder, DECODERS, "decoder"))
    for part, kinds, what in known:
        if part.model_type not in kinds:
            raise CompressError(
                f"{folder.path}: its {what} is of the model_type {part.model_type!r}: read are {', '.join(kinds)}; for "
                "another save the module with compress.save (docs/huggingface.md)"
            )
    decoder = config.decoder
    entry = image_entry(folder)
    data = tokenizer_file(folder, read_tokenizer(folder), decoder.vocab_size)
    positions = decoder.max_position_embeddings
    generation = read_generation(folder, vocabulary=decoder.vocab_size, positions=positions)
    model: Any = build(folder, architecture, config, attention="eager")
    model.encoder.pooler = None     # of its states nothing reads the pooled one
    _restore_sines(model.decoder)
    heads = decoder.num_attention_heads if decoder.model_type != "trocr" else decoder.decoder_attention_heads
    cache = Cache(layers=decoder.num_hidden_layers, heads=heads, width=decoder.hidden_size // heads)
    module = VisionEncoderDecoder(model, cache)
    pictures = image_example(config.encoder)
    with torch.no_grad():
        states = module.states(pixel_values=pictures).shape[1]
    return seq2seq(
        folder, module, generation, example={"pixel_values": pictures},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,))}, entries={"pixel_values": entry},
        tokenizer=data, vocabulary=decoder.vocab_size, positions=positions, states=states,
        components={"image_encoder": "model.encoder", "text_decoder": "model.decoder"},
    )  # fmt: skip


def _restore_sines(decoder: Any) -> None:
    """Compute TrOCR's positions of sines anew: they are no weights, and the library leaves them without values."""
    for module in decoder.modules():
        if type(module).__name__ == "TrOCRSinusoidalPositionalEmbedding":
            module.weights = module.get_embedding(len(module.weights), module.embedding_dim, module.padding_idx)
