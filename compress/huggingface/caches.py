"""A decoder's keys and values: plain tensors where its graph takes and gives them, the library's object inside.

Each layer has two, the first ``past_key_0`` and ``past_value_0``, of the shape (batch, heads, length, width). A graph
gives them back as ``present_key_0`` and so on, longer by the tokens it was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from compress.huggingface.library import library
from compress.model import Input
from compress.saving import BATCH
from runtimes.spec import Dim

PAST, PRESENT, CROSS = "past", "present", "cross"


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What a decoder keeps of each token: ``layers`` times keys and values of ``heads``, each ``width`` wide."""

    layers: int
    heads: int
    width: int

    def names(self, of: str) -> list[str]:
        """The tensors of ``past``, of ``present`` or, computed once from another network's states, of ``cross``."""
        return [f"{of}_{kind}_{layer}" for layer in range(self.layers) for kind in ("key", "value")]

    def state(self) -> dict[str, str]:
        """Input of the cache -> the output it is taken from, as a loop has it."""
        return dict(zip(self.names(PAST), self.names(PRESENT), strict=True))

    def inputs(self, of: str, length: Dim | int) -> dict[str, Input]:
        """Their dimensions; a ``length`` of a number is fixed."""
        dims = (BATCH, None, length if isinstance(length, Dim) else None)
        return {name: Input(modality="embedding", dims=dims) for name in self.names(of)}

    def example(self, of: str, count: int, length: int) -> dict[str, torch.Tensor]:
        """Some numbers ``(count, heads, length, width)`` for each of them."""
        generator = torch.Generator().manual_seed(0)
        shape = (count, self.heads, length, self.width)
        return {name: torch.randn(shape, generator=generator) for name in self.names(of)}

    def given(self, feed: Mapping[str, torch.Tensor], of: str = PAST) -> Any:
        """The library's object that holds the tensors of a graph's ``feed``."""
        cache = library().DynamicCache()
        layer_of = library().cache_utils.DynamicLayer
        for layer in range(self.layers):
            held = layer_of()
            held.keys, held.values = (feed[f"{of}_{kind}_{layer}"] for kind in ("key", "value"))
            held.dtype, held.device, held.is_initialized = held.keys.dtype, held.keys.device, True
            cache.layers.append(held)
        return cache

    def crossed(self, feed: Mapping[str, torch.Tensor]) -> Any:
        """That of the tensors ``past`` and of those ``cross``, which are not computed again."""
        return library().EncoderDecoderCache(self.given(feed, PAST), self.given(feed, CROSS))

    def present(self, cache: Any) -> dict[str, torch.Tensor]:
        """The tensors of the library's object ``cache``, of its own tokens, by their names as outputs."""
        own = getattr(cache, "self_attention_cache", cache)
        tensors = [tensor for layer in own.layers for tensor in (layer.keys, layer.values)]
        return dict(zip(self.names(PRESENT), tensors, strict=True))


def causal_bias(length: int, past: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """What is added to attention scores ``(batch, heads, length, past + length)``: 0 where a token may look.

    That is at itself and the tokens before it, and of these at those where ``mask`` is 1. The rest gets the least
    float, not minus infinity: a token of the padding, which may look at nothing, keeps finite states.

    Args:
        length: how many tokens are given now, after ``past`` others.
        mask: int64 ``(batch, past + length)``.
    """
    keys = torch.arange(past + length)
    allowed = (keys[None, :] <= (torch.arange(length) + past)[:, None])[None, None]
    if mask is not None:    # selected, since torch would have to know that its length is the sum of the two others
        allowed = allowed & mask.index_select(1, keys)[:, None, None, :].bool()
    return torch.where(allowed, 0.0, torch.finfo(torch.float32).min)


def positions(mask: torch.Tensor, length: int, past: int) -> torch.Tensor:
    """Where the last ``length`` tokens of a ``mask`` ``(batch, past + length)`` stand among those it counts."""
    counted = (mask.cumsum(dim=1) - 1).clamp(min=0)     # in the padding, which nothing looks at, it may be any place
    return counted.index_select(1, torch.arange(length) + past)


def masked_bias(mask: torch.Tensor) -> torch.Tensor:
    """What is added to attention scores over what ``mask`` ``(batch, length)`` counts: 0, else the least float."""
    return torch.where(mask[:, None, None, :].bool(), 0.0, torch.finfo(torch.float32).min)
