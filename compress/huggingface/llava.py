"""LLaVA: a language model that is asked about pictures, whose patches stand among the words of the prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from compress.errors import CompressError
from compress.huggingface.caches import PAST, Cache, causal_bias, positions
from compress.huggingface.checkpoint import build
from compress.huggingface.folder import Folder
from compress.huggingface.generation import read_generation
from compress.huggingface.parts import Parts, record
from compress.huggingface.pictures import image_entry, image_example
from compress.huggingface.tokens import FILE, read_tokenizer, read_tokens, text_input
from compress.model import Graph, Input
from compress.saving import BATCH
from runtimes.spec import Dim

ARCHITECTURES = ("LlavaForConditionalGeneration",)
VISION, LANGUAGE = ("clip_vision_model", "siglip_vision_model"), ("llama", "qwen2")
ROPE = ("default", "linear", "llama3", "yarn")      # the others' angles depend on how long a text has become
TEXT = "text"           # the chain's output: ids of what was generated, and the answer made of them
EXAMPLE = 3             # tokens, and past ones, of an example: any number but 0 and 1, which torch would fix


class Llava(nn.Module):
    """Two graphs: a picture to states as of words, and a step of the language model that puts them in their places."""

    def __init__(self, model: Any, cache: Cache) -> None:
        super().__init__()
        self.model = model
        self.cache = cache
        layers = model.config.vision_feature_layer
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.first = 1 if model.config.vision_feature_select_strategy == "default" else 0   # without the class token

    def image(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Pixels ``(images, channels, height, width)`` to ``(images, patches, width)``."""
        states = self.model.model.vision_tower(pixel_values, output_hidden_states=True, return_dict=True).hidden_states
        chosen = torch.cat([states[layer][:, self.first :] for layer in self.layers], dim=-1)
        return {"image_features": self.model.model.multi_modal_projector(chosen)}

    def decoder(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, image_features: torch.Tensor, **past: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Ids ``(batch, length)`` behind the cached ones to the next one's ``logits`` ``(batch, tokens)``; the cache.

        In the first step the ids of pictures become ``image_features``, in their order. ``attention_mask`` is of
        ``(batch, past + length)``.
        """
        length, before = input_ids.shape[1], past[self.cache.names(PAST)[0]].shape[2]
        held = self.cache.given(past)
        found = self.model.model.language_model(
            inputs_embeds=self._placed(input_ids, image_features, before),
            attention_mask=causal_bias(length, before, attention_mask),
            position_ids=positions(attention_mask, length, before), past_key_values=held, use_cache=True,
        )  # fmt: skip
        return {"logits": self.model.lm_head(found.last_hidden_state[:, -1]), **self.cache.present(held)}

    def _placed(self, ids: torch.Tensor, features: torch.Tensor, before: int) -> torch.Tensor:
        words = self.model.get_input_embeddings()(ids)
        steps = torch.arange(ids.shape[1])
        first = steps + before == steps         # no later step has a picture, whatever it picked
        pictures = (ids == self.model.config.image_token_id) & first
        order = (pictures.flatten().long().cumsum(dim=0) - 1).clamp(min=0)
        return torch.where(pictures[..., None], features.flatten(0, 1)[order].reshape(words.shape), words)


def read(folder: Folder, architecture: str) -> Parts:
    """The raw input ``text`` is a whole prompt, with the image's token where the picture belongs."""
    config = folder.built_config("LlavaConfig")
    _check(folder, config)
    text = config.text_config
    tokens = read_tokens(folder, text)
    token = _image_token(folder, config)
    pixels = image_entry(folder)
    longest = text.max_position_embeddings
    prompt = min(tokens.length, longest // 2)
    generation = read_generation(folder, vocabulary=text.vocab_size, positions=longest, prompt=prompt)
    model: Any = build(folder, architecture, config)
    heads = text.num_attention_heads
    cache = Cache(layers=text.num_hidden_layers, heads=text.num_key_value_heads,
                  width=getattr(text, "head_dim", None) or text.hidden_size // heads)
    module = Llava(model, cache)
    pictures = image_example(config.vision_config)
    with torch.no_grad():
        features = module.image(pictures)["image_features"]
    if features.shape[1] >= prompt:
        raise CompressError(
            f"{folder.path}: a picture takes {features.shape[1]} tokens, but half of the network's positions, for the "
            f"prompt, are {prompt} (max_position_embeddings)"
        )
    entries = {
        "pixel_values": pixels,
        "input_ids": {**tokens.entry(), "pad_side": "left", "max_length": prompt,
                      "expand": {"token": token, "times": features.shape[1], "of": "pixel_values"}},
        "attention_mask": {"kind": "mask", "of": "input_ids"},
    }  # fmt: skip
    own = ("input_ids", "attention_mask")
    loop = generation.loop(token="input_ids", logits="logits", state=cache.state(), mask="attention_mask")
    given = {**{name: name for name in own}, "image_features": "image.image_features"}
    chain = {
        "inputs": list(entries),
        "steps": [{"graph": "image", "inputs": {"pixel_values": "pixel_values"}},
                  {"graph": "decoder", "inputs": given, "loop": loop}],
        "outputs": {TEXT: "decoder.tokens"},
    }
    mask = torch.ones(2, 2 * EXAMPLE, dtype=torch.int64)
    mask[1, 0] = 0
    past = Dim("past", 0, min(prompt, longest - 1), longest - 1)
    return Parts(
        module=module, chain=chain,
        components={"image_encoder": "model.model.vision_tower", "projection": "model.model.multi_modal_projector",
                    "language_model": "model.model.language_model", "head": "model.lm_head"},
        graphs={"image": Graph("image", ("pixel_values",)),
                "decoder": Graph("decoder", (*own, "image_features", *cache.names(PAST)))},
        example={"pixel_values": pictures, "input_ids": tokens.example(2)[:, :EXAMPLE], "attention_mask": mask,
                 "image_features": features, **cache.example(PAST, 2, EXAMPLE)},
        inputs={"pixel_values": Input(modality="image", dims=(BATCH,)),
                "input_ids": text_input(BATCH, Dim("length", 1, prompt // 2, prompt)),
                "attention_mask": text_input(BATCH, Dim("total", 1, prompt, longest)),
                "image_features": Input(modality="embedding", dims=(Dim("images", 1, 1, BATCH.max),)),
                **cache.inputs(PAST, past)},
        processing=record(folder, entries, {TEXT: {"kind": "text", "scores": False, "tokenizer": FILE}},
                          {FILE: tokens.data}),
    )  # fmt: skip


def _check(folder: Folder, config: Any) -> None:
    parts = ((config.vision_config, VISION, "vision tower"), (config.text_config, LANGUAGE, "language model"))
    for part, kinds, what in parts:
        if part.model_type not in kinds:
            raise CompressError(
                f"{folder.path}: its {what} is of the model_type {part.model_type!r}: read are {', '.join(kinds)}; for "
                "another save the module with compress.save (docs/huggingface.md)"
            )
    rope = config.text_config.rope_parameters["rope_type"]
    if rope not in ROPE or getattr(config.text_config, "use_sliding_window", False):
        what = f"rope_type {rope!r}" if rope not in ROPE else "use_sliding_window"
        raise CompressError(
            f"{folder.path}: its language model has {what}, of which a step depends on how long the text is: it cannot "
            "be one graph"
        )


def _image_token(folder: Folder, config: Any) -> str:
    """How a prompt writes the picture."""
    tokenizer, number = read_tokenizer(folder), config.image_token_id
    token = tokenizer.convert_ids_to_tokens(number)
    if token is None or tokenizer.encode(token, add_special_tokens=False) != [number]:
        raise CompressError(
            f"{folder.path}: image_token_index is {number}, which is no token of its tokenizer: the tokenizer is of "
            "another model"
        )
    return str(token)
