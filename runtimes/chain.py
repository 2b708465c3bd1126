"""The engines of a bundle's graphs, wired together: one object with the ``run`` of a session."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from runtimes.bundle import Bundle, GraphEntry
from runtimes.decoding import decode
from runtimes.errors import FeedError, RuntimesError
from runtimes.hashing import json_digest
from runtimes.loops import Loop
from runtimes.opened import Opened
from runtimes.session import Session
from runtimes.spec import TensorSpec
from runtimes.wiring import Step, Wiring, independent

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Outputs = dict[str, np.ndarray]
CACHE_ENTRIES = 64      # per step that caches: what an app asks again, such as the embeddings of its labels


def open_chain(bundle: Bundle, open_session: Callable[[str, GraphEntry], Session]) -> Chain:
    """Open every graph the bundle's chain uses; a bundle without one is a chain where its graphs are independent."""
    where = f"bundle {bundle.path}"
    try:
        wiring = bundle.chain or independent(bundle.graphs, where)
    except RuntimesError as error:
        raise RuntimesError(f"{where} has the graphs {list(bundle.graphs)}: name one with graph= ({error})") from error
    sessions: dict[str, Session] = {}
    try:
        for graph in dict.fromkeys(step.graph for step in wiring.steps):
            sessions[graph] = open_session(graph, bundle.graphs[graph])
        return Chain(wiring, sessions, where)
    except BaseException:
        for session in sessions.values():
            session.close()
        raise


class Chain(Opened):
    """Opened graphs that feed each other; used as a session is. Closing it closes the ``sessions`` of its graphs.

    Steps that do not wait for each other run at the same time. The inputs of each graph are checked by its session;
    a dimension of one name, ``batch`` say, may differ between graphs that share no input.
    """

    def __init__(
        self, wiring: Wiring, sessions: Mapping[str, Session], where: str, *, together: bool = True
    ) -> None:
        """Without ``together`` the steps run one after the other, on the caller's thread."""
        super().__init__(f"chain of {where}", [sessions])
        self.wiring = wiring
        self.sessions = dict(sessions)
        self.caches = {step.name: Cache(CACHE_ENTRIES) for step in wiring.steps if step.cache}
        self._parallel = together and any(
            other.name not in _before(step, wiring.steps)
            for at, step in enumerate(wiring.steps) for other in wiring.steps[:at]
        )
        self._steps: ThreadPoolExecutor | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.wiring.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.wiring.outputs

    @property
    def target(self) -> str:
        return self._each("target")

    @property
    def backend(self) -> str:
        return self._each("backend")

    @property
    def precision(self) -> str:
        return self._each("precision")

    @property
    def digest(self) -> str:
        """Of the digests of its engines, by graph."""
        return json_digest({graph: session.digest for graph, session in self.sessions.items()})

    @property
    def fallback(self) -> str | None:
        """Why graphs of it run on the CPU in place of the device they were loaded for; ``None`` while none does."""
        reasons = [f"graph {g!r}: {s.fallback}" for g, s in self.sessions.items() if s.fallback is not None]
        return "; ".join(reasons) or None

    def warm_up(self, runs: int) -> None:
        """Run zeros through the chain, ``runs`` times; of a decoder two steps, the first and one with a cache.

        Its steps fit each other, which zeros for each graph alone, a mask and a cache among them, do not.
        """
        steps = tuple(replace(step, cache=False, loop=None if step.loop is None else _short(step.loop))
                      for step in self.wiring.steps)  # fmt: skip
        chain = Chain(replace(self.wiring, steps=steps), self.sessions, self._what, together=False)
        feed = {spec.name: np.zeros(spec.sized(), spec.dtype) for spec in self.inputs}
        for _ in range(runs):
            chain.run(feed)

    def _run(self, feed: Mapping[str, np.ndarray]) -> Outputs:
        names = {spec.name for spec in self.wiring.inputs}
        wrong = sorted(names ^ feed.keys())
        if wrong:
            problem = "lacks input" if wrong[0] in names else "has an unknown input"
            raise FeedError(f"feed {problem} {wrong[0]!r}: expected the inputs {sorted(names)}, got {list(feed)}")
        done = self._run_together(feed) if self._parallel else self._run_in_turn(feed)
        outputs: Outputs = {}
        taken = set()
        for name, source in self.wiring.sources.items():
            array = done[str(source.step)][source.name]
            shared = source.step in self.caches or source in taken
            outputs[name] = array.copy() if shared else array      # the caller's own, as a session's
            taken.add(source)
        return outputs

    def _run_in_turn(self, feed: Mapping[str, np.ndarray]) -> dict[str, Outputs]:
        done: dict[str, Outputs] = {}
        for step in self.wiring.steps:
            done[step.name] = self._run_step(step, feed, done)
        return done

    def _run_together(self, feed: Mapping[str, np.ndarray]) -> dict[str, Outputs]:
        """Each step on a thread, which waits for the steps before it.

        These were handed to the pool earlier and are taken from it in order, so that however few threads it has no
        step waits for one that has not begun.
        """
        from concurrent.futures import wait

        futures: dict[str, Future[Outputs]] = {}

        def run(step: Step) -> Outputs:
            return self._run_step(step, feed, {name: futures[name].result() for name in step.after})

        for step in self.wiring.steps:
            futures[step.name] = self._pool().submit(run, step)
        wait(futures.values())
        return {name: future.result() for name, future in futures.items()}      # the first error, in order

    def _run_step(self, step: Step, feed: Mapping[str, np.ndarray], done: Mapping[str, Outputs]) -> Outputs:
        arrays = {
            name: np.asarray(feed[source.name] if source.step is None else done[source.step][source.name])
            for name, source in step.inputs.items()
        }
        cache = self.caches.get(step.name)
        return self._compute(step, arrays) if cache is None else cache.get(arrays, lambda: self._compute(step, arrays))

    def _compute(self, step: Step, arrays: Outputs) -> Outputs:
        session = self.sessions[step.graph]
        try:
            return session.run(arrays) if step.loop is None else decode(session, step.loop, arrays)
        except FeedError as error:
            raise FeedError(f"step {step.name!r}: {error}") from error

    def _pool(self) -> ThreadPoolExecutor:
        from concurrent.futures import ThreadPoolExecutor

        with self._idle:
            if self._steps is None:
                self._steps = ThreadPoolExecutor(len(self.wiring.steps), thread_name_prefix="runtimes-step")
            return self._steps

    def _release(self) -> None:
        if self._steps is not None:
            self._steps.shutdown()
        for session in self.sessions.values():
            session.close()

    def _each(self, attribute: str) -> str:
        return ", ".join(dict.fromkeys(getattr(session, attribute) for session in self.sessions.values()))


class Cache:
    """The outputs of the last feeds of a step, by the digest of the feed; the longest unused goes first."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.hits = self.misses = 0
        self._kept: OrderedDict[bytes, Outputs] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, feed: Mapping[str, np.ndarray], compute: Callable[[], Outputs]) -> Outputs:
        key = _feed_key(feed)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                self.hits += 1
                return self._kept[key]
            self.misses += 1
        outputs = compute()     # two callers with one new feed both do
        with self._lock:
            self._kept[key] = outputs
            while len(self._kept) > self.entries:
                self._kept.popitem(last=False)
        return outputs

    def clear(self) -> None:
        with self._lock:
            self._kept.clear()

    def __len__(self) -> int:
        return len(self._kept)


def _short(loop: Loop) -> Loop:
    """The same for two steps, whatever it picks."""
    return replace(loop, max_steps=min(2, loop.max_steps), min_steps=0, stop=())


def _feed_key(feed: Mapping[str, np.ndarray]) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    for name, array in sorted(feed.items()):
        digest.update(repr((name, array.dtype.str, array.shape)).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _before(step: Step, steps: tuple[Step, ...]) -> set[str]:
    """Every step that ``step`` waits for, at whatever distance."""
    found = set(step.after)
    for other in reversed(steps):       # in order, so that one pass from the end is enough
        if other.name in found:
            found |= other.after
    return found
