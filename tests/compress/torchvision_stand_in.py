"""What timm and open_clip import of torchvision, where it is not installed; their networks use none of it.

The two libraries want its picture transforms and data sets, which only their data loading calls, and one frozen norm,
by its type alone. The torchvision that pip finds does not import beside a torch of another build.
"""

from __future__ import annotations

import contextlib
import enum
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

from torch import nn

NAMES = ("torchvision", *(f"torchvision.{name}" for name in (
    "datasets", "models", "models.feature_extraction", "ops", "ops.misc", "transforms", "transforms.functional",
    "utils")))
InterpolationMode = enum.Enum("InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")


class Module(types.ModuleType):
    """A module that has a class of every name it is asked for."""

    __path__: list[str] = []  # noqa: RUF012 - as a package has

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, InterpolationMode if name == "InterpolationMode" else type(name, (nn.Module,), {}))
        return getattr(self, name)


@contextlib.contextmanager
def torchvision() -> Iterator[None]:
    """The real one where it is installed, else a stand-in that is gone afterwards."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    for name in NAMES:
        sys.modules[name] = Module(name)
        package, _, last = name.rpartition(".")
        if package:
            setattr(sys.modules[package], last, sys.modules[name])
    try:
        yield
    finally:
        for name in NAMES:
            del sys.modules[name]
