"""Unused vocabulary: rows of embeddings and of the layers that score ids go where no data uses them.

Ids keep their numbers (:mod:`compress.prune.rows`); the model's tokenizers lose the pieces that have no row any more,
so that texts are split into those that have.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from calibration import CalibrationSet
from compress.errors import CompressError
from compress.model import Model, ModelProcessing
from compress.prune import PruneConfig, PrunedVocabulary
from compress.prune.check import FunctionChangedError, difference
from compress.prune.exporting import export_pruned
from compress.prune.forward import Calls, Tensors, call, tensors
from compress.prune.protection import is_protected
from compress.prune.rows import keep_rows
from compress.prune.tables import Vocabulary, find_vocabularies
from compress.prune.tokenfile import TokenFile, gone
from compress.prune.usage import Uses, always_kept, count_ids, uses_of
from compress.steps import graph_feeds
from runtimes.spec import largest_batch

CHECKED = 8                                      # samples the function is compared on


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Ids whose rows stay, and the one whose row the others get; without one they have a row of their own."""

    kept: tuple[int, ...]
    stand_in: int | None


def prune_vocabulary(
    model: Model, module: nn.Module, calls: Calls, data: CalibrationSet, config: PruneConfig, corpus: Path | None,
) -> tuple[Model, tuple[PrunedVocabulary, ...], float]:
    """The model without rows that are not used, what became of each table, and how far outputs differ on kept ids.

    Raises:
        CompressError: if no table holds the ids of texts, fewer rows are asked for than any text needs, nothing says
            what a decoder is to say, or the function would change.
    """
    if "vocabulary" in model.channels:
        raise CompressError(f"the vocabulary of model {model.name!r} is pruned already: start from the one before that")
    feed = tensors(graph_feeds(model, data.first(largest_batch(model.inputs, CHECKED))))
    found = [(one, uses) for one in find_vocabularies(model, module, calls, feed)
             if (uses := uses_of(model, one)) is not None]
    free = [(one, uses) for one, uses in found
            if not any(is_protected(path, config.protect) for path in (*one.tables, *one.heads))]
    if found and not free:
        raise CompressError(f"prune: vocabulary={config.vocabulary}: protect={list(config.protect)} leaves no table to "
                            f"prune: {', '.join(one.name for one, _ in found)} match it")
    found = free
    if not found:
        raise CompressError(
            f"prune: vocabulary={config.vocabulary}: no input of model {model.name!r} that is a text's ids goes to a "
            "table of embeddings as it is; say which are texts with modality or processing when it is saved")
    counts = count_ids(model, found, data, corpus, config.samples)
    choices, files = [], dict[str, list[set[int]]]()
    for (one, uses), count in zip(found, counts, strict=True):
        always, file = always_kept(uses, model.processing, one.name)
        stand_in = _stand_in(uses, file)
        kept = _choose(one, count, always, file, config, extra=stand_in is None)
        choice = Choice(kept=tuple(kept), stand_in=stand_in)
        choices.append(choice)
        for entry in uses.entries:
            if entry.tokenizer is not None:
                files.setdefault(entry.tokenizer, []).append(set(choice.kept))
    small, record = copy.deepcopy(module), {"tables": list[str](), "heads": list[str]()}
    for (one, _), choice in zip(found, choices, strict=True):
        if len(choice.kept) < one.size:
            keep_rows(small, one.tables, one.heads, choice.kept, choice.stand_in)
            record["tables"] += one.tables
            record["heads"] += one.heads
    check = _prove(module, small, calls, feed, [one for one, _ in found], choices)
    made = export_pruned(model, small, calls, channels={**model.channels, "vocabulary": record},
                         processing=_processing(model.processing, found, choices, files))
    return made, tuple(
        PrunedVocabulary(name=one.name, before=one.size, after=len(small.get_submodule(one.name).weight),  # type: ignore[arg-type]
                         heads=one.heads, covered=_share(count, choice.kept))
        for (one, _), choice, count in zip(found, choices, counts, strict=True)), check


def _choose(
    one: Vocabulary, count: np.ndarray, always: set[int], file: TokenFile | None, config: PruneConfig, *, extra: bool,
) -> list[int]:
    """The ids whose rows stay, in order: what is always needed, and what is used most."""
    def whole(ids: Iterable[int]) -> set[int]:
        return {*ids} if file is None else file.with_parts(ids)

    limit = one.size + extra if config.rows is None else config.rows
    multiple, beside = config.rounding.multiple if one.heads else 1, extra and one.tied      # of the outputs of heads
    kept = {number for number in whole(always) if number < one.size}
    if len(kept) + extra > limit:
        raise CompressError(f"prune: vocabulary={config.vocabulary}: {one.name!r} needs {len(kept) + extra} rows for "
                            "special tokens and for what any text may have: give at least as many")
    over = (limit - extra + beside) % multiple
    if config.rows is not None and limit - over >= len(kept) + extra:
        limit -= over
    order = sorted(set(range(one.size)) - kept, key=lambda number: (-count[number], number))
    for number in order:
        if not count[number]:
            break
        more = whole([number]) - kept
        if len(kept) + len(more) + extra <= limit:
            kept |= more
    for number in order:                # up to what kernels like
        if (len(kept) + beside) % multiple == 0 or len(kept) + extra >= limit:
            break
        if number not in kept and whole([number]) <= kept | {number}:
            kept.add(number)
    return sorted(kept) if len(kept) + extra < one.size else list(range(one.size))


def _stand_in(uses: Uses, file: TokenFile | None) -> int | None:
    """The unknown word or piece; not of BPE, which splits all texts into bytes or characters and has it for no text."""
    if file is not None:
        return None if file.kind == "BPE" else file.unknown
    words = [entry.vocabulary for entry in uses.entries if entry.vocabulary is not None]
    return next((one.words.index(one.unknown) for one in words if one.unknown is not None), None)


def _processing(
    processing: ModelProcessing | None, found: Sequence[tuple[Vocabulary, Uses]], choices: Sequence[Choice],
    files: Mapping[str, list[set[int]]],
) -> ModelProcessing | None:
    """The model's own, whose texts give no id that has no row."""
    if processing is None:
        return None
    section: dict[str, dict[str, Any]] = {
        "inputs": dict(processing.section.inputs), "outputs": dict(processing.section.outputs)}
    for (_, uses), choice in zip(found, choices, strict=True):
        kept = set(choice.kept)
        for kind, entries in (("inputs", uses.reads), ("outputs", uses.writes)):
            for name, entry in entries:
                if entry is not None and entry.vocabulary is not None:
                    words = tuple(word if number in kept else gone(number)
                                  for number, word in enumerate(entry.vocabulary.words))
                    vocabulary = dataclasses.replace(entry.vocabulary, words=words)
                    section[kind][name] = dataclasses.replace(entry, vocabulary=vocabulary)
    users = [getattr(entry, "tokenizer", None) for entries in section.values() for entry in entries.values()]
    held = dict(processing.files)
    for name, kept_of in files.items():
        if users.count(name) == len(kept_of):       # others may need its pieces
            held[name] = TokenFile(held[name], name).without(set().union(*kept_of))
    return ModelProcessing(section=dataclasses.replace(processing.section, **section), files=held)


def _prove(
    module: nn.Module, small: nn.Module, calls: Calls, feed: Tensors, found: Sequence[Vocabulary],
    choices: Sequence[Choice],
) -> float:
    """On ids that stay the two compute the same, and score none that is gone highest.

    Raises:
        CompressError: if they do not.
    """
    given = {graph: [dict(run) for run in runs] for graph, runs in feed.items()}
    kept_of = {}
    for one, choice in zip(found, choices, strict=True):
        kept = torch.zeros(one.size, dtype=torch.bool)
        kept[list(choice.kept)] = True
        other = choice.kept[0] if choice.stand_in is None else choice.stand_in
        for graph, name in one.given:
            for run in given[graph]:
                run[name] = torch.where(kept[run[name]], run[name], other)
            if one.heads:
                kept_of[graph, one.size] = kept
    with torch.no_grad():
        before = call(module, calls, given)
        try:
            after = call(small, calls, given)
        except Exception as error:  # the user's forward, which may read the table itself
            raise _changed(found, f"forward fails: {type(error).__name__}: {error!s:.200}") from error

    def of_kept(outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value[..., kept] if (kept := kept_of.get((name.split("/")[0], value.shape[-1]))) is not None
                else value for name, value in outputs.items()}

    try:
        return difference(of_kept(before), of_kept(after))
    except FunctionChangedError as error:
        raise _changed(found, str(error)) from error


def _changed(found: Sequence[Vocabulary], why: str) -> CompressError:
    return CompressError(f"removing rows of {', '.join(one.name for one in found)} would change the function of the "
                         f"model on the ids that stay: {why}. Nothing was pruned")


def _share(count: np.ndarray, kept: Sequence[int]) -> float:
    return 1.0 if not count.sum() else float(count[list(kept)].sum() / count.sum())
