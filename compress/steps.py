"""What each graph of a model is run on: the feeds that its chain gives it, of a decoder some of its steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from runtimes.spec import Feed

if TYPE_CHECKING:
    from compress.model import Model

STEPS = 3       # of a decoder: with no cache or the prompt's, about the middle, and the last


def graph_feeds(model: Model, feed: Feed) -> dict[str, list[Feed]]:
    """Graph -> what it is run on for ``feed``, one of the model; of a graph that is run often, a few feeds.

    Raises:
        CompressError, RuntimesError: if ``feed`` does not suit the chain.
    """
    if model.chain is None:
        return {name: [{spec.name: feed[spec.name] for spec in graph.inputs}] for name, graph in model.graphs.items()}
    from compress.program import steps_of

    return {name: some(feeds) for name, feeds in steps_of(model, feed).items()}


def some(feeds: Sequence[Feed], count: int = STEPS) -> list[Feed]:
    """The first and the last of ``feeds``, and others as far from each other, ``count`` at most."""
    last = len(feeds) - 1
    places = sorted({round(last * place / max(1, count - 1)) for place in range(count)}) if feeds else []
    return [feeds[place] for place in places]


def first_of(model: Model) -> Mapping[str, list[Feed]]:
    """The example that the model was saved with, graph by graph."""
    return {name: [{spec.name: model.example[spec.name] for spec in graph.inputs}]
            for name, graph in model.graphs.items()}
