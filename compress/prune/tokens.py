"""Which encoders have tokens of pictures that can be merged, and a model whose encoders merge them."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from calibration import CalibrationSet
from compress.errors import CompressError
from compress.model import Model
from compress.prune import MergedTokens
from compress.prune.curves import reach_of_components
from compress.prune.exporting import export_pruned
from compress.prune.forward import Calls, Tensors, call, tensors
from compress.prune.merging import Attention, merge_tokens
from compress.prune.protection import is_protected
from compress.steps import graph_feeds
from runtimes.spec import largest_batch

CHECKED = 8                 # samples that the outputs are compared on
MOST_PREFIX = 8             # tokens before a picture's, of a class


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Blocks, by path in the order they run, of ``tokens`` each; the first ``prefix`` are none of the picture."""

    blocks: tuple[str, ...]
    tokens: int
    prefix: int

    @property
    def path(self) -> str:
        """Of the list that the blocks are in."""
        return self.blocks[0].rpartition(".")[0]

    def left(self, r: int) -> int:
        """Tokens in the last block."""
        count = self.tokens - self.prefix
        for _ in self.blocks[1:]:
            count -= min(r, count // 2)
        return count + self.prefix


def merge_model(
    model: Model, module: nn.Module, calls: Calls, data: CalibrationSet, r: int, protect: Sequence[str] = (),
) -> tuple[Model, tuple[MergedTokens, ...]]:
    """The model whose image encoders merge ``r`` tokens between each two blocks, and how far its outputs moved.

    An encoder that ``protect`` matches, or a block of which, is left as it is.

    Raises:
        CompressError: if it has no encoder whose tokens can be merged, or what reads them needs all of them.
    """
    feed = tensors(graph_feeds(model, data.first(largest_batch(model.inputs, CHECKED))))
    found, reasons = find_encoders(model, module, calls, feed)
    for one in [one for one in found if any(is_protected(block, protect) for block in one.blocks)]:
        found.remove(one)
        reasons[one.path] = "protect names it"
    if not found:
        why = "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        raise CompressError(f"prune: merge_tokens={r}: model {model.name!r} has no blocks of a transformer over "
                            f"pictures whose tokens can be merged ({why or 'no list of blocks is given tokens'})")
    small = copy.deepcopy(module)
    for one in found:
        merge_tokens(small, one.blocks, r, one.prefix)
    with torch.no_grad():
        before = call(module, calls, feed)
        try:
            after = call(small, calls, feed)
        except CompressError:
            raise
        except Exception as error:  # the user's forward, which may count on all tokens
            raise _needs_all(found, f"{type(error).__name__}: {error!s:.200}") from error
    moved = [name for name, value in before.items() if after[name].shape != value.shape]
    if moved:
        raise _needs_all(found, f"output {moved[0]} has shape {tuple(after[moved[0]].shape)} instead of "
                                f"{tuple(before[moved[0]].shape)}")
    record = [{"blocks": list(one.blocks), "r": r, "prefix": one.prefix} for one in found]
    made = export_pruned(model, small, calls, channels={**model.channels, "merging": record})
    noises = [_noise(value, after[name]) for name, value in before.items() if value.is_floating_point()]
    noise = max(noises, default=0.0)
    return made, tuple(MergedTokens(
        name=one.path, blocks=len(one.blocks), before=one.tokens, after=one.left(r),
        sqnr_db=-10 * math.log10(noise) if 0 < noise < math.inf else None) for one in found)


def find_encoders(
    model: Model, module: nn.Module, calls: Calls, feed: Tensors,
) -> tuple[list[Encoder], dict[str, str]]:
    """Encoders of pictures alone, and the path of a list of blocks -> why its tokens are not merged."""
    seen = _Seen(module, calls, feed)
    reach = reach_of_components(model)
    found, reasons = [], dict[str, str]()
    for path, blocks in _lists(module):
        if any(block not in seen.given for block in blocks):
            continue
        tokens = seen.given[blocks[0]].shape[1]
        modality = reach.get(model.component_of(path), frozenset())
        patches = seen.patches.get(blocks[0])
        if any(seen.given[block].shape != seen.given[blocks[0]].shape for block in blocks) or any(
                not torch.equal(seen.made[one], seen.given[other]) for one, other in pairwise(blocks)):
            reasons[path] = "its blocks do not hand the same tokens from one to the next"
        elif modality != {"image"}:
            reasons[path] = f"its tokens are of {' and '.join(sorted(modality)) or 'nothing'}, not of pictures alone"
        elif any(block not in seen.attends for block in blocks):
            reasons[path] = "a block has no scaled_dot_product_attention of its tokens to each other without a mask"
        elif patches is None or not 0 <= tokens - patches <= MOST_PREFIX:
            reasons[path] = f"which of its {tokens} tokens are patches of the picture cannot be told"
        else:
            found.append(Encoder(blocks=tuple(blocks), tokens=tokens, prefix=tokens - patches))
    return found, reasons


def _lists(module: nn.Module) -> Iterator[tuple[str, list[str]]]:
    """Lists of at least two modules of one class, by path, and the paths of these."""
    for path, held in module.named_modules():
        if isinstance(held, nn.ModuleList | nn.Sequential) and len(held) > 1 and len({type(one) for one in held}) == 1:
            yield path, [f"{path}.{name}" if path else name for name, _ in held.named_children()]


class _Seen(TorchFunctionMode):
    """One run of the module: what blocks are given and make, those whose tokens attend to each other, and patches."""

    def __init__(self, module: nn.Module, calls: Calls, feed: Tensors) -> None:
        self.given: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.attends: set[str] = set()
        self.patches: dict[str, int] = {}        # block -> places of the last convolution before it
        self._inside: list[str] = []
        self._places: int | None = None
        wanted = {block for _, blocks in _lists(module) for block in blocks}
        hooks = []
        for path, layer in module.named_modules():
            if path in wanted:
                hooks.append(layer.register_forward_pre_hook(self._entering(path), with_kwargs=True))
                hooks.append(layer.register_forward_hook(self._leaving(path)))
            elif isinstance(layer, nn.Conv2d):
                hooks.append(layer.register_forward_hook(self._convolved))
        try:
            with torch.no_grad(), self:
                call(module, calls, {graph: runs[:1] for graph, runs in feed.items()})
        finally:
            for hook in hooks:
                hook.remove()

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is Attention:
            named = dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)) | given
            key, plain = named["key"], named.get("attn_mask") is None and not named.get("is_causal")
            for block in self._inside:
                if plain and key.dim() == 4 and key.shape[2] == self.given[block].shape[1] == named["query"].shape[2]:
                    self.attends.add(block)
        return func(*args, **given)

    def _entering(self, path: str) -> Any:
        def note(layer: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            first = args[0] if args else next(iter(given.values()), None)
            if isinstance(first, Tensor) and first.dim() == 3 and first.is_floating_point():
                self.given[path] = first
                self._inside.append(path)
                if self._places is not None:
                    self.patches[path] = self._places

        return note

    def _leaving(self, path: str) -> Any:
        def note(layer: nn.Module, args: tuple[Any, ...], made: Any) -> None:
            if path in self._inside:
                self._inside.remove(path)
                first = made[0] if isinstance(made, tuple) else made
                if isinstance(first, Tensor):
                    self.made[path] = first
                else:
                    del self.given[path]

        return note

    def _convolved(self, layer: nn.Module, args: tuple[Any, ...], made: Tensor) -> None:
        self._places = made.shape[-1] * made.shape[-2]


def _noise(expected: Tensor, value: Tensor) -> float:
    signal = float(expected.double().square().sum())
    difference = float((value.double() - expected.double()).square().sum())
    return difference / signal if signal else math.inf if difference else 0.0


def _needs_all(found: Sequence[Encoder], why: str) -> CompressError:
    return CompressError(f"what reads the tokens of {', '.join(one.blocks[-1] for one in found)} needs all of them: "
                         f"{why}. Nothing was merged")
