"""Open an engine of a bundle and run it: what a device app calls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np

from runtimes.backends import BACKENDS, Runner, find_backend, install_command, is_installed, open_engine
from runtimes.bundle import Bundle, EngineEntry, Golden, GraphEntry, read_bundle
from runtimes.engine import Engine, read_engine
from runtimes.errors import RuntimesError
from runtimes.signing import Key, read_key
from runtimes.spec import TensorSpec, check_feed


class Session:
    """An opened engine; a context manager. ``digest`` is the engine's, by which its measurements are filed."""

    def __init__(self, engine: Engine, runner: Runner, target: str) -> None:
        self.engine = engine
        self.target = target
        self._runner: Runner | None = runner

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

    def run(self, feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the engine once.

        Args:
            feed: input name -> array, as :attr:`inputs` describes them.

        Returns:
            Output name -> array; the arrays are the caller's own.

        Raises:
            FeedError: if the feed does not match the inputs; names the first one that does not.
            RuntimesError: if the session is closed or the backend fails.
        """
        if self._runner is None:
            raise RuntimesError(f"session of {self.engine.path} is closed: load the bundle again")
        return self._runner.run(check_feed(self.engine.inputs, feed))

    def close(self) -> None:
        """Give back the engine's memory; closing twice is harmless."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def load(
    bundle: Path | str | Bundle,
    backend: str | None = None,
    *,
    target: str | None = None,
    graph: str | None = None,
    threads: int | None = None,
    self_test: bool = False,
    key: Key | None = None,
) -> Session:
    """Open a bundle, every file of it checked, and return a session of one of its engines.

    Args:
        bundle: its folder, or what :func:`read_bundle` made of it.
        backend: take an engine of this backend only.
        target: take the engine of this target. Where neither is given, the first engine whose backend is installed is
            taken, in the order of :data:`runtimes.backends.BACKENDS`; one that has been run before one that has not.
        graph: which graph; needed only where the bundle holds several.
        threads: CPU threads to run on; ``None`` leaves it to the backend.
        self_test: run the golden feed and compare before returning.
        key: the public key the bundle must be signed with, as :func:`read_bundle` takes it.

    Raises:
        RuntimesError: if the bundle is damaged, not signed with ``key``, or holds no engine that is asked for; the
            backend is not installed or refuses the engine; or the self-test fails.
    """
    if not isinstance(bundle, Bundle):
        bundle = read_bundle(bundle, key=key)
    elif key is not None and bundle.signed_by != read_key(key):
        raise RuntimesError(f"bundle {bundle.path} was read without this key: read it with read_bundle(path, key=...)")
    held = _graph(bundle, graph)
    target, entry = _choose(bundle, held, backend, target)
    expected = bundle.engine_files(entry)
    engine = read_engine(bundle.path / entry.path, expected=expected)
    session = Session(engine, open_engine(engine, threads=threads, expected=expected), target)
    if self_test:
        try:
            _self_test(session, bundle, held.golden)
        except BaseException:
            session.close()
            raise
    return session


def _graph(bundle: Bundle, name: str | None) -> GraphEntry:
    if name is None and len(bundle.graphs) == 1:
        (name,) = bundle.graphs
    if name is None or name not in bundle.graphs:
        problem = "name one with graph=" if name is None else f"graph {name!r} is not one of them"
        raise RuntimesError(f"bundle {bundle.path} has the graphs {list(bundle.graphs)}: {problem}")
    return bundle.graphs[name]


def _choose(bundle: Bundle, graph: GraphEntry, backend: str | None, target: str | None) -> tuple[str, EngineEntry]:
    if backend is not None:
        find_backend(backend)
    held = {name: f"{entry.backend}, {entry.state}" for name, entry in graph.engines.items()}
    asked = [
        (name, entry) for name, entry in graph.engines.items()
        if target in (None, name) and backend in (None, entry.backend) and entry.backend in BACKENDS
    ]
    if not asked:
        given = {"target": target, "backend": backend}
        wanted = " and ".join(f"{kind} {value!r}" for kind, value in given.items() if value)
        raise RuntimesError(f"bundle {bundle.path} has no engine for {wanted or 'a known backend'}; it has {held}")
    order = list(BACKENDS)
    states = ("runnable", "built, not run", "build on the device")
    asked.sort(key=lambda item: (states.index(item[1].state), order.index(item[1].backend), item[0]))
    found = next((item for item in asked if is_installed(item[1].backend)), None)
    if found is None:
        needed = asked[0][1].backend
        raise RuntimesError(
            f"bundle {bundle.path} needs the backend {needed!r}, which is not installed: {install_command(needed)}"
        )
    return found


def _self_test(session: Session, bundle: Bundle, golden: Golden) -> None:
    where = f"self-test of {session.target!r} in bundle {bundle.path}"
    feed, expected = bundle.read_arrays(golden.feed), bundle.read_arrays(golden.expected)
    tolerance = golden.tolerance.get(session.target)
    if tolerance is None:
        raise RuntimesError(f"{where}: the manifest gives no tolerance for it; write the bundle again")
    missing = [spec.name for spec in session.inputs if spec.name not in feed]
    missing += [spec.name for spec in session.outputs if spec.name not in expected]
    if missing:
        raise RuntimesError(f"{where}: the golden arrays lack {missing[0]!r}; write the bundle again")
    results = session.run({spec.name: feed[spec.name] for spec in session.inputs})
    for name, result in results.items():
        if result.shape != expected[name].shape:
            raise RuntimesError(f"{where}: output {name!r} has shape {result.shape}, expected {expected[name].shape}")
        difference = np.abs(result.astype(np.float64) - expected[name].astype(np.float64)).max(initial=0.0)
        if not difference <= tolerance:  # so that NaN fails
            raise RuntimesError(
                f"{where}: output {name!r} differs from the expected one by {difference:.3g}, allowed {tolerance:.3g}: "
                "this device computes something else; do not use it, and report the backend's version"
            )
