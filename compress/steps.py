"""What each graph of a model is run on: the feeds that its chain gives it, of a decoder some of its steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from runtimes.spec import Feed

if TYPE_CHECKING:
    from compress.model import Model


def graph_feeds(model: Model, feed: Feed) -> dict[str, list[Feed]]:
    """Graph -> what it is run on for ``feed``, one of the model.

    Of a graph that is run often these are the first feed, one from about the middle, and the last: a cache grows from
    run to run, and memory does not hold all of them.

    Raises:
        CompressError, RuntimesError: if ``feed`` does not suit the chain.
    """
    if model.chain is None:
        return split(model, feed)
    first: dict[str, Feed] = {}
    middle: dict[str, tuple[int, Feed]] = {}
    last: dict[str, tuple[int, Feed]] = {}

    def keep(graph: str, run: int, given: Feed) -> None:
        first.setdefault(graph, given)
        last[graph] = run, given
        if run and run & (run - 1) == 0:        # the latest power of two
            middle[graph] = run, given

    watch(model, feed, keep)
    later = {graph: [found[graph] for found in (middle, last) if graph in found] for graph in first}
    return {graph: [first[graph], *(given for run, given in sorted(dict(found).items()) if run)]
            for graph, found in later.items()}


def watch(model: Model, feed: Feed, told: Callable[[str, int, Feed], None]) -> dict[str, np.ndarray]:
    """Run the chain of ``model`` in torch; ``told(graph, run, feed)`` is called before each run, counted from 0."""
    from compress.program import chain_of, program_runner

    runs = dict.fromkeys(model.graphs, 0)

    def noting(name: str, run: Callable[[Feed], dict[str, np.ndarray]]) -> Callable[[Feed], dict[str, np.ndarray]]:
        def noted(given: Feed) -> dict[str, np.ndarray]:
            told(name, runs[name], dict(given))
            runs[name] += 1
            return run(given)

        return noted

    chain = chain_of(model, {name: noting(name, program_runner(graph)) for name, graph in model.graphs.items()})
    return chain.run(feed)


def split(model: Model, feed: Feed) -> dict[str, list[Feed]]:
    """Graph -> its inputs of ``feed``, which holds those of all."""
    return {name: [{spec.name: feed[spec.name] for spec in graph.inputs}] for name, graph in model.graphs.items()}
