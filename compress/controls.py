"""The float controls of a bundle: what its engines are measured beside, kept in a folder of their own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from compress.bench.record import Role
from compress.errors import CompressError
from compress.store import atomic_folder
from runtimes.engine import read_engine
from runtimes.engineset import EngineSet
from runtimes.errors import RuntimesError
from runtimes.records import inside

FORMAT, VERSION = "compress.controls", 3
RECORD = "controls.json"


class Control(NamedTuple):
    """The engines of a float model for the target of that name."""

    name: str
    role: Role
    target: str
    engines: EngineSet


def write_controls(controls: Iterable[Control], into: Path, *, ships: Iterable[EngineSet]) -> None:
    """Write the controls of what ships in a bundle, for each target its engines."""
    with atomic_folder(into) as folder:
        entries = []
        for index, one in enumerate(controls):
            engines = {}
            for graph, engine in one.engines.engines.items():
                path = f"{index}/{graph}"
                shutil.copytree(engine.path, folder / path)
                engines[graph] = {"path": path, "digest": engine.digest}
            entries.append({"name": one.name, "role": one.role, "target": one.target, "engines": engines,
                            "chain": one.engines.chain})
        digests = sorted(engines.digest for engines in ships)
        record = {"format": FORMAT, "version": VERSION, "controls": entries, "ships": digests}
        (folder / RECORD).write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


def read_controls(folder: Path, *, ships: Iterable[str]) -> list[Control]:
    """What :func:`write_controls` wrote, each engine checked by its digest.

    Raises:
        CompressError: if it is damaged, or one of the engine sets whose digests are ``ships`` is not what it was
            written for: figures beside another model's controls would credit one with the other's.
    """
    file = folder / RECORD
    try:
        record = json.loads(file.read_text())
        if (record["format"], record["version"]) != (FORMAT, VERSION):
            raise CompressError(f"{file} is of another format or version: run the recipe again")
        if strange := set(ships) - set(record["ships"]):
            raise CompressError(f"{folder} holds the controls of another bundle (it does not know the engine "
                                f"{min(strange)[:12]}…): name this bundle's with --controls, or move that folder away")
        return [
            Control(entry["name"], entry["role"], entry["target"], _engines(folder, entry, str(file)))
            for entry in record["controls"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimesError) as error:
        raise CompressError(f"{file} is damaged or missing ({error}): run the recipe again") from error


def _engines(folder: Path, entry: Any, where: str) -> EngineSet:
    engines = {}
    for graph, held in entry["engines"].items():
        engine = read_engine(folder / inside(held["path"], where))
        if engine.digest != held["digest"]:
            raise CompressError(f"{engine.path} is not the control it was written as (its digest differs)")
        engines[graph] = engine
    return EngineSet(engines=engines, chain=entry["chain"])
