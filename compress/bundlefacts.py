"""What is in a bundle, and what changed from one bundle to the next; as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from compress.tensors import tensors_of
from runtimes.backends import BACKENDS, is_installed
from runtimes.bundle import MANIFEST, Bundle, EngineEntry, GraphEntry
from runtimes.session import load

SECTIONS = ("name", "processing", "chain", "accuracy")      # of the manifest, compared as they are


def bundle_facts(bundle: Bundle) -> dict[str, Any]:
    """Graphs, engines, sizes in bytes, specs, golden feeds, processing, and whose signature it has."""
    record = manifest_of(bundle)
    return {
        "name": bundle.name,
        "digest": bundle.digest,
        "signed_by": None if bundle.signed_by is None else bundle.signed_by.hex(),
        "files": len(bundle.files),
        "size_bytes": sum(entry.size for entry in bundle.files.values()) + (bundle.path / MANIFEST).stat().st_size,
        "graphs": {name: _graph_facts(bundle, graph) for name, graph in bundle.graphs.items()},
        "processing": record.get("processing"),
        "chain": record.get("chain"),
        "accuracy": dict(bundle.accuracy),
    }


def self_tests(bundle: Bundle) -> list[dict[str, Any]]:
    """Run the golden feed of each graph on every engine that can run here; a row each, with what was not run and why.

    Raises:
        RuntimesError: if an engine answers something else than it should, or its backend refuses it.
    """
    rows = []
    for name, graph in bundle.graphs.items():
        for target, engine in graph.engines.items():
            reason = _not_here(engine)
            if reason is None:
                load(bundle, graph=name, target=target, self_test=True).close()
            passed = True if reason is None else None
            rows.append({"graph": name, "target": target, "passed": passed, "not_run": reason})
    return rows


def bundle_changes(old: Bundle, new: Bundle) -> dict[str, Any]:
    """What differs between two bundles: sections of the manifest, specs, engines, files, and tensors inside files.

    A tensor's ``changed_bytes`` count the bytes of it that differ; one whose type or shape changed is all new.
    """
    before, after = manifest_of(old), manifest_of(new)
    return {
        "old": old.digest,
        "new": new.digest,
        "sections": [key for key in SECTIONS if before.get(key) != after.get(key)],
        "specs": list(_spec_changes(old, new)),
        "engines": list(_engine_changes(old, new)),
        "files": list(_file_changes(old, new)),
        "tensors": list(_tensor_changes(old, new)),
    }


def manifest_of(bundle: Bundle) -> dict[str, Any]:
    """The manifest as it is written."""
    record: dict[str, Any] = json.loads((bundle.path / MANIFEST).read_bytes())
    return record


def _graph_facts(bundle: Bundle, graph: GraphEntry) -> dict[str, Any]:
    return {
        "inputs": {spec.name: spec.describe() for spec in graph.inputs},
        "outputs": {spec.name: spec.describe() for spec in graph.outputs},
        "engines": {
            target: {
                "backend": engine.backend, "precision": engine.precision, "state": engine.state,
                "digest": engine.digest, "size_bytes": _size(bundle, engine),
                "tolerance": graph.golden.tolerance.get(target),
            }
            for target, engine in graph.engines.items()
        },
        "golden": {"feed": graph.golden.feed, "expected": graph.golden.expected},
    }  # fmt: skip


def _size(bundle: Bundle, engine: EngineEntry) -> int:
    return sum(bundle.files[f"{engine.path}/{name}"].size for name in bundle.engine_files(engine))


def _not_here(engine: EngineEntry) -> str | None:
    if engine.backend not in BACKENDS or not is_installed(engine.backend):
        return f"backend {engine.backend} is not installed"
    return None if engine.state == "runnable" else engine.state


def _spec_changes(old: Bundle, new: Bundle) -> Iterator[dict[str, Any]]:
    for graph in sorted(old.graphs.keys() | new.graphs.keys()):
        for kind in ("inputs", "outputs"):
            before, after = (
                {spec.name: spec for spec in getattr(bundle.graphs[graph], kind)} if graph in bundle.graphs else {}
                for bundle in (old, new)
            )
            for name in sorted(before.keys() | after.keys()):
                was, now = before.get(name), after.get(name)
                if was != now:
                    yield {
                        "graph": graph, "kind": kind[:-1], "name": name,
                        "old": None if was is None else f"{was.modality} {was.describe()}",
                        "new": None if now is None else f"{now.modality} {now.describe()}",
                    }  # fmt: skip


def _engine_changes(old: Bundle, new: Bundle) -> Iterator[dict[str, Any]]:
    before, after = _engines(old), _engines(new)
    for graph, target in sorted(before.keys() | after.keys()):
        was, now = before.get((graph, target)), after.get((graph, target))
        if was != now:
            yield {"graph": graph, "target": target, "change": _change(was, now), "old": was, "new": now}


def _engines(bundle: Bundle) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (name, target): {
            "backend": engine.backend, "precision": engine.precision, "state": engine.state,
            "size_bytes": _size(bundle, engine), "digest": engine.digest,
        }
        for name, graph in bundle.graphs.items()
        for target, engine in graph.engines.items()
    }  # fmt: skip


def _file_changes(old: Bundle, new: Bundle) -> Iterator[dict[str, Any]]:
    for name in sorted(old.files.keys() | new.files.keys()):
        was, now = old.files.get(name), new.files.get(name)
        if was != now:
            sizes = {"old_bytes": was.size if was else None, "new_bytes": now.size if now else None}
            yield {"path": name, "change": _change(was, now), **sizes}


def _tensor_changes(old: Bundle, new: Bundle) -> Iterator[dict[str, Any]]:
    for name in sorted(old.files.keys() & new.files.keys()):
        if old.files[name] == new.files[name]:
            continue
        before, after = tensors_of(old, name), tensors_of(new, name)
        data = [_bytes(bundle, name) for bundle in (old, new)] if before and after else []
        for tensor in sorted(before.keys() | after.keys()):
            was, now = before.get(tensor), after.get(tensor)
            size = now.size if now is not None else 0
            changed = size
            if was is not None and now is not None and was.kind == now.kind and was.size == now.size:
                old_bytes, new_bytes = data[0][was.at : was.at + size], data[1][now.at : now.at + size]
                changed = int(np.count_nonzero(old_bytes != new_bytes))
                if changed == 0:
                    continue
            yield {
                "file": name, "tensor": tensor, "change": _change(was, now), "size_bytes": size,
                "changed_bytes": changed,
            }  # fmt: skip


def _bytes(bundle: Bundle, name: str) -> np.ndarray:
    return np.frombuffer(bundle.read_file(name), np.uint8)


def _change(was: Mapping[str, Any] | object | None, now: Mapping[str, Any] | object | None) -> str:
    return "added" if was is None else "removed" if now is None else "changed"
