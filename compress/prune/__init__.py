"""Structured pruning: remove the least important channels and heads, and every channel tied to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from compress.errors import CompressError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from calibration.dataset import CalibrationSet
    from compress.complexity import Complexity
    from compress.metrics import Metric
    from compress.model import Graph, Model
    from compress.prune.curves import Curves
    from compress.prune.forward import GraphFeeds

Importance = Literal["taylor", "fisher", "activation", "magnitude"]
Structure = Literal["channels", "heads", "recurrent", "blocks", "width"]

UNITS: Mapping[Structure, str] = {
    "channels": "channels", "heads": "heads", "recurrent": "hidden units", "blocks": "whole blocks",
    "width": "channels of width"}
"""What each structure is counted in."""

GOALS = ("macs", "params", "size_mb", "speedup", "max_latency_ms")
"""Fields of the config that say how much is pruned."""

__all__ = [
    "ComponentChange", "MergedTokens", "PruneConfig", "PruneResult", "PrunedGroup", "PrunedVocabulary", "TimedPrune",
    "load_into", "prunable", "prune",
]  # fmt: skip

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
        default=None, metadata={"help": "channel counts stay multiples of this, for the kernels; default: what "
                                        "the target's row says, without a target 8"})
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
        if self.round_to is not None and self.round_to < 1:
            raise CompressError(f"prune: round_to={self.round_to} must be at least 1")
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
            if target.backend not in ("tensorrt", "tensorrt_rtx"):
                raise CompressError(
                    f"prune: sparsity={self.sparsity} is of use on TensorRT alone, and {target.name!r} runs on "
                    f"{target.backend}: it would cost accuracy and gain nothing: leave it out")

    def limit_ms(self, original_ms: float) -> float:
        """The most that the engine may take, where the original's takes this."""
        if self.speedup is not None:
            return original_ms / self.speedup
        return original_ms if self.max_latency_ms is None else self.max_latency_ms

    @property
    def multiple(self) -> int:
        """What channel counts stay multiples of."""
        if self.round_to is not None:
            return self.round_to
        if self.target is None:
            return ROUND_TO
        from compress.targets import get_target

        return get_target(self.target).multiple


def _times(share: float | None, whole: int) -> float | None:
    return None if share is None else share * whole


@dataclass(frozen=True, kw_only=True)
class PrunedGroup:
    """Units that were ranked together: ``before`` and ``after`` count channels, hidden units or attention heads."""

    name: str
    kind: Structure
    before: int
    after: int


@dataclass(frozen=True, kw_only=True)
class ComponentChange:
    """MACs of one sample and parameters of one component, before and after."""

    name: str
    macs_before: int
    macs_after: int
    params_before: int
    params_after: int


@dataclass(frozen=True, kw_only=True)
class PrunedVocabulary:
    """Rows of a table of token embeddings ``name`` and of the ``heads`` that score them, before and after."""

    name: str
    before: int
    after: int
    heads: tuple[str, ...]
    covered: float                               # share of the tokens of the data whose rows stayed


@dataclass(frozen=True, kw_only=True)
class MergedTokens:
    """Tokens in the first and in the last of the ``blocks`` of an encoder ``name``; and the model's outputs against
    those without merging, of the output where the signal over the noise is least."""

    name: str
    blocks: int
    before: int
    after: int
    sqnr_db: float | None


@dataclass(frozen=True, kw_only=True)
class TimedPrune:
    """Median latencies of one sample, of fp32 engines timed in turn in fresh processes; and what the table said."""

    target: str
    original_ms: float
    pruned_ms: float
    predicted_ms: float
    rounds: int                                  # mixtures that were built for it

    @property
    def speedup(self) -> float:
        return self.original_ms / self.pruned_ms


@dataclass(frozen=True, kw_only=True)
class PruneResult:
    """The smaller model, and what was removed, what was not and why."""

    model: Model
    removed: Mapping[str, int]                   # module path -> output channels removed
    groups: tuple[PrunedGroup, ...]              # everything that could be pruned, also what was left whole
    macs_before: int
    macs_after: int
    components: tuple[ComponentChange, ...]
    skipped: Mapping[str, str]                   # module path -> why it could not be pruned
    check: float                                 # largest output difference between the zeroed original and the result
    timed: TimedPrune | None = None              # where the goal was a latency
    vocabularies: tuple[PrunedVocabulary, ...] = ()
    curves: Curves | None = None                 # where sensitivity was asked for
    sparse: tuple[str, ...] = ()                 # weights in the 2:4 pattern
    merged: tuple[MergedTokens, ...] = ()

    @property
    def gave_nothing(self) -> tuple[str, ...]:
        """Components that are as large as before."""
        return tuple(c.name for c in self.components if c.params_after == c.params_before > 0)

    def to_json(self) -> dict[str, Any]:
        """The record of the stage, without the model."""
        more: dict[str, Any] = {}
        if self.timed is not None:
            more["latency"] = {**vars(self.timed), "speedup": self.timed.speedup}
        if self.vocabularies:
            more["vocabularies"] = [{**vars(one), "heads": list(one.heads)} for one in self.vocabularies]
        if self.merged:
            more["merged"] = [vars(one) for one in self.merged]
        if self.sparse:
            more["sparse"] = list(self.sparse)
        if self.curves is not None:
            more["sensitivity"] = self.curves.to_json()
        return {
            **more, "macs_before": self.macs_before, "macs_after": self.macs_after, "check_max_abs": self.check,
            "components": [vars(component) for component in self.components],
            "gave_nothing": list(self.gave_nothing),
            "groups": [vars(group) for group in self.groups],
            "removed": dict(self.removed), "skipped": dict(self.skipped),
        }


def prune(
    model: Model,
    data: CalibrationSet,
    config: PruneConfig = PruneConfig(),
    *,
    factory: str | None = None,
    tables: Path | None = None,
    corpus: Path | None = None,
    validation: CalibrationSet | None = None,
    metric: Metric | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> PruneResult:
    """Return a physically smaller copy of ``model`` that keeps no more of it than ``config`` says.

    With a ``vocabulary`` unused rows go first, with ``merge_tokens`` tokens are merged last; nothing else is pruned
    then where no other goal is given.

    Args:
        model: a float model with a factory (or its live module); the layers its graphs share stay shared.
        data: real samples: what importance is measured on and every removal is checked with. Of a model with a chain
            they are the chain's: its graphs are run on what it gives them, a decoder on some of its steps.
        config: how much, by which measure, and what not.
        factory: ``package.module:function`` that the user trusts to rebuild the module.
        tables: a folder that keeps what was timed for a goal in latency, for other goals on that target.
        corpus: a text file, or a folder of ``.txt``, whose tokens are used as well.
        validation, metric: of the sensitivity: labelled samples, and whose drop on them is told; by default the
            outputs' signal over noise on ``data``.
        progress: called with the percent done, 100, and what is being done.

    Raises:
        CompressError: if the model is quantized or cannot be rebuilt, nothing in it can be pruned, a goal cannot be
            reached (with the best that can), or a removal would change the function (naming the group).
    """
    from compress.complexity import count_model
    from compress.onnxmodel import needs_module
    from compress.prune.exporting import export_pruned
    from compress.prune.structured import Pruned, prune_to_goals, rank_module

    needs_module(model, "prune", "channels are taken out of its layers, whose attributes say what is tied to what")
    if config.sparsity is not None:
        config.check_sparsity()
        return _prune_then_sparsify(model, data, config, factory=factory, tables=tables, corpus=corpus,
                                    validation=validation, metric=metric, progress=progress)
    if corpus is not None and config.vocabulary is None:
        raise CompressError("prune: a corpus says which tokens are used: give a vocabulary too")
    if "merging" in model.channels:
        raise CompressError(f"model {model.name!r} merges tokens already: prune the one before that")
    if config.merge_tokens is not None:
        return _merge_tokens(model, data, config, factory, tables=tables, corpus=corpus, validation=validation,
                             metric=metric, progress=progress)
    module, calls = _module(model, factory)
    if config.vocabulary is not None:
        trimmed = _prune_vocabulary(model, module, calls, data, config, corpus)
        return _prune_further(model, trimmed, data, config, factory=factory, tables=tables, validation=validation,
                              metric=metric, progress=progress)
    before = count_model(model)

    classes = frozenset(f"{name}/{position}" for name, graph in model.graphs.items()
                        for position, spec in enumerate(graph.outputs) if spec.name in model.labels)

    def told(done: int, of: int, what: str) -> None:
        if progress:
            progress(done * 2 // 5 if config.by_latency else done, of, what)

    ranked = rank_module(module, calls, _feeds_of(model, data), before.modules, config, told, classes=classes,
                         programs={name: graph.program for name, graph in model.graphs.items()})

    def export(pruned: Pruned) -> Model:
        attributes = {path: dict(held) for path, held in model.channels.get("attributes", {}).items()}
        for path, changed in pruned.attributes.items():
            attributes.setdefault(path, {}).update(changed)
        gone = {"absent": pruned.absent} if pruned.absent else {}
        kept = {name: held for name, held in model.channels.items() if name != "sparse"}     # the fours are others now
        return export_pruned(model, pruned.module, calls, channels={**kept, "attributes": attributes, **gone})

    curves = None
    if config.sensitivity:
        from compress.prune.curves import measure_curves

        looked_at = data if validation is None else validation
        curves = measure_curves(ranked, model, looked_at, metric, config.samples, progress)
    timed = None
    if config.by_latency:
        from compress.prune.latency import prune_to_latency

        smaller, pruned, timed = prune_to_latency(ranked, model, data, config, export, tables, progress)
    else:
        pruned = prune_to_goals(ranked, config)
        smaller = export(pruned)
    after = count_model(smaller)
    return PruneResult(
        model=smaller, removed=pruned.removed, groups=pruned.groups, macs_before=before.total.macs,
        macs_after=after.total.macs, components=_changes(before, after), skipped=pruned.skipped, check=pruned.check,
        timed=timed, curves=curves)


def _feeds_of(model: Model, data: CalibrationSet) -> Callable[[int], Iterator[GraphFeeds]]:
    """From the most samples at a time to what each graph is given of ``data``."""
    from compress.steps import graph_feeds
    from runtimes.spec import largest_batch

    def batches(size: int) -> Iterator[GraphFeeds]:
        most = size if model.chain is None else largest_batch(model.inputs, size)
        return (graph_feeds(model, feed) for feed in data.batches(most))

    return batches


def _merge_tokens(
    model: Model, data: CalibrationSet, config: PruneConfig, factory: str | None, **given: Any,
) -> PruneResult:
    """What else is asked for, and then fewer tokens."""
    from compress.complexity import count_model
    from compress.prune.tokens import merge_model

    assert config.merge_tokens is not None
    before, result = count_model(model), None
    if config.has_goal or config.vocabulary is not None:
        result = prune(model, data, replace(config, merge_tokens=None), factory=factory, **given)
    module, calls = _module(model if result is None else result.model, factory)
    smaller, merged = merge_model(model if result is None else result.model, module, calls, data, config.merge_tokens)
    after = count_model(smaller)
    if result is None:
        result = PruneResult(model=smaller, removed={}, groups=(), macs_before=before.total.macs,
                             macs_after=after.total.macs, components=(), skipped={}, check=0.0)
    return replace(result, model=smaller, macs_after=after.total.macs, components=_changes(before, after),
                   merged=merged)


def _prune_then_sparsify(
    model: Model, data: CalibrationSet, config: PruneConfig, *, factory: str | None, **more: Any,
) -> PruneResult:
    """What else is asked for, if anything is, and of what is left two of every four weights less."""
    from compress.complexity import count_model
    from compress.prune.exporting import export_pruned
    from compress.prune.sparsity import make_sparse, sparse_layers

    if any(getattr(config, name) is not None for name in (*GOALS, "vocabulary", "merge_tokens")):
        result = prune(model, data, replace(config, sparsity=None), factory=factory, **more)
    else:
        whole = count_model(model)
        result = PruneResult(model=model, removed={}, groups=(), macs_before=whole.total.macs, skipped={}, check=0.0,
                             macs_after=whole.total.macs, components=_changes(whole, whole))
    left = result.model
    module, calls = _module(left, factory)
    paths = sparse_layers(module, config.protect)
    if not paths:
        raise CompressError(f"model {left.name!r} has no weight of whole fours of inputs that can be 2:4 sparse: leave "
                            "out sparsity, or list less in protect")

    make_sparse(module, paths, calls, _feeds_of(left, data), config.samples)
    names = tuple(sorted(f"{path}.weight" for path in paths))
    return replace(result, sparse=names,
                   model=export_pruned(left, module, calls, channels={**left.channels, "sparse": list(names)}))


def _prune_vocabulary(
    model: Model, module: nn.Module, calls: dict[str, Graph], data: CalibrationSet, config: PruneConfig,
    corpus: Path | None,
) -> PruneResult:
    from compress.complexity import count_model
    from compress.prune.vocabulary import prune_vocabulary

    smaller, vocabularies, check = prune_vocabulary(model, module, calls, data, config, corpus)
    before, after = count_model(model), count_model(smaller)
    return PruneResult(
        model=smaller, removed={}, groups=(), macs_before=before.total.macs, macs_after=after.total.macs,
        components=_changes(before, after), skipped={}, check=check, vocabularies=vocabularies)


def _prune_further(
    model: Model, smaller: PruneResult, data: CalibrationSet, config: PruneConfig, **given: Any,
) -> PruneResult:
    """What the goals beside a vocabulary ask for: shares of the whole ``model``, as ever."""
    from compress.complexity import count_model

    if not config.has_goal:
        return smaller
    before, after = count_model(model), count_model(smaller.model)
    shares = {name: min(1.0, share * getattr(before.total, name) / getattr(after.total, name))
              for name in ("macs", "params") if (share := getattr(config, name)) is not None}
    result = prune(smaller.model, data, replace(config, vocabulary=None, **shares), **given)
    return replace(result, macs_before=before.total.macs, components=_changes(before, count_model(result.model)),
                   check=max(smaller.check, result.check), vocabularies=smaller.vocabularies)


def _changes(before: Complexity, after: Complexity) -> tuple[ComponentChange, ...]:
    return tuple(ComponentChange(
        name=component, macs_before=cost.macs, macs_after=after.components[component].macs,
        params_before=cost.params, params_after=after.components[component].params,
    ) for component, cost in before.components.items())


def load_into(module: nn.Module, model: Model) -> nn.Module:
    """Give ``module``, an unpruned network of the user's own class, the shapes and weights of a pruned ``model``.

    In place; returned as well, in evaluation mode.

    Raises:
        CompressError: if ``module`` is another network.
    """
    from compress.prune.channels import apply_channels

    own = list(module.state_dict())
    missing = [name for name in own if name not in model.weights and name not in model.channels.get("absent", {})]
    if missing:
        raise CompressError(f"{type(module).__name__} is not the class of model {model.name!r}, which has no weight "
                            f"{missing[0]!r}")
    apply_channels(module, model.channels, model.weights)
    module.load_state_dict({name: model.weights[name] for name in module.state_dict()})
    return module.eval()


def prunable(
    model: Model, config: PruneConfig = PruneConfig(), *, factory: str | None = None,
) -> tuple[tuple[PrunedGroup, ...], dict[str, str]]:
    """What :func:`prune` could shrink (``after`` as ``before``), and module path -> why it could not shrink the rest.

    Tried on the model's own example. Raises CompressError as :func:`prune` does.
    """
    from compress.prune.branches import Residuals
    from compress.prune.forward import tensors
    from compress.prune.structured import find_groups
    from compress.steps import split

    module, calls = _module(model, factory)
    residuals = Residuals(module, {name: graph.program for name, graph in model.graphs.items()})
    groups, skipped = find_groups(module, calls, tensors(split(model, model.example)), config, residuals=residuals)
    return tuple(PrunedGroup(name=g.name, kind=g.kind, before=g.units, after=g.units) for g in groups), skipped


def _module(model: Model, factory: str | None) -> tuple[nn.Module, dict[str, Graph]]:
    """A module of one's own to work on, and the method that each of its graphs runs."""
    import copy

    from compress.factory import build_module
    from compress.model import Graph

    if model.quantization is not None:
        raise CompressError(f"model {model.name!r} is quantized: prune first, then quantize")
    unknown = [name for name, graph in model.graphs.items() if graph.method is None]
    if unknown and len(model.graphs) > 1:
        raise CompressError(f"model {model.name!r} has {len(model.graphs)} graphs ({', '.join(model.graphs)}), and "
                            f"does not say which method {unknown[0]!r} is: save it again with compress.save")
    live = model.module if factory is None else None
    module = build_module(model, factory) if live is None else copy.deepcopy(live).eval()
    return module, {name: Graph(graph.method or "forward", tuple(spec.name for spec in graph.inputs))
                    for name, graph in model.graphs.items()}
