"""Where something is: the module, and the line of the user's code that torch, an error or a running frame knows."""

from __future__ import annotations

import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import calibration
import compress
import runtimes
from compress.program import module_path

_TORCH = str(Path(torch.__file__).parent)
_OURS = tuple(str(Path(str(package.__file__)).parent) for package in (compress, calibration, runtimes))
_ZOO = str(Path(_OURS[0], "zoo"))                # reference models are users' code as any other
_LIBRARIES = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}


@dataclass(frozen=True, kw_only=True)
class Place:
    """``path`` is the module's dotted path, ``source`` the line as ``file:line: code``."""

    path: str = ""
    source: str | None = None


def of_node(node: torch.fx.Node) -> Place:
    """Of a node of a program; a program read from a file has no lines."""
    trace = node.meta.get("stack_trace") or ""
    lines = re.findall(r'File "(.+?)", line (\d+), in .*\n\s*(.*)', trace)
    user = next(((f, n, code) for f, n, code in reversed(lines) if _is_users(f)), None)
    source = None if user is None else f"{Path(user[0]).name}:{user[1]}: {user[2].strip()}"
    return Place(path=re.sub(r"@\d+", "", module_path(node)), source=source)


def of_error(error: BaseException, module: nn.Module) -> Place:
    """The innermost line of the user's that ``error`` came through, or one of its causes."""
    cause: BaseException | None = error
    while cause is not None:
        frames = [(frame, line) for frame, line in traceback.walk_tb(cause.__traceback__)]
        place = _of_frames(frames, module)
        if place.source is not None:
            return place
        cause = cause.__cause__
    return Place()


def of_stack(frame: FrameType | None, module: nn.Module) -> Place:
    """The innermost line of the user's that is being run below ``frame``."""
    return _of_frames([(f, line) for f, line in reversed(list(traceback.walk_stack(frame)))], module)


def _of_frames(frames: Iterable[tuple[FrameType, int]], module: nn.Module) -> Place:
    """``frames`` are outermost first. The innermost user's line; the module of the frame it is in, or around it."""
    paths: Mapping[int, str] = {id(child): path for path, child in module.named_modules()}
    path, found = "", Place()
    for frame, line in frames:
        path = paths.get(id(frame.f_locals.get("self")), path)
        file = frame.f_code.co_filename
        if _is_users(file):
            code = linecache.getline(file, line).strip()
            found = Place(path=path, source=f"{Path(file).name}:{line}: {code}")
    return found


def _is_users(file: str) -> bool:
    if file.startswith("<"):
        return False
    if file.startswith(_ZOO):
        return True
    if file.startswith((_TORCH, *_OURS)):
        return False
    return "site-packages" in file or not any(file.startswith(library) for library in _LIBRARIES)
