"""How much is pruned, by which measure, and what not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from compress.errors import CompressError

if TYPE_CHECKING:
    from compress.prune.rounding import Rounding

Importance = Literal["taylor", "fisher", "activation", "magnitude"]
Structure = Literal["channels", "heads", "recurrent", "blocks", "width"]

UNITS: Mapping[Structure, str] = {
    "channels": "channels", "heads": "heads", "recurrent": "hidden units", "blocks": "whole blocks",
    "width": "channels of width"}
"""What each structure is counted in."""

GOALS = ("macs", "params", "size_mb", "speedup", "max_latency_ms")
"""Fields of the config that say how much is pruned."""

SPARSE_BACKENDS = ("tensorrt", "tensorrt_rtx")   # that have kernels for 2:4 sparsity
ROUND_TO = 8                                     # where no target says otherwise: a register of AVX2 holds 8 floats


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How much to prune, by which measure, and what to leave whole. Without a goal half of the MACs stay."""

    macs: float | None = field(
        default=None, metadata={"help": "share of the model's MACs to KEEP, in (0, 1]; 0.5 where no goal is given"})
    params: float | None = field(
        default=None, metadata={"help": "share of its parameters to KEEP, in (0, 1]; with other goals all are met"})
    size_mb: float | None = field(
        default=None, metadata={"help": "the most its parameters may take in their own precision, in 10^6 bytes"})
    speedup: float | None = field(
        default=None, metadata={"help": "how many times as fast as the original's fp32 engine, measured on the target"})
    max_latency_ms: float | None = field(
        default=None, metadata={"help": "the most its fp32 engine may take on the target for one sample"})
    protect: tuple[str, ...] = field(
        default=(), metadata={"help": "globs of module paths left untouched, with all under them"})
    structures: tuple[Structure, ...] = field(
        default=("channels", "heads", "recurrent"), metadata={
            "help": "what may shrink: channels (and feed-forward widths), heads, recurrent (hidden units of LSTM, GRU "
                    "and RNN), blocks (whole residual branches: attention, feed-forward), width (of embeddings and "
                    "whole residual streams)"})
    round_to: int | None = field(
        default=None, metadata={"help": "channel counts stay multiples of this, in every layer; default: as "
                                        "--round-near says"})
    round_near: int | None = field(
        default=None, metadata={"help": "the same, but of a divisor of it in layers less than 4 times as wide, or "
                                        "where the goal would be overshot; default: what the target's row says, "
                                        "without a target 8"})
    target: str | None = field(default=None, metadata={
        "help": "what it will run on: its row says how to round, and latencies are measured there (default: local)"})
    importance: Importance = field(
        default="taylor", metadata={
            "help": "taylor (how far the outputs move on samples), fisher (how far the predicted probabilities do), "
                    "activation (weights times activations) or magnitude (of weights)"})
    max_share: float = field(
        default=0.9, metadata={"help": "largest share of its channels or heads one layer may lose, in (0, 1)"})
    samples: int = field(default=256, metadata={"help": "samples that importance is measured on"})
    vocabulary: str | int | None = field(
        default=None, metadata={"help": "remove the rows of token embeddings, and of the layers that score tokens, "
                                        "that no data uses: 'used', or the most rows that may stay; ids keep their "
                                        "numbers"})
    merge_tokens: int | None = field(
        default=None, metadata={"help": "make that many tokens of a picture one with the most similar of the others "
                                        "between each two blocks of a transformer over pictures"})
    sparsity: Literal["2:4"] | None = field(
        default=None, metadata={"help": "zero two of every four neighbouring inputs of the weights of Linear layers "
                                        "and convolutions, for TensorRT's sparse kernels; others gain nothing"})
    sensitivity: bool = field(
        default=False, metadata={"help": "measure as well what each component, modality and group costs that alone "
                                         "keeps 75, 50 and 25 % of its widths"})

    def __post_init__(self) -> None:
        if self.sparsity not in (None, "2:4"):
            raise CompressError(f"prune: sparsity={self.sparsity!r} is unknown: give 2:4")
        if self.sensitivity and self.sparsity is not None and all(getattr(self, name) is None for name in GOALS):
            raise CompressError("prune: sensitivity looks at channels and heads, of which sparsity alone removes none: "
                                "give another goal too")
        if self.vocabulary not in (None, "used") and (self.rows or 0) < 1:
            raise CompressError(f"prune: vocabulary={self.vocabulary!r}: give 'used', or the most rows that may stay")
        if self.merge_tokens is not None and self.merge_tokens < 1:
            raise CompressError(f"prune: merge_tokens={self.merge_tokens} must be at least 1")
        alone = self.vocabulary is not None or self.merge_tokens is not None
        if self.sensitivity and alone and not self.has_goal:
            raise CompressError("prune: sensitivity looks at channels and heads, of which a vocabulary or merged "
                                "tokens alone remove none: give another goal too")
        for goal, what in (("macs", "MACs"), ("params", "parameters")):
            if (share := getattr(self, goal)) is not None and not 0 < share <= 1:
                raise CompressError(f"prune: {goal}={share} is the share of {what} to keep: give a number in (0, 1]")
        if self.size_mb is not None and not 0 < self.size_mb < math.inf:
            raise CompressError(f"prune: size_mb={self.size_mb} must be above 0")
        if self.speedup is not None and not 1 < self.speedup < math.inf:
            raise CompressError(f"prune: speedup={self.speedup} must be above 1")
        if self.max_latency_ms is not None and not 0 < self.max_latency_ms < math.inf:
            raise CompressError(f"prune: max_latency_ms={self.max_latency_ms} must be above 0")
        others = [name for name in GOALS if getattr(self, name) is not None]
        if self.by_latency and len(others) > 1:
            raise CompressError(f"prune: {' and '.join(others)} are goals of different kinds: a goal in latency stands "
                                "alone")
        for name in ("round_to", "round_near"):
            if (multiple := getattr(self, name)) is not None and multiple < 1:
                raise CompressError(f"prune: {name}={multiple} must be at least 1")
        if self.round_to is not None and self.round_near is not None:
            raise CompressError(f"prune: round_to={self.round_to} holds in every layer, and leaves nothing to "
                                f"round_near={self.round_near}: give one of them")
        if self.importance not in get_args(Importance):
            raise CompressError(
                f"prune: importance={self.importance!r} is unknown: give one of {', '.join(get_args(Importance))}")
        unknown = [name for name in self.structures if name not in get_args(Structure)]
        if unknown or not self.structures:
            raise CompressError(f"prune: structures={list(self.structures)}: give some of "
                                f"{', '.join(get_args(Structure))}")
        if not 0 < self.max_share < 1:
            raise CompressError(f"prune: max_share={self.max_share} must be in (0, 1): 1 would empty a layer")
        if self.samples < 1:
            raise CompressError(f"prune: samples={self.samples} must be at least 1")

    def goals(self, macs: int, params: int) -> dict[str, float]:
        """What is asked for, as the most that may be left of a model of so many MACs and parameters."""
        asked = {"macs": _times(self.macs, macs), "params": _times(self.params, params), "size_mb": self.size_mb}
        return {name: limit for name, limit in asked.items() if limit is not None} or {"macs": 0.5 * macs}

    @property
    def has_goal(self) -> bool:
        """Whether it says how much is pruned; by default half of the MACs are."""
        return any(getattr(self, name) is not None for name in GOALS)

    @property
    def rows(self) -> int | None:
        """The most rows of token embeddings that may stay; None for all that are used."""
        given = str(self.vocabulary)
        return int(given) if given.isdecimal() else None

    @property
    def by_latency(self) -> bool:
        return self.speedup is not None or self.max_latency_ms is not None

    def check_sparsity(self) -> None:
        """Refuse sparse weights for a target that has no kernels for them."""
        from compress.targets import get_target

        if self.sparsity is not None and self.target is not None:
            target = get_target(self.target)
            if target.backend not in SPARSE_BACKENDS:
                raise CompressError(
                    f"prune: sparsity={self.sparsity} is of use on TensorRT alone, and {target.name!r} runs on "
                    f"{target.backend}: it would cost accuracy and gain nothing: leave it out")

    def limit_ms(self, original_ms: float) -> float:
        """The most that the engine may take, where the original's takes this."""
        if self.speedup is not None:
            return original_ms / self.speedup
        return original_ms if self.max_latency_ms is None else self.max_latency_ms

    @property
    def rounding(self) -> Rounding:
        """What channel counts stay multiples of; what a target's row says does not hold in narrow layers."""
        from compress.prune.rounding import Rounding
        from compress.targets import get_target

        if self.round_to is not None:
            return Rounding(multiple=self.round_to)
        row = ROUND_TO if self.target is None else get_target(self.target).multiple
        return Rounding(multiple=row if self.round_near is None else self.round_near, exact=False)


def _times(share: float | None, whole: int) -> float | None:
    return None if share is None else share * whole


@dataclass(frozen=True, kw_only=True)
class PruneStage(PruneConfig):
    """A recipe's ``prune`` stage, which says besides whose texts the tokens of a vocabulary are."""

    corpus: str | None = None           # a text file, or a folder of .txt, relative to the recipe
