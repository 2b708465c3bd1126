"""An engine: a folder with what a backend runs, and ``engine.json`` saying what it is and how it was built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, json_digest, tree_digest
from runtimes.records import get, inside, parse_record, string_list, strings, typed, write_json
from runtimes.spec import TensorSpec

Precision = Literal["int8", "fp32", "bf16", "fp16"]
Device = Literal["CPU", "GPU", "NPU"]
State = Literal["runnable", "built, not run", "build on the device"]

FORMAT, VERSION, RECORD = "compress.engine", 1, "engine.json"
KEYS = frozenset({
    "format", "version", "backend", "device", "precision", "entry", "inputs", "outputs", "options", "source",
    "built_with", "state", "notes",
})


@dataclass(frozen=True, kw_only=True)
class Engine:
    """One graph of a model, built for one backend.

    ``digest`` covers every file of the folder, ``engine.json`` among them. ``options`` are given to the backend when a
    session is opened, ``source`` is the digest of the ONNX file the engine was built from, ``built_with`` maps package
    to version.
    """

    path: Path
    digest: str
    backend: str                        # a name of runtimes.backends
    device: Device
    precision: Precision
    entry: str                          # file name handed to the backend, such as "model.xml"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    options: Mapping[str, str]
    source: str
    built_with: Mapping[str, str]
    state: State
    notes: tuple[str, ...] = ()


def write_engine(
    folder: Path,
    *,
    backend: str,
    device: str,
    precision: str,
    entry: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    options: Mapping[str, str],
    source: str,
    built_with: Mapping[str, str],
    state: str,
    notes: Sequence[str] = (),
) -> Engine:
    """Write ``engine.json`` into ``folder``, last, once the backend's files are there; return the engine.

    Raises:
        RuntimesError: if a value is not one an engine can have, or ``entry`` is not a file of the folder.
    """
    record = {
        "format": FORMAT,
        "version": VERSION,
        "backend": backend,
        "device": device,
        "precision": precision,
        "entry": entry,
        "inputs": [spec.to_json() for spec in inputs],
        "outputs": [spec.to_json() for spec in outputs],
        "options": dict(options),
        "source": source,
        "built_with": dict(built_with),
        "state": state,
        "notes": list(notes),
    }
    path = Path(folder) / RECORD
    fields = _parse(record, str(path))
    _check_entry(Path(folder), entry)
    write_json(path, record)
    return Engine(path=Path(folder), digest=tree_digest(Path(folder)), **fields)


def read_engine(folder: Path | str, *, expected: Mapping[str, str] | None = None) -> Engine:
    """The engine in ``folder``.

    Args:
        folder: an engine folder.
        expected: path relative to ``folder`` -> SHA-256, from a record that is trusted (a bundle's manifest).
            ``engine.json`` is then checked against it here, and the other files when the engine is opened; without it
            the digest is computed from the files as they are.

    Raises:
        RuntimesError: if there is no engine, its record is damaged or of another version, or not the expected one.
    """
    folder = Path(folder)
    path = folder / RECORD
    if path.is_symlink() or not path.is_file():
        raise RuntimesError(f"{folder} is not an engine: it has no {RECORD}; name the folder an export wrote")
    data = path.read_bytes()
    if expected is not None and bytes_digest(data) != expected.get(RECORD):
        raise RuntimesError(f"{path} is not the file the manifest lists (its SHA-256 differs): copy the bundle again")
    fields = _parse(parse_record(data, str(path), format=FORMAT, version=VERSION), str(path))
    _check_entry(folder, fields["entry"])
    digest = tree_digest(folder) if expected is None else json_digest(sorted(expected.items()))
    return Engine(path=folder, digest=digest, **fields)


def specs(record: Mapping[str, Any], key: str, where: str) -> tuple[TensorSpec, ...]:
    """The tensor specs under ``key``, whose names must differ."""
    try:
        items = get(record, key, list, where)
        found = tuple(TensorSpec.from_json(typed(item, dict, "an item")) for item in items)
    except RuntimesError as error:
        raise RuntimesError(f"{where}: {key!r}: {error}") from error
    names = [spec.name for spec in found]
    if len(set(names)) != len(names):
        raise RuntimesError(f"{where}: {key!r} has one name twice: {names}; write it again")
    return found


def choice(record: Mapping[str, Any], key: str, kind: Any, where: str) -> Any:
    """``record[key]``, one of the strings of the literal type ``kind``."""
    value = get(record, key, str, where)
    if value not in get_args(kind):
        raise RuntimesError(f"{where}: {key!r} is {value!r:.80}, expected one of {get_args(kind)}")
    return value


def _parse(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    unknown = sorted(record.keys() - KEYS)
    if unknown:
        raise RuntimesError(f"{where} has the unknown key {unknown[0]!r:.80}: it is damaged, build the engine again")
    entry = inside(get(record, "entry", str, where), where)
    return {
        "backend": get(record, "backend", str, where),
        "device": choice(record, "device", Device, where),
        "precision": choice(record, "precision", Precision, where),
        "entry": entry,
        "inputs": specs(record, "inputs", where),
        "outputs": specs(record, "outputs", where),
        "options": strings(record, "options", where),
        "source": get(record, "source", str, where),
        "built_with": strings(record, "built_with", where),
        "state": choice(record, "state", State, where),
        "notes": string_list(record, "notes", where),
    }


def _check_entry(folder: Path, entry: str) -> None:
    path = folder / entry
    if path.is_symlink() or not path.is_file():
        raise RuntimesError(f"{path} is missing: engine {str(folder)!r} names it as its entry; build the engine again")
