"""BLIP: describing a picture, answering a question about it, or telling whether a text fits it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from compress.huggingface.caches import CROSS, PAST, Cache, causal_bias, masked_bias, positions
from compress.huggingface.checkpoint import build
from compress.huggingface.dual import masked_text
from compress.huggingface.folder import Folder
from compress.huggingface.generation import Generation, read_generation
from compress.huggingface.parts import Parts, Tower, record
from compress.huggingface.pictures import image_entry, image_example
from compress.huggingface.tokens import FILE, Tokens, read_tokens, text_input
from compress.model import Graph, Input
from compress.saving import BATCH
from runtimes.spec import Dim

ARCHITECTURES = ("BlipForConditionalGeneration", "BlipForQuestionAnswering", "BlipForImageTextRetrieval")
TEXT = "text"           # the chain's output: ids of what was generated, and the answer made of them
PROMPT = 64             # tokens of a caption's beginning at most
FITS = ("no match", "match")
EXAMPLE = 3             # tokens, and past ones, of an example: any number but 0 and 1, which torch would fix


class Blip(nn.Module):
    """A BLIP with a text decoder; what it looks at are ``states``, of the picture or of a question about it."""

    def __init__(self, model: Any, cache: Cache) -> None:
        super().__init__()
        self.model = model
        self.cache = cache

    def seen(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels ``(batch, channels, height, width)`` to a state of each patch, ``(batch, patches, width)``."""
        states: torch.Tensor = self.model.vision_model(pixel_values=pixel_values).last_hidden_state
        return states

    def crossed(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Keys and values of ``states`` ``(batch, length, width)`` in each layer, computed once for all tokens."""
        attentions = [layer.crossattention.self for layer in self.model.text_decoder.bert.encoder.layer]
        found = [linear(states) for attention in attentions for linear in (attention.key, attention.value)]
        split = [array.reshape(*array.shape[:2], -1, self.cache.width).transpose(1, 2) for array in found]
        return dict(zip(self.cache.names(CROSS), split, strict=True))

    def scores(self, ids: torch.Tensor, cache: Mapping[str, torch.Tensor], **given: Any) -> dict[str, torch.Tensor]:
        """Ids ``(batch, length)`` behind the cached ones to the next one's ``logits`` ``(batch, tokens)``."""
        held = self.cache.crossed(cache)
        # Of the states it reads no more than that there are some: their keys and values are in the cache.
        states = cache[self.cache.names(CROSS)[0]][:, 0]
        found = self.model.text_decoder(
            input_ids=ids, encoder_hidden_states=states, past_key_values=held, use_cache=True, logits_to_keep=1, **given
        )
        return {"logits": found.logits[:, 0], **self.cache.present(held)}


class Captioner(Blip):
    """Two graphs: a picture to keys and values, and a step of the decoder from a prompt on."""

    def image(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels to the keys and values that the decoder looks at."""
        return self.crossed(self.seen(pixel_values))

    def decoder(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **cache: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Ids ``(batch, length)`` and the mask ``(batch, past + length)`` to logits and the cache."""
        length, past = input_ids.shape[1], cache[self.cache.names(PAST)[0]].shape[2]
        return self.scores(
            input_ids, cache, attention_mask=causal_bias(length, past, attention_mask),
            position_ids=positions(attention_mask, length, past),
        )  # fmt: skip


class Answerer(Blip):
    """Three graphs: a picture to states, a question about them to keys and values, and a step of the decoder."""

    def __init__(self, model: Any, cache: Cache) -> None:
        super().__init__(model, cache)
        for layer in model.text_decoder.bert.encoder.layer:
            layer.crossattention.forward = functools.partial(_look_at, layer.crossattention)

    def image(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels to states."""
        return {"image_embeds": self.seen(pixel_values)}

    def question(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, image_embeds: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """A question ``(batch, length)`` with its mask, and a picture's states, to the decoder's keys and values."""
        found = self.model.text_encoder(
            input_ids=input_ids, attention_mask=attention_mask, encoder_hidden_states=image_embeds
        )
        return self.crossed(found.last_hidden_state)

    def decoder(
        self, decoder_input_ids: torch.Tensor, attention_mask: torch.Tensor, **cache: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One id each, ``(batch, 1)``, and the question's mask to logits and the cache."""
        past = cache[self.cache.names(PAST)[0]].shape[2]
        return self.scores(
            decoder_input_ids, cache, attention_mask=causal_bias(1, past),
            encoder_attention_mask=masked_bias(attention_mask),
        )  # fmt: skip


def _look_at(
    attention: Any, states: torch.Tensor, attention_mask: torch.Tensor, encoder_hidden_states: torch.Tensor,
    past_key_values: Any,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """The library's ``BlipTextAttention`` of other states, which forgets to hand on their mask."""
    found, _ = attention.self(
        states, encoder_hidden_states=encoder_hidden_states, encoder_attention_mask=attention_mask,
        past_key_values=past_key_values,
    )  # fmt: skip
    return attention.output(found, states), None


def read(folder: Folder, architecture: str) -> Parts:
    """What is generated ends with the separator, as in the library's own ``generate``."""
    config = folder.built_config("BlipConfig")
    tokens = read_tokens(folder, config.text_config)
    pixels = image_entry(folder)
    model: Any = build(folder, architecture, config, attention="eager")
    parts = dict(zip(ARCHITECTURES, (_captioner, _answerer, _matcher), strict=True))[architecture]
    return parts(folder, config, tokens, pixels, model)


def _captioner(folder: Folder, config: Any, tokens: Tokens, pixels: dict[str, Any], model: Any) -> Parts:
    """The prompt is the beginning of the caption, by default none; what is generated comes without it."""
    text = config.text_config
    longest = text.max_position_embeddings
    prompt = max(1, min(PROMPT, tokens.length, longest // 2))
    generation = _generation(folder, text, prompt=prompt)
    cache, module = _decoder(Captioner, model, text)
    beginning = {"from": "prompt", "special": False, "begin": [text.bos_token_id], "default": "", "max_length": prompt,
                 "pad_side": "left"}
    entries = {"pixel_values": pixels, "input_ids": {**tokens.entry(), **beginning},
               "attention_mask": {"kind": "mask", "of": "input_ids"}}
    own = {name: name for name in ("input_ids", "attention_mask")}
    looked_at = {name: f"image.{name}" for name in cache.names(CROSS)}
    loop = generation.loop(token="input_ids", logits="logits", state=cache.state(), mask="attention_mask")
    chain = {
        "inputs": list(entries),
        "steps": [{"graph": "image", "inputs": {"pixel_values": "pixel_values"}},
                  {"graph": "decoder", "inputs": {**own, **looked_at}, "loop": loop}],
        "outputs": {TEXT: "decoder.tokens"},
    }
    pictures = image_example(config.vision_config)
    with torch.no_grad():
        patches = module.seen(pictures).shape[1]
    mask = torch.ones(2, 2 * EXAMPLE, dtype=torch.int64)
    mask[1, 0] = 0
    past = Dim("past", 0, min(16, longest - 1), longest - 1)
    return Parts(
        module=module, chain=chain,
        components={"image_encoder": "model.vision_model", "text_decoder": "model.text_decoder"},
        graphs={"image": Graph("image", ("pixel_values",)),
                "decoder": Graph("decoder", (*own, *cache.names(PAST), *cache.names(CROSS)))},
        example={"pixel_values": pictures, "input_ids": tokens.example(2)[:, :EXAMPLE], "attention_mask": mask,
                 **cache.example(PAST, 2, EXAMPLE), **cache.example(CROSS, 2, patches)},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,)),
                "input_ids": text_input(BATCH, Dim("length", 1, min(4, prompt), prompt)),
                "attention_mask": text_input(BATCH, Dim("total", 1, min(16, longest), longest)),
                **cache.inputs(PAST, past), **cache.inputs(CROSS, patches)},
        processing=record(folder, entries, _answer(), {FILE: tokens.data}),
    )  # fmt: skip


def _answerer(folder: Folder, config: Any, tokens: Tokens, pixels: dict[str, Any], model: Any) -> Parts:
    """The padding of a question is hidden from the decoder as in training; the library's ``generate`` shows it."""
    text = config.text_config
    longest = text.max_position_embeddings
    generation = _generation(folder, text, start=[text.bos_token_id])
    cache, module = _decoder(Answerer, model, text)
    question, example, inputs = masked_text(tokens, text.sep_token_id)
    entries = {"pixel_values": pixels, **question}
    asked = {"input_ids": "input_ids", "attention_mask": "attention_mask", "image_embeds": "image.image_embeds"}
    looked_at = {name: f"question.{name}" for name in cache.names(CROSS)}
    chain = {
        "inputs": list(entries),
        "steps": [
            {"graph": "image", "inputs": {"pixel_values": "pixel_values"}},
            {"graph": "question", "inputs": asked},
            {"graph": "decoder", "inputs": {"attention_mask": "attention_mask", **looked_at},
             "loop": generation.loop(token="decoder_input_ids", logits="logits", state=cache.state())},
        ],
        "outputs": {TEXT: "decoder.tokens"},
    }  # fmt: skip
    pictures, (count, length) = image_example(config.vision_config), example["input_ids"].shape
    with torch.no_grad():
        states = module.seen(pictures)
    past = Dim("past", 0, min(4, longest - 1), longest - 1)
    given = ("decoder_input_ids", "attention_mask", *cache.names(PAST), *cache.names(CROSS))
    return Parts(
        module=module, chain=chain,
        components={"image_encoder": "model.vision_model", "question_encoder": "model.text_encoder",
                    "text_decoder": "model.text_decoder"},
        graphs={"image": Graph("image", ("pixel_values",)), "question": Graph("question", tuple(asked)),
                "decoder": Graph("decoder", given)},
        example={"pixel_values": pictures, **example, "image_embeds": states,
                 "decoder_input_ids": torch.full((count, 1), text.bos_token_id),
                 **cache.example(PAST, count, EXAMPLE), **cache.example(CROSS, count, length)},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,)), **inputs,
                "image_embeds": Input(modality="embedding", dims=(BATCH,)),
                "decoder_input_ids": text_input(BATCH, None), **cache.inputs(PAST, past),
                **cache.inputs(CROSS, Dim("length", 1, min(16, tokens.length), tokens.length))},
        processing=record(folder, entries, _answer(), {FILE: tokens.data}),
    )  # fmt: skip


def _matcher(folder: Folder, config: Any, tokens: Tokens, pixels: dict[str, Any], model: Any) -> Parts:
    """One graph: ``itm_score`` says whether the text is of the picture."""
    text, example, inputs = masked_text(tokens, config.text_config.sep_token_id)
    return Parts(
        module=Tower(model, ["itm_score"]),
        example={"pixel_values": image_example(config.vision_config), **example},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,)), **inputs},
        components={"image_encoder": "model.vision_model", "text_encoder": "model.text_encoder",
                    "head": "model.itm_head"},
        labels={"itm_score": FITS},
        processing=record(
            folder, {"pixel_values": pixels, **text}, {"itm_score": {"kind": "classes"}}, {FILE: tokens.data}),
    )  # fmt: skip


def _generation(folder: Folder, text: Any, **given: Any) -> Generation:
    """Greedy search, with the last token and the padding that the library's ``generate`` sets, not the folder's."""
    found = read_generation(folder, vocabulary=text.vocab_size, positions=text.max_position_embeddings, **given)
    return dataclasses.replace(found, stop=(text.sep_token_id,), pad=text.pad_token_id)


def _decoder(kind: type[Any], model: Any, text: Any) -> tuple[Cache, Any]:
    heads = text.num_attention_heads
    cache = Cache(layers=text.num_hidden_layers, heads=heads, width=text.hidden_size // heads)
    return cache, kind(model, cache)


def _answer() -> dict[str, Any]:
    return {TEXT: {"kind": "text", "scores": False, "tokenizer": FILE}}
