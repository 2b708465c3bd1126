"""A bundle: a directory for a device, whose ``manifest.json`` lists every other file with its size and SHA-256.

``engines/<graph>/<target>/`` hold the engines, ``golden/`` a feed per graph with the outputs expected of it. Reading a
bundle checks all of it: nothing missing, added, changed or linked. Nothing in it is code. ``docs/bundle.md`` describes
the format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runtimes.arrays import parse_arrays
from runtimes.engine import RECORD, Precision, State, choice, specs
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, file_digest, json_digest, tree_paths
from runtimes.records import get, inside, parse_record, typed, write_json
from runtimes.signing import Key, check_signature, read_key
from runtimes.spec import TensorSpec

if TYPE_CHECKING:       # a bundle without these sections does not pay for them at import
    from runtimes.processing.record import Processing
    from runtimes.wiring import Wiring

FORMAT, VERSION, MANIFEST = "compress.bundle", 2, "manifest.json"
SIGNATURE = "manifest.sig"      # the one file that may be there unlisted: it is made of the manifest, and so after it
KEYS = frozenset({"format", "version", "name", "graphs", "files", "accuracy"})
SECTIONS = frozenset({"processing", "chain"})       # may be left out
LARGEST_MANIFEST = 16 << 20     # bytes
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class EngineEntry:
    """Where a target's engine lies in the bundle, and which it is."""

    path: str
    backend: str
    precision: Precision
    digest: str
    state: State


@dataclass(frozen=True, kw_only=True)
class Golden:
    """A feed, the outputs expected of it, and by how much (largest absolute difference) each target may differ."""

    feed: str
    expected: str
    tolerance: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """A graph: what goes in and out of it, its engine for each target, and how to test one."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    engines: Mapping[str, EngineEntry]
    golden: Golden


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A bundle as its manifest describes it; ``digest`` is the manifest's SHA-256, and so covers every file."""

    path: Path
    digest: str
    name: str
    graphs: Mapping[str, GraphEntry]
    files: Mapping[str, FileEntry]
    accuracy: Mapping[str, Any]
    processing: Processing | None = None
    chain: Wiring | None = None
    signed_by: bytes | None = None      # the public key of its signature: to be trusted only if it was asked for

    @property
    def graph(self) -> GraphEntry:
        """The only graph of a bundle of one."""
        if len(self.graphs) != 1:
            raise RuntimesError(f"bundle {self.path} has the graphs {list(self.graphs)}: name one")
        return next(iter(self.graphs.values()))

    @property
    def wiring(self) -> Wiring | None:
        """How its graphs are run together; ``None`` where it has one, which is run by itself.

        Raises:
            RuntimesError: if it has several, of which one takes what another gives, and no chain.
        """
        if self.chain is not None or len(self.graphs) == 1:
            return self.chain
        from runtimes.wiring import independent

        return independent(self.graphs, f"bundle {self.path}")

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the caller gives: to its graph, or to the chain of them."""
        return self.graph.inputs if (wiring := self.wiring) is None else wiring.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the caller gets."""
        return self.graph.outputs if (wiring := self.wiring) is None else wiring.outputs

    @property
    def golden(self) -> Golden:
        return self.graph.golden

    def engine_files(self, entry: EngineEntry) -> dict[str, str]:
        """The SHA-256 of each file of an engine, by its path relative to the engine's folder."""
        return _below(self.files, entry.path)

    def read_file(self, name: str) -> bytes:
        """The bytes of a file of the bundle, checked again: what is returned is what the manifest lists."""
        path = self.path / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise RuntimesError(f"{path} cannot be read ({error.strerror}): copy the bundle again") from error
        if bytes_digest(data) != self.files[name].sha256:
            raise RuntimesError(f"{path} was changed since the bundle was read: copy the bundle again")
        return data

    def read_arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays of an ``.npz`` file of the bundle, its bytes checked again."""
        return parse_arrays(self.read_file(name), str(self.path / name))


def read_bundle(path: Path | str, *, key: Key | None = None) -> Bundle:
    """The bundle in folder ``path``, every file of it checked.

    The manifest is read once: the bytes whose signature is verified are those that are parsed. Every file is hashed
    again when it is used, and the bytes hashed are those used.

    Args:
        path: its folder.
        key: the public key the manifest must be signed with: 32 bytes, or the path of a PEM file. Without one a
            bundle needs no signature; one that is there must still be whole.

    Raises:
        RuntimesError: names the file that is missing, added, changed, a link, or not what the manifest must be; or
            says that the signature is missing, of another key, or of another manifest.
    """
    folder = Path(path)
    try:
        data = _read_small(folder / MANIFEST)
        if data is None:
            raise RuntimesError(f"{folder} is not a bundle: it has no {MANIFEST}; name a folder that holds one")
        return parse_bundle(data, folder, signature=_read_small(folder / SIGNATURE), key=key, check_files=True)
    except OSError as error:
        raise RuntimesError(f"bundle {folder} cannot be read ({error}): copy it again") from error


def parse_bundle(
    manifest: bytes, folder: Path, *, signature: bytes | None, key: Key | None, check_files: bool
) -> Bundle:
    """The bundle that these bytes of ``manifest.json`` and ``manifest.sig`` describe; raises as :func:`read_bundle`.

    Args:
        manifest: the manifest's bytes.
        folder: where the bundle is.
        signature: the signature file's bytes, where there is one.
        key: as :func:`read_bundle` takes it.
        check_files: whether the files are there, and to be checked.
    """
    signed_by, where = None, folder / SIGNATURE
    trusted = None if key is None else read_key(key)
    if signature is not None:
        signed_by = check_signature(signature, manifest, trusted, str(where))
    elif trusted is not None:
        raise RuntimesError(f"bundle {folder} has no {SIGNATURE}, and only signed bundles are trusted: do not use it")
    record = parse_record(manifest, str(folder / MANIFEST), format=FORMAT, version=VERSION)
    bundle = _parse(record, folder, bytes_digest(manifest), signed_by, str(folder / MANIFEST))
    if check_files:
        _check_files(bundle)
    return bundle


def _read_small(path: Path) -> bytes | None:
    """The bytes of the manifest or of its signature; ``None`` where there is none."""
    if path.is_symlink():
        raise RuntimesError(f"{path} is a link: replace it with a regular file")
    if not path.exists():
        return None
    if not path.is_file():
        raise RuntimesError(f"{path} is not a regular file: copy the bundle again")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise RuntimesError(f"{path} is larger than {LARGEST_MANIFEST >> 20} MiB: it is damaged, copy the bundle again")
    return path.read_bytes()


def write_manifest(
    folder: Path,
    *,
    name: str,
    graphs: Mapping[str, GraphEntry],
    accuracy: Mapping[str, Any],
    processing: Processing | None = None,
    chain: Mapping[str, Any] | None = None,
) -> Bundle:
    """Write the manifest of the files in ``folder``, last, once all of them are there; return the bundle, read back."""
    record = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "graphs": {
            graph: {
                "inputs": [spec.to_json() for spec in entry.inputs],
                "outputs": [spec.to_json() for spec in entry.outputs],
                "engines": {target: dict(vars(engine)) for target, engine in entry.engines.items()},
                "golden": dict(vars(entry.golden), tolerance=dict(entry.golden.tolerance)),
            }
            for graph, entry in graphs.items()
        },
        "files": {
            file: {"sha256": file_digest(path), "size": path.stat().st_size}
            for file, path in tree_paths(Path(folder)).items()
            if file not in (MANIFEST, SIGNATURE)
        },
        "accuracy": dict(accuracy),
    }
    for key, section in (("processing", None if processing is None else processing.to_json()), ("chain", chain)):
        if section is not None:
            record[key] = dict(section)
    write_json(Path(folder) / MANIFEST, record)
    return read_bundle(folder)


def _parse(record: Mapping[str, Any], folder: Path, digest: str, signed_by: bytes | None, where: str) -> Bundle:
    unknown = sorted(record.keys() - KEYS - SECTIONS)
    if unknown:
        raise RuntimesError(f"{where} has the unknown key {unknown[0]!r}: it is damaged, write the bundle again")
    listed = _items(record, "files", where)
    files = {inside(name, where): _file(entry, f"{where}: file {name!r}") for name, entry in listed}
    parsed = {name: _graph(entry, files, f"{where}: graph {name!r}") for name, entry in _items(record, "graphs", where)}
    bundle = Bundle(
        path=folder,
        digest=digest,
        name=get(record, "name", str, where),
        graphs=parsed,
        files=files,
        accuracy=get(record, "accuracy", dict, where),
        processing=_processing(record, files, where) if "processing" in record else None,
        chain=_chain(record, parsed, where) if "chain" in record else None,
        signed_by=signed_by,
    )
    if not bundle.graphs:
        raise RuntimesError(f"{where} lists no graph: write the bundle again")
    return bundle


def _items(record: Mapping[str, Any], key: str, where: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, typed(value, dict, f"{where}: {name!r}")) for name, value in get(record, key, dict, where).items()]


def _known(record: Mapping[str, Any], kind: type, where: str) -> None:
    """Refuse a key that is no field of ``kind``."""
    unknown = sorted(record.keys() - {field.name for field in fields(kind)})
    if unknown:
        raise RuntimesError(f"{where} has the unknown key {unknown[0]!r:.80}: it is damaged, write the bundle again")


def _file(record: Mapping[str, Any], where: str) -> FileEntry:
    _known(record, FileEntry, where)
    entry = FileEntry(sha256=get(record, "sha256", str, where), size=get(record, "size", int, where))
    if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
        raise RuntimesError(f"{where} has no SHA-256 of 64 hex digits, or no size: write the bundle again")
    return entry


def _processing(record: Mapping[str, Any], files: Mapping[str, FileEntry], where: str) -> Processing:
    from runtimes.processing.record import FOLDER, parse_processing

    processing = parse_processing(get(record, "processing", dict, where), where)
    for name in processing.files:
        if f"{FOLDER}/{name}" not in files:
            raise RuntimesError(f"{where}: processing: {FOLDER}/{name} is not one of the files listed")
    return processing


def _chain(record: Mapping[str, Any], graphs: Mapping[str, GraphEntry], where: str) -> Wiring:
    from runtimes.wiring import parse_chain

    return parse_chain(get(record, "chain", dict, where), graphs, where)


def _tolerance(value: Any, where: str) -> float:
    tolerance = typed(value, float, where)
    if not 0 <= tolerance < math.inf:
        raise RuntimesError(f"{where} is {tolerance}, expected a finite number of at least 0: write the bundle again")
    return tolerance


def _listed(record: Mapping[str, Any], key: str, files: Mapping[str, FileEntry], where: str) -> str:
    name = inside(get(record, key, str, where), where)
    if name not in files:
        raise RuntimesError(f"{where}: golden {key} {name!r} is not one of the files listed: write the bundle again")
    return name


def _graph(record: Mapping[str, Any], files: Mapping[str, FileEntry], where: str) -> GraphEntry:
    _known(record, GraphEntry, where)
    engines = _items(record, "engines", where)
    return GraphEntry(
        inputs=specs(record, "inputs", where),
        outputs=specs(record, "outputs", where),
        engines={target: _engine(entry, files, f"{where}: engine {target!r}") for target, entry in engines},
        golden=_golden(get(record, "golden", dict, where), files, where),
    )


def _golden(record: Mapping[str, Any], files: Mapping[str, FileEntry], where: str) -> Golden:
    _known(record, Golden, f"{where}: golden")
    tolerance = get(record, "tolerance", dict, where)
    return Golden(
        feed=_listed(record, "feed", files, where),
        expected=_listed(record, "expected", files, where),
        tolerance={name: _tolerance(value, f"{where}: tolerance of {name!r}") for name, value in tolerance.items()},
    )


def _engine(record: Mapping[str, Any], files: Mapping[str, FileEntry], where: str) -> EngineEntry:
    _known(record, EngineEntry, where)
    path = inside(get(record, "path", str, where), where)
    digest = get(record, "digest", str, where)
    members = _below(files, path)
    if RECORD not in members:
        raise RuntimesError(f"{where}: no file {path}/{RECORD} is listed: write the bundle again")
    if json_digest(sorted(members.items())) != digest:
        raise RuntimesError(f"{where}: the files below {path} do not add up to its digest: write the bundle again")
    return EngineEntry(
        path=path,
        backend=get(record, "backend", str, where),
        precision=choice(record, "precision", Precision, where),
        digest=digest,
        state=choice(record, "state", State, where),
    )


def _below(files: Mapping[str, FileEntry], folder: str) -> dict[str, str]:
    prefix = folder + "/"
    return {name.removeprefix(prefix): entry.sha256 for name, entry in files.items() if name.startswith(prefix)}


def _check_files(bundle: Bundle) -> None:
    paths = tree_paths(bundle.path)
    del paths[MANIFEST]
    paths.pop(SIGNATURE, None)
    for name in sorted(bundle.files.keys() - paths.keys()):
        raise RuntimesError(f"{bundle.path / name} is missing: copy the bundle again")
    for name in sorted(paths.keys() - bundle.files.keys()):
        raise RuntimesError(f"{paths[name]} is not listed in {MANIFEST}: remove it, or copy the bundle again")
    for name, path in paths.items():
        if path.stat().st_size != bundle.files[name].size or file_digest(path) != bundle.files[name].sha256:
            raise RuntimesError(f"{path} is not the file {MANIFEST} lists (SHA-256 or size): copy the bundle again")
