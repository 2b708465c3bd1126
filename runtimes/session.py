"""Open an engine of a bundle and run it: what a device app calls."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args, overload

import numpy as np

from runtimes.backends import Runner, TimedRunner, open_engine, zero_feed
from runtimes.bundle import Bundle, GraphEntry, read_bundle
from runtimes.choosing import choose, choose_cpu, find_graph
from runtimes.engine import Engine, read_engine
from runtimes.errors import DeviceGone, RuntimesError
from runtimes.hashing import tree_paths
from runtimes.limits import ResourceLimits
from runtimes.opened import Opened
from runtimes.selftest import self_test as run_self_test
from runtimes.signing import Key, read_key
from runtimes.spec import TensorSpec, check_feed

if TYPE_CHECKING:
    from runtimes.chain import Chain

Fallback = Literal["fail", "cpu"]
Spare = Callable[[str], "tuple[str, Engine, Runner]"]
NO_LIMITS = ResourceLimits()


class Session(Opened):
    """An opened engine; a context manager. ``digest`` is the engine's, by which its measurements are filed.

    Any number of threads may run it. ``fallback`` is the reason why it runs on the CPU in place of the device it was
    loaded for, and ``None`` while it does not; ``target``, ``engine`` and ``digest`` are then the CPU engine's.
    """

    def __init__(
        self,
        engine: Engine,
        runner: Runner,
        target: str,
        *,
        limits: ResourceLimits = NO_LIMITS,
        spare: Spare | None = None,
        on_fallback: Callable[[str], None] | None = None,
    ) -> None:
        """``spare`` opens the CPU's engine for the reason given, should the device of this one be gone."""
        if limits.timeout_s is not None and not isinstance(runner, TimedRunner):
            raise RuntimesError(f"backend {engine.backend!r} cannot end a run early: leave timeout_s out of the limits")
        self._runners = [runner]        # the last one is in use; those before it lost their device
        super().__init__(f"session of {engine.path}", self._runners)
        self.engine = engine
        self.target = target
        self.limits = limits
        self.fallback: str | None = None
        self._spare, self._on_fallback = spare, on_fallback
        self._switching = threading.Lock()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.engine.outputs

    @property
    def backend(self) -> str:
        return self.engine.backend

    @property
    def precision(self) -> str:
        return self.engine.precision

    @property
    def digest(self) -> str:
        return self.engine.digest

    def warm_up(self, runs: int) -> None:
        """Run zeros of the shape the engine is tuned for, ``runs`` times: the first runs of an engine are slower."""
        feed = zero_feed(self.engine)
        for _ in range(runs):
            self.run_checked(feed)

    def run_checked(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """:meth:`run` without looking at the values: for arrays that an engine returned and whose shapes fit."""
        self._enter()
        try:
            return self._run_engine(arrays)
        finally:
            self._leave()

    def _run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = check_feed(self.engine.inputs, feed)
        if self.limits.bounds_feeds:
            self.limits.check_feed(self.engine.inputs, arrays)
        return self._run_engine(arrays)

    def _run_engine(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        runner = self._runners[-1]
        try:
            if self.limits.timeout_s is None:
                return runner.run(arrays)
            return cast(TimedRunner, runner).run_within(arrays, self.limits.timeout_s)
        except DeviceGone as error:
            self._switch(runner, error)
        return self._run_engine(arrays)     # on the CPU now, which has nothing to switch to

    def _switch(self, lost: Runner, error: DeviceGone) -> None:
        """Go over to the CPU's engine, once, and say so; raise ``error`` again where that is not wanted."""
        with self._switching:
            if self._runners[-1] is not lost:   # another thread has switched
                return
            if self._spare is None:
                raise error
            target, engine, runner = self._spare(str(error))
            self._spare = None
            self.target, self.engine, self.fallback = target, engine, str(error)
            self._runners.append(runner)
        self._tell()

    def _tell(self) -> None:
        warnings.warn(f"running on {self.target!r} instead: {self.fallback}", RuntimeWarning, stacklevel=2)
        if self._on_fallback is not None:
            self._on_fallback(str(self.fallback))

    def _release(self) -> None:
        *lost, runner = self._runners
        self._runners.clear()
        for other in lost:
            with suppress(RuntimesError):   # its device is gone: it may have no way to give back anything
                other.close()
        runner.close()


@dataclass(frozen=True, kw_only=True)
class _Opening:
    """How the engines of a bundle are opened: the arguments of :func:`load`."""

    bundle: Bundle
    backend: str | None
    target: str | None
    threads: int | None
    self_test: bool
    warmup: int
    limits: ResourceLimits
    fallback: Fallback
    on_fallback: Callable[[str], None] | None

    def session(self, name: str, graph: GraphEntry) -> Session:
        before = self.limits.resident()
        spare = self._spare(graph) if self.fallback == "cpu" else None
        try:
            target, engine, runner = self._open_chosen(graph)
            reason = None
        except DeviceGone as error:
            if spare is None:
                raise
            reason = str(error)
            target, engine, runner = spare(reason)
            spare = None
        try:
            session = Session(
                engine, runner, target, limits=self.limits, spare=spare, on_fallback=self.on_fallback)
        except RuntimesError:
            runner.close()
            raise
        try:
            if reason is not None:
                session.fallback = reason
                session._tell()
            session.warm_up(self.warmup)
            self.limits.check_growth(before, f"graph {name!r} of {self.bundle.path}")
            if self.self_test:
                run_self_test(session, self.bundle, graph.golden)
        except BaseException:
            session.close()
            raise
        return session

    def _open_chosen(self, graph: GraphEntry) -> tuple[str, Engine, Runner]:
        target, entry = choose(self.bundle, graph, self.backend, self.target)
        expected = self.bundle.engine_files(entry)
        engine = read_engine(self.bundle.path / entry.path, expected=expected)
        if engine.state != "build on the device":
            return target, *self._open(engine, expected)
        from runtimes.built import built_engine

        return target, *self._open(built_engine(engine, expected=expected), None)

    def _open(self, engine: Engine, expected: Mapping[str, str] | None) -> tuple[Engine, Runner]:
        size = sum(path.stat().st_size for path in tree_paths(engine.path).values())
        self.limits.check_size(size, f"engine {engine.path}")
        return engine, open_engine(engine, threads=self.limits.threads(self.threads), expected=expected)

    def _spare(self, graph: GraphEntry) -> Spare:
        def spare(reason: str) -> tuple[str, Engine, Runner]:
            target, engine = choose_cpu(self.bundle, graph, reason=reason)
            return target, *self._open(engine, self.bundle.engine_files(graph.engines[target]))

        return spare


@overload
def load(
    bundle: Path | str | Bundle, backend: str | None = ..., *, graph: str, target: str | None = ...,
    threads: int | None = ..., self_test: bool = ..., key: Key | None = ..., warmup: int = ...,
    limits: ResourceLimits | None = ..., fallback: Fallback = ..., on_fallback: Callable[[str], None] | None = ...,
) -> Session: ...


@overload
def load(
    bundle: Path | str | Bundle, backend: str | None = ..., *, graph: None = ..., target: str | None = ...,
    threads: int | None = ..., self_test: bool = ..., key: Key | None = ..., warmup: int = ...,
    limits: ResourceLimits | None = ..., fallback: Fallback = ..., on_fallback: Callable[[str], None] | None = ...,
) -> Session | Chain: ...


def load(
    bundle: Path | str | Bundle,
    backend: str | None = None,
    *,
    target: str | None = None,
    graph: str | None = None,
    threads: int | None = None,
    self_test: bool = False,
    key: Key | None = None,
    warmup: int = 0,
    limits: ResourceLimits | None = None,
    fallback: Fallback = "fail",
    on_fallback: Callable[[str], None] | None = None,
) -> Session | Chain:
    """Open a bundle, every file of it checked: a session of its engine, or the chain of the engines of its graphs.

    Args:
        bundle: its folder, or what :func:`read_bundle` made of it.
        backend: take an engine of this backend only.
        target: take the engine of this target. Where neither is given, the first engine whose backend is installed is
            taken, in the order of :data:`runtimes.backends.BACKENDS`; one that has been run before one that has not.
            An engine to be built on the device is built first, which takes minutes, unless that was done before.
        graph: open this graph alone, of a bundle that holds several.
        threads: CPU threads to run on, each graph of a chain; ``None`` leaves it to the backend.
        self_test: run the golden feed of each graph and compare before returning.
        key: the public key the bundle must be signed with, as :func:`read_bundle` takes it.
        warmup: run zeros that many times before returning.
        limits: what each engine may use of the machine.
        fallback: what happens when the backend or the device of the engine is not usable, now or at a later run:
            ``"fail"`` raises DeviceGone; ``"cpu"`` opens the bundle's engine for the CPU in its place, once, gives a
            RuntimeWarning and sets the session's ``fallback`` to the reason. Anything else that is wrong with an
            engine, a changed byte above all, raises whatever this says.
        on_fallback: called with the reason, after the warning.

    Raises:
        RuntimesError: if the bundle is damaged, not signed with ``key``, or holds no engine that is asked for; the
            backend refuses the engine; or the self-test fails.
        DeviceGone: if the backend is not installed or its device is not there.
        LimitError: if the engine is beyond the limits.
    """
    if not isinstance(bundle, Bundle):
        bundle = read_bundle(bundle, key=key)
    elif key is not None and bundle.signed_by != read_key(key):
        raise RuntimesError(f"bundle {bundle.path} was read without this key: read it with read_bundle(path, key=...)")
    if fallback not in get_args(Fallback) or warmup < 0:
        known = get_args(Fallback)
        raise RuntimesError(f"fallback is one of {known} and warmup at least 0, got {fallback!r} and {warmup}")
    opening = _Opening(
        bundle=bundle, backend=backend, target=target, threads=threads, self_test=self_test, warmup=warmup,
        limits=limits or NO_LIMITS, fallback=fallback, on_fallback=on_fallback)
    if graph is None and (bundle.chain is not None or len(bundle.graphs) > 1):
        from runtimes.chain import open_chain

        chain = open_chain(bundle, replace(opening, warmup=0).session)
        try:
            chain.warm_up(warmup)
        except BaseException:
            chain.close()
            raise
        chain.origin = bundle, None
        return chain
    name, entry = find_graph(bundle, graph)
    session = opening.session(name, entry)
    session.origin = bundle, name
    return session
