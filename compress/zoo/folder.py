"""The folder that `compress demo` writes: whose it is, and whether it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.zoo import DEMO, Progress
from runtimes.hashing import file_digest, tree_files

FORMAT = {"format": "compress.demo", "version": 1}
DATA = ("train", "calibration", "validation")


def begin(folder: Path, model: str, recipe: str) -> None:
    """Make ``folder``, mark its demo.json as unfinished, and write a recipe unless the user has one there.

    Raises:
        CompressError: if there can be no such folder.
    """
    from compress.store import atomic_write

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CompressError(f"the demo cannot be written to {folder}: {error}") from error
    atomic_write(folder / "demo.json", json.dumps({**FORMAT, "model": model, "unfinished": True}))
    if not (folder / "recipe.yaml").exists():
        atomic_write(folder / "recipe.yaml", recipe)


def finish(folder: Path, record: Mapping[str, Any]) -> None:
    """Write demo.json; from here on the folder is whole."""
    from compress.store import atomic_write

    atomic_write(folder / "demo.json", json.dumps(record, indent=1, allow_nan=False) + "\n")


def read_record(folder: Path, model: str = DEMO) -> dict[str, Any] | None:
    """demo.json of ``folder``, or None where there is nothing yet.

    Raises:
        CompressError: if ``folder`` holds a model, and demo.json is missing, not the demo's, or of another model.
    """
    path = folder / "demo.json"
    if not path.exists():
        if (folder / "model.pt").exists():
            raise CompressError(f"{folder} holds a model.pt that is not the demo's: name another folder")
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CompressError(f"{path} cannot be read: {error}; remove it to train the demo again") from error
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in FORMAT.items()):
        raise CompressError(f"{path} is not a record of this version of the demo: name another folder")
    if (other := found.get("model", DEMO)) != model:
        raise CompressError(f"{folder} holds the demo's model {other!r}, not {model!r}: name another folder")
    return found


def is_whole(folder: Path, found: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether ``folder`` holds all that ``found``, its record, says, made with these ``settings``."""
    same = found.get("settings") == settings and (folder / "recipe.yaml").exists()
    return same and found["files"] == digests(folder, {path.partition("/")[0] for path in found["files"]})


def digests(folder: Path, sets: Iterable[str] = DATA) -> dict[str, str]:
    """Path -> SHA-256 of the model and the data ``sets``; recipe.yaml is the user's to edit, and not among them."""
    files: dict[str, str] = {}
    for name in sets:
        if (folder / name).is_dir():
            files |= {f"{name}/{path}": digest for path, digest in tree_files(folder / name).items()}
    if (folder / "model.pt").is_file():
        files["model.pt"] = file_digest(folder / "model.pt")
    return files


def shifted(progress: Progress | None, before: int, total: int, name: str) -> Progress | None:
    """``progress`` for a part of the work that begins at step ``before`` of ``total``."""
    return None if progress is None else lambda done, _, text: progress(before + done, total, f"{name}: {text}")
