"""Structured pruning: remove the least important channels and heads, and every channel tied to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError
from compress.prune.config import GOALS, PruneConfig, Structure

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from calibration.dataset import CalibrationSet
    from compress.complexity import Complexity
    from compress.metrics import Metric
    from compress.model import Graph, Model
    from compress.prune.curves import Curves
    from compress.prune.forward import GraphFeeds
    from compress.prune.rounding import Rounding

__all__ = [
    "ComponentChange", "MergedTokens", "PruneConfig", "PruneResult", "PrunedGroup", "PrunedVocabulary", "TimedPrune",
    "load_into", "prunable", "prune",
]  # fmt: skip


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
    finer: Mapping[str, int] = field(default_factory=dict)   # group -> of what it is a multiple, not of the target's
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
        if self.finer:
            more["finer"] = dict(self.finer)
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
    config: PruneConfig = PruneConfig(),  # noqa: B008 - frozen
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
    from compress.prune.handed import handed_of
    from compress.prune.standins import stand_in_all
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
    module, calls = _module(model, factory, config.protect)
    if config.vocabulary is not None:
        trimmed = _prune_vocabulary(model, module, calls, data, config, corpus)
        return _prune_further(model, trimmed, data, config, factory=factory, tables=tables, validation=validation,
                              metric=metric, progress=progress)
    original = model
    model, module, whole = stand_in_all(model, module, calls)
    before = count_model(model)

    classes = frozenset(f"{name}/{position}" for name, graph in model.graphs.items()
                        for position, spec in enumerate(graph.outputs) if spec.name in model.labels)

    def told(done: int, of: int, what: str) -> None:
        if progress:
            progress(done * 2 // 5 if config.by_latency else done, of, what)

    ranked = rank_module(module, calls, _feeds_of(model, data), before.modules, config, told, classes=classes,
                         programs={name: graph.program for name, graph in model.graphs.items()},
                         handed=handed_of(model))

    def export(pruned: Pruned) -> Model:
        attributes = {path: dict(held) for path, held in model.channels.get("attributes", {}).items()}
        for path, changed in pruned.attributes.items():
            attributes.setdefault(path, {}).update(changed)
        gone: dict[str, Any] = {"absent": pruned.absent} if pruned.absent else {}
        gone |= {"reshaping": pruned.reshaping} if pruned.reshaping else {}
        kept = {name: held for name, held in model.channels.items() if name != "sparse"}     # the fours are others now
        return export_pruned(model, pruned.module, calls, channels={**kept, "attributes": attributes, **gone},
                             less=pruned.less)

    curves = None
    if config.sensitivity:
        from compress.prune.curves import measure_curves

        looked_at = data if validation is None else validation
        curves = measure_curves(ranked, model, looked_at, metric, config.samples, progress)
    timed = None
    if config.by_latency:
        from compress.prune.latency import prune_to_latency

        smaller, pruned, timed = prune_to_latency(ranked, original, data, config, export, tables, progress)
    else:
        pruned = prune_to_goals(ranked, config)
        smaller = export(pruned)
    after = count_model(smaller)
    return PruneResult(
        model=smaller, removed=pruned.removed, groups=pruned.groups, macs_before=before.total.macs,
        macs_after=after.total.macs, components=_changes(before, after), skipped={**pruned.skipped, **whole},
        check=pruned.check, timed=timed, curves=curves, finer=_finer(pruned.groups, config.rounding))


def _finer(groups: Iterable[PrunedGroup], rounding: Rounding) -> dict[str, int]:
    """The groups that were cut to no multiple of the target's, and of what their width is one."""
    return {group.name: math.gcd(group.after, rounding.multiple) for group in groups
            if group.kind not in ("heads", "blocks") and group.after < group.before and group.after % rounding.multiple}


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
    module, calls = _module(model if result is None else result.model, factory, config.protect)
    smaller, merged = merge_model(model if result is None else result.model, module, calls, data, config.merge_tokens,
                                  config.protect)
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
    from compress.prune.standins import stand_in_all

    if any(getattr(config, name) is not None for name in (*GOALS, "vocabulary", "merge_tokens")):
        result = prune(model, data, replace(config, sparsity=None), factory=factory, **more)
    else:
        whole = count_model(model)
        result = PruneResult(model=model, removed={}, groups=(), macs_before=whole.total.macs, skipped={}, check=0.0,
                             macs_after=whole.total.macs, components=_changes(whole, whole))
    left = result.model
    module, calls = _module(left, factory, config.protect)
    left, module, _ = stand_in_all(left, module, calls)
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
    from compress.complexity import Cost

    nothing = Cost(macs=0, params=0, size_bytes=0)       # is left of a component whose blocks all went
    left = {component: after.components.get(component, nothing) for component in before.components}
    return tuple(ComponentChange(
        name=component, macs_before=cost.macs, macs_after=left[component].macs,
        params_before=cost.params, params_after=left[component].params,
    ) for component, cost in before.components.items())


def load_into(module: nn.Module, model: Model) -> nn.Module:
    """Give ``module``, an unpruned network of the user's own class, the shapes and weights of a pruned ``model``.

    In place; returned as well, in evaluation mode.

    Raises:
        CompressError: if ``module`` is another network.
    """
    from compress.prune.channels import apply_channels
    from compress.prune.standins import apply_stand_ins

    apply_stand_ins(module, model.channels)
    own = list(module.state_dict())
    missing = [name for name in own if name not in model.weights and name not in model.channels.get("absent", {})]
    if missing:
        raise CompressError(f"{type(module).__name__} is not the class of model {model.name!r}, which has no weight "
                            f"{missing[0]!r}")
    apply_channels(module, model.channels, model.weights)
    module.load_state_dict({name: model.weights[name] for name in module.state_dict()})
    return module.eval()


def prunable(
    model: Model, config: PruneConfig = PruneConfig(), *, factory: str | None = None,  # noqa: B008 - frozen
) -> tuple[tuple[PrunedGroup, ...], dict[str, str]]:
    """What :func:`prune` could shrink (``after`` as ``before``), and module path -> why it could not shrink the rest.

    Tried on the model's own example. Raises CompressError as :func:`prune` does.
    """
    from compress.prune.branches import Residuals
    from compress.prune.forward import tensors
    from compress.prune.handed import handed_of
    from compress.prune.standins import stand_in_all
    from compress.prune.structured import find_groups
    from compress.steps import split

    module, calls = _module(model, factory, config.protect)
    model, module, whole = stand_in_all(model, module, calls)
    residuals = Residuals(module, {name: graph.program for name, graph in model.graphs.items()})
    groups, skipped = find_groups(module, calls, tensors(split(model, model.example)), config, residuals=residuals,
                                  handed=handed_of(model))
    found = tuple(PrunedGroup(name=g.name, kind=g.kind, before=g.units, after=g.units) for g in groups)
    return found, {**skipped, **whole}


def _module(
    model: Model, factory: str | None, protect: tuple[str, ...] = (),
) -> tuple[nn.Module, dict[str, Graph]]:
    """A module of one's own to work on, which has all that ``protect`` names, and the method each of its graphs runs.
    """
    import copy

    from compress.factory import build_module
    from compress.model import Graph
    from compress.prune.protection import check_protected

    if model.quantization is not None:
        raise CompressError(f"model {model.name!r} is quantized: prune first, then quantize")
    unknown = [name for name, graph in model.graphs.items() if graph.method is None]
    if unknown and len(model.graphs) > 1:
        raise CompressError(f"model {model.name!r} has {len(model.graphs)} graphs ({', '.join(model.graphs)}), and "
                            f"does not say which method {unknown[0]!r} is: save it again with compress.save")
    live = model.module if factory is None else None
    module = build_module(model, factory) if live is None else copy.deepcopy(live).eval()
    check_protected(module, protect)
    return module, {name: Graph(graph.method or "forward", tuple(spec.name for spec in graph.inputs))
                    for name, graph in model.graphs.items()}
