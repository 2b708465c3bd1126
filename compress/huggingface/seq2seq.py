"""What encoder-decoder generators share: an encoder, whose keys and values are computed once, and a decoder's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from compress.huggingface.caches import CROSS, PAST, Cache, causal_bias
from compress.huggingface.folder import Folder
from compress.huggingface.generation import Generation
from compress.huggingface.parts import Parts, record
from compress.huggingface.tokens import FILE, text_input
from compress.model import Graph, Input
from compress.saving import BATCH
from runtimes.spec import Dim

TEXT = "text"       # the chain's output: the ids of what was generated, and the answer made of them
EXAMPLE = 3         # tokens, past ones and states of an example: any length but 0 and 1, which torch would fix


class Seq2Seq(nn.Module):
    """A network of the library, a method for each of its two graphs; a family says how its parts are called."""

    def __init__(self, model: Any, cache: Cache) -> None:
        super().__init__()
        self.model = model
        self.cache = cache

    def states(self, **feed: torch.Tensor) -> torch.Tensor:
        """What the encoder makes of a feed, as the decoder takes it: ``(batch, states, width)``."""
        raise NotImplementedError

    def crossed(self, states: torch.Tensor) -> list[torch.Tensor]:
        """The keys and values of ``states`` in each layer of the decoder, in the order of :meth:`Cache.names`."""
        raise NotImplementedError

    def scores(self, **given: Any) -> torch.Tensor:
        """The logits ``(batch, tokens)`` of the last token, of the decoder's arguments as the library calls them."""
        raise NotImplementedError

    def split(self, keys: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        """Keys as ``(batch, heads, width, states)`` and values as ``(batch, heads, states, width)``.

        Both come as ``(batch, states, heads * width)``. Keys lie as they are multiplied: a step would else transpose
        all of them anew.
        """
        shape = (*keys.shape[:2], -1, self.cache.width)
        return [keys.view(shape).permute(0, 2, 3, 1), values.view(shape).transpose(1, 2)]

    def encoder(self, **feed: torch.Tensor) -> dict[str, torch.Tensor]:
        """A feed to each decoder layer's keys and values of it, as :meth:`split` has them."""
        return dict(zip(self.cache.names(CROSS), self.crossed(self.states(**feed)), strict=True))

    def decoder(self, input_ids: torch.Tensor, **cache: torch.Tensor) -> dict[str, torch.Tensor]:
        """Ids ``(batch, length)`` behind the cached ones to the next one's logits ``(batch, tokens)``; the cache."""
        crossed = {name: _turned(name, cache[name]) for name in self.cache.names(CROSS)}
        held = self.cache.crossed({**cache, **crossed})
        batch, length, past = *input_ids.shape, held.get_seq_length()
        bias = causal_bias(length, past).expand(batch, -1, -1, -1)
        places = (torch.arange(length) + past)[None]
        # Of the encoder's states it reads no more than how many there are: their keys and values are in the cache.
        states = next(iter(crossed.values()))[:, 0]
        logits = self.scores(
            input_ids=input_ids, position_ids=places, attention_mask=bias, encoder_hidden_states=states,
            past_key_values=held, use_cache=True,
        )  # fmt: skip
        return {"logits": logits, **self.cache.present(held)}


def _turned(name: str, cross: torch.Tensor) -> torch.Tensor:
    """Keys ``(batch, heads, width, states)`` as the library has them, and back; values as they are."""
    return cross.transpose(2, 3) if "key" in name else cross


def seq2seq(
    folder: Folder, module: Seq2Seq, generation: Generation, *, example: Mapping[str, torch.Tensor],
    inputs: Mapping[str, Input], entries: Mapping[str, Any], tokenizer: bytes, vocabulary: int, positions: int,
    states: int, components: Mapping[str, str], skip: Sequence[int] = (),
) -> Parts:  # fmt: skip
    """The parts of an encoder-decoder generator, with its chain.

    Args:
        example, inputs, entries: of the encoder: its feed, their dimensions, and how a record makes each.
        tokenizer: the file ``tokenizer.json``.
        vocabulary: how many tokens the decoder scores.
        positions: how many it can be given.
        states: how many the encoder gives.
        skip: tokens that are no text, beside the tokenizer's special ones.
    """
    cache = module.cache
    length = Dim("length", 1, len(generation.start), positions)
    past = Dim("past", 0, max(1, min(generation.max_steps, positions - 1) // 2), positions - 1)
    crossed = Dim("states", 1, states, states)
    crossing = {name: _turned(name, value) for name, value in cache.example(CROSS, 2, EXAMPLE).items()}
    ids = torch.randint(0, vocabulary, (2, EXAMPLE), generator=torch.Generator().manual_seed(0))
    given = ("input_ids", *cache.names(PAST), *cache.names(CROSS))
    chain = {
        "inputs": list(entries),
        "steps": [
            {"graph": "encoder", "inputs": {name: name for name in entries}},
            {"graph": "decoder", "inputs": {name: f"encoder.{name}" for name in cache.names(CROSS)},
             "loop": generation.loop(token="input_ids", logits="logits", state=cache.state())},
        ],
        "outputs": {TEXT: "decoder.tokens"},
    }  # fmt: skip
    answer = {"kind": "text", "scores": False, "tokenizer": FILE, "skip": list(skip)}
    return Parts(
        module=module, components=components, chain=chain,
        graphs={"encoder": Graph("encoder", tuple(entries)), "decoder": Graph("decoder", given)},
        example={**example, "input_ids": ids, **cache.example(PAST, 2, EXAMPLE), **crossing},
        inputs={**inputs, "input_ids": text_input(BATCH, length), **cache.inputs(PAST, past),
                **{name: Input(modality="embedding", dims=(BATCH, None, None, crossed) if "key" in name else
                               (BATCH, None, crossed)) for name in crossing}},
        processing=record(folder, entries, {TEXT: answer}, {FILE: tokenizer}),
    )  # fmt: skip
