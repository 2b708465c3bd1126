"""Tokens of pictures that are alike become one between the blocks of a transformer, a fixed number each time.

Bipartite soft matching: every second token looks for the most similar of the others, by the keys that the block before
compared them with, and the ``r`` pairs that are most alike become one token each, the mean of all that went into it.
Attention counts a token as often as it stands for (proportional attention): the logarithm of that is added to its
scores. How many tokens are left is known beforehand, so that shapes stay as fixed as they were.

Source: Bolya et al. 2023, Token Merging, arXiv:2210.09461, sections 3.1 and 3.2; there tokens are merged between the
attention and the feed-forward layer of each block, here between two blocks, which any block of one's own allows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.errors import CompressError

Attention = nn.functional.scaled_dot_product_attention


class Merging:
    """What the blocks of one encoder share while it runs: the last block's keys, and what each token stands for."""

    def __init__(self, r: int, prefix: int) -> None:
        """``r`` tokens fewer before each block but the first; the first ``prefix``, of a class, are never merged."""
        self.r, self.prefix = r, prefix
        self.keys: Tensor | None = None
        self.sizes: Tensor | None = None         # (batch, tokens)

    def merge(self, tokens: Tensor) -> Tensor:
        """``(batch, tokens, width)`` to ``r`` fewer, by the keys ``(batch, tokens, channels)`` of the block before."""
        assert self.keys is not None
        sizes = torch.ones_like(tokens[:, :, 0]) if self.sizes is None else self.sizes
        own, sizes_own = tokens[:, self.prefix:], sizes[:, self.prefix:]
        alike = nn.functional.normalize(self.keys[:, self.prefix:], dim=-1)
        gone, stay, onto = matched(alike, min(self.r, own.shape[1] // 2))
        first, second = own[:, ::2], own[:, 1::2]
        first_sizes, second_sizes = sizes_own[:, ::2], sizes_own[:, 1::2]
        weighted = first * first_sizes[..., None]
        merged_sizes = second_sizes + (onto @ first_sizes.gather(1, gone)[..., None])[..., 0]
        sums = second * second_sizes[..., None] + onto @ picked(weighted, gone)
        self.sizes = torch.cat([sizes[:, :self.prefix], first_sizes.gather(1, stay), merged_sizes], 1)
        return torch.cat([tokens[:, :self.prefix], picked(first, stay), sums / merged_sizes[..., None]], 1)


def matched(alike: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of every second token go, which stay, and which of the others those that go are added to.

    Args:
        alike: ``(batch, tokens, channels)`` of length 1.

    Returns:
        Places among the even tokens, i64 ``(batch, r)`` and the rest; and 1 where an odd token gets one of those that
        go, ``(batch, odd tokens, r)``: a product of matrices adds them up, which every backend has kernels for.
    """
    first, second = alike[:, ::2], alike[:, 1::2]
    best, which = (first @ second.transpose(1, 2)).max(-1)
    order = best.argsort(-1, descending=True)
    gone, stay = order[:, :r], order[:, r:]
    places = torch.arange(second.shape[1], device=alike.device)
    onto = (which.gather(1, gone)[:, None, :] == places[None, :, None]).to(alike.dtype)
    return gone, stay, onto


def picked(tokens: Tensor, places: Tensor) -> Tensor:
    """``(batch, tokens, width)`` at ``places`` ``(batch, count)``."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


class _Counted(TorchFunctionMode):
    """Attention of a block: keys are kept, and tokens counted as often as they stand for."""

    def __init__(self, merging: Merging) -> None:
        self.merging = merging

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is not Attention:
            return func(*args, **given)
        named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | given
        # The transformers library hands on a mask of ones where it is traced, of as many tokens as there were at first.
        if named.get("is_causal") or (named.get("attn_mask") is not None and not torch.compiler.is_exporting()):
            raise CompressError("attention of a block has a mask of its own: its tokens cannot be merged")
        self.merging.keys, sizes = named["key"].mean(1), self.merging.sizes
        return func(**{**named, "attn_mask": None if sizes is None else sizes.log()[:, None, None, :]})


class _MergingBlock:
    """Beside a block's own class: its input's tokens are merged, all but in the first."""

    merging: Merging
    begins: bool

    def forward(self, *args: Any, **given: Any) -> Any:
        if self.begins:
            self.merging.keys = self.merging.sizes = None
        elif args:
            args = (self.merging.merge(args[0]), *args[1:])
        else:
            name = next(iter(given))
            given[name] = self.merging.merge(given[name])
        with _Counted(self.merging):
            return super().forward(*args, **given)  # type: ignore[misc]


def merge_tokens(module: nn.Module, blocks: Sequence[str], r: int, prefix: int) -> None:
    """Let the ``blocks`` of an encoder, paths in the order they run, merge ``r`` tokens between each two; in place."""
    merging = Merging(r, prefix)
    for number, path in enumerate(blocks):
        block: Any = module.get_submodule(path)
        kind = type(block)
        block.__class__ = type(f"Merging{kind.__name__}", (_MergingBlock, kind), {"__module__": __name__})
        block.merging, block.begins = merging, number == 0


def apply_merging(module: nn.Module, record: Sequence[Mapping[str, Any]]) -> None:
    """Let a factory's fresh ``module`` merge tokens as the encoders of ``record``, of a channel map, do.

    Raises:
        CompressError: if a block is not in the module, or a number is none.
    """
    modules = dict(module.named_modules())
    for encoder in record:
        missing = [path for path in encoder["blocks"] if path not in modules]
        numbers = [encoder["r"], encoder["prefix"]]
        if missing or not all(type(number) is int and 0 <= number < 1 << 16 for number in numbers):
            raise CompressError(f"the channel map merges tokens of {missing[0] if missing else numbers!r}, which the "
                                "factory's module does not have")
        merge_tokens(module, encoder["blocks"], *numbers)
