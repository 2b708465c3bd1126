"""What is left whole because its user says so: globs of module paths, each with all under it."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from torch import nn

from compress.errors import CompressError


def is_protected(path: str, globs: Iterable[str]) -> bool:
    """Whether a glob matches the module at ``path``, or one that it is in."""
    parts = path.split(".")
    prefixes = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatchcase(prefix, glob) for glob in globs for prefix in prefixes)


def check_protected(module: nn.Module, globs: Iterable[str]) -> None:
    """Refuse a glob that matches no module and no parameter: what it was to protect would be pruned without a word."""
    known = [*(path for path, _ in module.named_modules()), *(path for path, _ in module.named_parameters())]
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in known):
            paths = ", ".join(path for path, _ in module.named_children())
            raise CompressError(f"prune: protect has {glob!r}, which no module of the model is called: give globs of "
                                f"module paths ({paths}, and what is in them)")
