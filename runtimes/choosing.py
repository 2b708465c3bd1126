"""Which engine of a graph is opened: the one that is asked for, the best that can run here, or the CPU's instead."""

from __future__ import annotations

from runtimes.backends import BACKENDS, find_backend, install_command, is_installed
from runtimes.bundle import Bundle, EngineEntry, GraphEntry
from runtimes.engine import Engine, read_engine
from runtimes.errors import DeviceGone, RuntimesError

_STATES = ("runnable", "built, not run", "build on the device")


def find_graph(bundle: Bundle, name: str | None) -> tuple[str, GraphEntry]:
    """The graph called ``name``, or the only one."""
    if name is None and len(bundle.graphs) == 1:
        (name,) = bundle.graphs
    if name is None or name not in bundle.graphs:
        problem = "name one with graph=" if name is None else f"graph {name!r} is not one of them"
        raise RuntimesError(f"bundle {bundle.path} has the graphs {list(bundle.graphs)}: {problem}")
    return name, bundle.graphs[name]


def choose(bundle: Bundle, graph: GraphEntry, backend: str | None, target: str | None) -> tuple[str, EngineEntry]:
    """The target and the entry of the engine to open.

    Raises:
        RuntimesError: if the bundle holds none of this backend and target.
        DeviceGone: if none of their backends is installed.
    """
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
    asked.sort(key=lambda item: (_STATES.index(item[1].state), order.index(item[1].backend), item[0]))
    found = next((item for item in asked if is_installed(item[1].backend)), None)
    if found is None:
        needed = asked[0][1].backend
        raise DeviceGone(
            f"bundle {bundle.path} needs the backend {needed!r}, which is not installed: {install_command(needed)}"
        )
    return found


def choose_cpu(bundle: Bundle, graph: GraphEntry, *, reason: str) -> tuple[str, Engine]:
    """The target and the engine of this graph that runs on any CPU, for when the one asked for cannot (``reason``).

    Raises:
        DeviceGone: if the bundle has none, or the backend of none is installed.
    """
    for name, entry in graph.engines.items():
        if entry.state == "runnable" and entry.backend in BACKENDS and is_installed(entry.backend):
            engine = read_engine(bundle.path / entry.path, expected=bundle.engine_files(entry))
            if engine.device == "CPU":
                return name, engine
    held = {name: f"{entry.backend}, {entry.state}" for name, entry in graph.engines.items()}
    raise DeviceGone(
        f"{reason}; and for fallback='cpu' bundle {bundle.path} has no engine for the CPU that can run here, it has "
        f"{held}: add a CPU target to the bundle, or install its backend"
    )
