"""Attention whose code takes the width of its input for that of its heads, as ``x.reshape(batch, length, width)`` does:
its reshapes take what there is.

Only the last size of a reshape can differ, and only where the given ones do not hold the tensor. Whether that is what
the code means a trial of the removal tells, as of everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from compress.errors import CompressError

RESHAPING = "reshaping"                          # in the channel map: the paths of such attention
RESHAPES = (Tensor.view, Tensor.reshape, torch.reshape)


class _Holding(TorchFunctionMode):
    """Reshapes into sizes that do not hold a tensor get another last one."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in RESHAPES and len(args) > 1 and not isinstance(args[1], torch.dtype):
            sizes = list(args[1]) if isinstance(args[1], Sequence) else list(args[1:])
            if -1 not in sizes and prod(sizes) != args[0].numel():
                args = (args[0], [*sizes[:-1], -1])
        return func(*args, **(kwargs or {}))


class _Reshaping:
    """Before an attention's own class."""

    def forward(self, *args: Any, **given: Any) -> Any:
        with _Holding():
            return super().forward(*args, **given)  # type: ignore[misc]


def let_reshape(module: nn.Module, paths: Iterable[str]) -> None:
    """Let the reshapes of attention at ``paths`` take what there is; in place, where they do not already."""
    for path in paths:
        layer: Any = module.get_submodule(path)
        kind = type(layer)
        if not issubclass(kind, _Reshaping):
            layer.__class__ = type(f"Reshaping{kind.__name__}", (_Reshaping, kind), {"__module__": __name__})


def reshaping(module: nn.Module) -> list[str]:
    """The paths of what :func:`let_reshape` has changed."""
    return [path for path, layer in module.named_modules() if isinstance(layer, _Reshaping)]


def apply_reshaping(module: nn.Module, paths: Sequence[str]) -> None:
    """:func:`let_reshape` of a factory's fresh ``module``, as a channel map says.

    Raises:
        CompressError: if ``paths``, which come from a file, are none of the module's.
    """
    known = {path for path, _ in module.named_modules()}
    if not isinstance(paths, list | tuple) or not all(isinstance(path, str) and path in known for path in paths):
        raise CompressError(f"the channel map's {RESHAPING!r} is {paths!r:.80}, expected a list of paths in the "
                            "factory's module")
    let_reshape(module, paths)
