"""The engines of a model, opened to be measured: run whole, as a device app runs them, and looked into one by one."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import numpy as np

from runtimes.backends import Layer, Runner, open_engine
from runtimes.chain import Chain
from runtimes.engineset import EngineSet
from runtimes.errors import RuntimesError
from runtimes.session import Session
from runtimes.spec import Feed

GENERATIONS = 5     # answers that are watched token by token, after the clock has stopped

Told = Callable[[str, Feed], None]
"""``told(graph, feed)``, after each run of a graph."""


class Running:
    """An engine as its backend runs it, or a chain of them; ``run`` takes feeds that were checked."""

    def __init__(self, engines: EngineSet, *, threads: int | None = None) -> None:
        """Open all of them, each with ``threads``.

        Raises:
            RuntimesError: if a backend refuses one, or they do not fit together.
        """
        self.engines = engines
        self._runners: dict[str, Runner] = {}
        self._chain: Chain | None = None
        try:
            alone = engines.alone is not None
            for graph in engines.engines if alone else dict.fromkeys(step.graph for step in engines.wiring.steps):
                self._runners[graph] = open_engine(engines.engines[graph], threads=threads)
            if not alone:
                self._sessions = {graph: Session(engines.engines[graph], runner, graph)
                                  for graph, runner in self._runners.items()}
                self._chain = Chain(engines.wiring, self._sessions, engines.where)
        except BaseException:
            self.close()
            raise

    def run(self, feed: Feed) -> dict[str, np.ndarray]:
        """All outputs of one feed; nothing is taken from the cache of a step, which an app would ask again."""
        if self._chain is None:
            return next(iter(self._runners.values())).run(feed)
        for cache in self._chain.caches.values():
            cache.clear()
        return self._chain.run(feed)

    def layers(self, feed: Feed | None) -> list[tuple[str, Layer]]:
        """The layers of every graph, each with its graph's name.

        Times and multiply-accumulates are of all runs of a graph that ``feed`` takes: those of the run in the middle of
        them, where a cache has about its mean length, times their number.
        """
        if self._chain is None:
            return [(graph, layer) for graph, runner in self._runners.items() for layer in runner.layers(feed)]
        runs, middle = (dict.fromkeys(self._runners, 1), {}) if feed is None else self._middle(feed)
        return [(graph, _times(layer, runs[graph])) for graph, runner in self._runners.items()
                for layer in runner.layers(middle.get(graph))]

    def generation(self, feed: Feed) -> dict[str, Any] | None:
        """How the answer to ``feed`` comes, token by token; None where nothing is generated.

        ``steps`` of the decoder, one for each token of every sample; ``first_ns``, from the start to its first run's
        end, and ``all_ns``, to its last one's, each of several times.
        """
        loops = [step.graph for step in self.engines.wiring.steps if step.loop] if self._chain is not None else []
        if not loops:
            return None
        found: dict[str, Any] = {"steps": 0, "first_ns": [], "all_ns": []}
        ends: list[int] = []

        def note(graph: str, _: Feed) -> None:
            if graph == loops[0]:
                ends.append(time.perf_counter_ns())

        for _ in range(GENERATIONS):
            ends.clear()
            start = time.perf_counter_ns()
            self._told(feed, note)
            found["steps"] = len(ends)
            found["first_ns"].append(ends[0] - start)
            found["all_ns"].append(ends[-1] - start)
        return found

    def versions(self) -> dict[str, str]:
        return {name: version for runner in self._runners.values() for name, version in runner.versions().items()}

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()
            return
        for runner in self._runners.values():
            with suppress(RuntimesError):
                runner.close()

    def _middle(self, feed: Feed) -> tuple[dict[str, int], dict[str, Feed]]:
        """How often each graph is run for ``feed``, and what on in the middle of that; one feed of each is kept."""
        runs = dict.fromkeys(self._runners, 0)

        def count(graph: str, _: Feed) -> None:
            runs[graph] += 1

        self._told(feed, count)
        done = dict.fromkeys(runs, 0)
        kept: dict[str, Feed] = {}

        def keep(graph: str, given: Feed) -> None:
            if done[graph] == runs[graph] // 2:
                kept[graph] = dict(given)
            done[graph] += 1

        self._told(feed, keep)
        return runs, kept

    def _told(self, feed: Feed, told: Told) -> None:
        """Run the chain once, and tell each run of a graph."""
        sessions = {graph: cast(Session, _Telling(graph, one, told)) for graph, one in self._sessions.items()}
        chain = Chain(self.engines.wiring, sessions, self.engines.where)
        try:
            chain.run(feed)
        finally:
            chain.close()


class _Telling:
    """A session that tells of each run; closing it leaves the session open."""

    def __init__(self, graph: str, session: Session, told: Told) -> None:
        self._graph, self._session, self._told = graph, session, told
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._session.run(feed)
        self._told(self._graph, feed)
        return outputs

    def run_checked(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._session.run_checked(feed)
        self._told(self._graph, feed)
        return outputs

    def close(self) -> None:
        pass


def _times(layer: Layer, runs: int) -> Layer:
    return replace(layer, time_us=None if layer.time_us is None else layer.time_us * runs,
                   macs=None if layer.macs is None else layer.macs * runs)
