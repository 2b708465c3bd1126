"""A folder of pictures or sounds: texts in ``.txt`` files of the same names, labels in the names of the subfolders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calibration.rows import Row

FORM = "folder"
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".m4a", ".opus")
COLUMNS = {**dict.fromkeys(IMAGES, "image"), **dict.fromkeys(SOUNDS, "audio"), ".txt": "text"}
"""Suffix -> the column that its content becomes; what is no JPEG, PNG or sound that can be read is named when it is."""


def takes(path: Path) -> bool:
    return path.is_dir() and any(COLUMNS.get(file.suffix.lower(), "text") != "text" for file in files(path))


def files(path: Path) -> list[Path]:
    found = (file for file in path.rglob("*") if file.suffix.lower() in COLUMNS and file.is_file())
    return sorted(file for file in found if not any(part[0] == "." for part in file.relative_to(path).parts))


def rows(path: Path) -> Iterator[Row]:
    """One for each name without its suffix, in the order of the names."""
    grouped: dict[Path, list[Path]] = {}
    for file in files(path):
        grouped.setdefault(file.with_suffix(""), []).append(file)
    for stem, members in grouped.items():
        names = stem.relative_to(path).parts
        values: dict[str, Any] = {"label": names[0]} if len(names) > 1 else {}
        problem = None
        for file in members:
            column = COLUMNS[file.suffix.lower()]
            if column in values:
                problem = f"is there twice, as {members[0].name!r} and {file.name!r}: rename or remove one"
                break
            if column != "text":
                values[column] = str(file.relative_to(path))
                continue
            try:
                values[column] = file.read_text(encoding="utf-8-sig").strip()
            except UnicodeDecodeError as error:
                problem = f"has a text that is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
            except OSError as error:
                problem = f"has a text that cannot be read ({error.strerror})"
        if problem is None and values.keys() <= {"label", "text"}:
            problem = "has a text without its picture or sound"
        yield Row(where=str(stem), values=values, folder=path, problem=problem)
