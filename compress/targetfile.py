"""Write a row into the user's ``targets.toml``: what is there already, comments included, stays as it is."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.targets import ALIASES, Target, parse_rows, read_targets, row_of, to_target, user_files

if sys.version_info >= (3, 11):
    import tomllib
else:  # JetPack 6 has Python 3.10
    import tomli as tomllib


def add_target(
    name: str, *, address: str, like: str | None = None, python: str | None = None, here: bool = False
) -> tuple[Path, Target]:
    """Give the row ``name`` an address; a name that no row has becomes a row like ``like``'s.

    Args:
        address: what the user would give to ``ssh``.
        like: the row a new one is copied from.
        python: the interpreter there; the row's own by default.
        here: write into the current folder's ``targets.toml`` instead of the user's.

    Returns:
        The file, and the row as it is now.

    Raises:
        CompressError: if ``like`` is missing for a new name or given for another, the row is this machine's, a value is
            wrong, or the file is damaged or of a form that cannot be edited; the file is then left as it was.
    """
    if name in ALIASES:
        raise CompressError(f"{name!r} means one of the other targets ({ALIASES[name]}): take another name")
    own, folder = user_files()
    file = folder if here else own
    with _alone(file):
        return _added(name, address=address, like=like, python=python, here=here, file=file)


def _added(
    name: str, *, address: str, like: str | None, python: str | None, here: bool, file: Path
) -> tuple[Path, Target]:
    own, folder = user_files()
    known = read_targets(own, folder) if here else read_targets(own)
    values: dict[str, Any] = {"address": address} if python is None else {"address": address, "python": python}
    if not here:
        there = parse_rows(_text(folder), str(folder)).get(name)
        if there is not None and (name not in known or "address" in there):
            raise CompressError(f"target {name!r} is written in {folder.resolve()}, which is read last: add --here")
    if name in known:
        if like is not None:
            raise CompressError(f"target {name!r} is there already: leave out --like, or take another name")
        if known[name].reach == "local":
            raise CompressError(f"target {name!r} is this machine: take another name, with --like {name}")
    elif like is None:
        raise CompressError(f"no target is called {name!r}: say which row it is like, for example --like rpi5")
    else:
        values = {**_copied(row_of(like)), "reach": "ssh", **values}
    after = with_row(_text(file), name, values, str(file))
    base = dataclasses.asdict(known[name]) if name in known else {}
    target = to_target({**base, **parse_rows(after, str(file))[name], "name": name}, f"target {name!r}")
    _write(file, after)
    return file, target


def with_row(text: str, name: str, values: Mapping[str, Any], where: str) -> str:
    """``text`` with these keys in the table ``[target.NAME]``, which is appended if it is not there.

    Raises:
        CompressError: if ``text`` is not a valid file of rows, or writes this row in a form that is not edited here
            (an inline table, dotted keys, a value over several lines); names ``where``.
    """
    rows = parse_rows(text, where)
    end = "\r\n" if "\r\n" in text else "\n"
    lines = text.removesuffix(end).split(end)
    headers = [number for number, line in enumerate(lines) if re.fullmatch(_HEADER.format(re.escape(name)), line)]
    written = {key: f"{key} = {_toml(value)}" for key, value in values.items()}
    if headers:
        _change_table(lines, headers[0], written)
    else:
        lines += [*([""] if lines and lines[-1].strip() else []), f"[target.{_key(name)}]", *written.values()]
    after = end.join(lines) + end
    expected = {**rows, name: {**rows.get(name, {}), **values}}
    try:
        same = tomllib.loads(after).get("target") == expected
    except tomllib.TOMLDecodeError:
        same = False
    if not same:
        row = ", ".join(written.values())
        raise CompressError(f"{where} writes target {name!r} in a form that is not edited here: write into it {row}")
    return after


_HEADER = r"""\s*\[\s*target\s*\.\s*(?:{0}|"{0}"|'{0}')\s*\]\s*(?:#.*)?"""
_VALUE = r"""\s*(?:{0}|"{0}"|'{0}')\s*=\s*(?:"(?:[^"\\]|\\.)*"|'[^']*'|[^\s#\[{{"']+)(?P<rest>\s*(?:#.*)?)"""


def _change_table(lines: list[str], header: int, written: Mapping[str, str]) -> None:
    """Replace the keys that the table has, keeping the comments behind them, and put the others under its header."""
    end = next((at for at in range(header + 1, len(lines)) if re.match(r"\s*\[", lines[at])), len(lines))
    new = []
    for key, line in written.items():
        for at in range(header + 1, end):
            if match := re.fullmatch(_VALUE.format(re.escape(key)), lines[at]):
                lines[at] = line + match["rest"]
                break
        else:
            new.append(line)
    lines[header + 1 : header + 1] = new


def _copied(row: Target) -> dict[str, Any]:
    """What a row of its own has to say to be like ``row``: the required fields, and the others that are not default."""
    values = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if field.name not in ("name", "address") and value != field.default:
            values[field.name] = list(value) if isinstance(value, tuple) else value
    return values


def _toml(value: Any) -> str:
    """A string, number or list of strings; JSON's form of these is TOML's."""
    return json.dumps(value, ensure_ascii=False)


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


def _text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8")        # line ends as they are
    except FileNotFoundError:
        return "version = 1\n"
    except (OSError, UnicodeDecodeError) as error:
        raise CompressError(f"{file} cannot be read as TOML: {error}") from error


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Of several that add a row, one after the other reads and writes; what is locked is the folder."""
    if sys.platform == "win32":     # no fcntl, and a folder cannot be opened
        yield
        return
    import fcntl

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(file.parent, os.O_RDONLY)
    except OSError as error:
        raise CompressError(f"{file} cannot be written ({error.strerror}): nothing was changed") from error
    try:
        with contextlib.suppress(OSError):      # a file system without locks
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _write(file: Path, text: str) -> None:
    """The file appears under its name only when complete; a link to it stays one, and its permissions stay."""
    file = file.resolve()
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if file.exists():
            shutil.copymode(file, temporary)
        os.replace(temporary, file)
    except OSError as error:
        raise CompressError(f"{file} cannot be written ({error.strerror}): nothing was changed") from error
    finally:
        temporary.unlink(missing_ok=True)
