"""What is left of a branch that was removed: its tensors are zeros without storage, of which no file and no engine
knows.

The code of the network's class runs on as it was written. What it computes for the branch is zero, and when the network
is traced it is left out together with all that leads to it (:func:`compress.prune.branches.without`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from compress.errors import CompressError
from compress.prune.channels import ABSENT, name_of, refresh


def take_out(module: nn.Module, tensors: Iterable[str]) -> None:
    """Replace these tensors of ``module``, by their names in the state dict, by zeros that are not part of it."""
    for key in tensors:
        path, _, name = key.rpartition(".")
        owner = module.get_submodule(path)
        held = owner._parameters.pop(name, None)
        before = owner._buffers.pop(name, None) if held is None else held
        if before is not None:
            _put(owner, name, before.new_zeros(()).expand(before.shape))


def _put(owner: nn.Module, name: str, zeros: torch.Tensor) -> None:
    owner._buffers[name] = zeros.detach()
    owner._non_persistent_buffers_set.add(name)
    owner.__dict__[ABSENT] = owner.__dict__.get(ABSENT, frozenset()) | {name}


def absent(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name in a whole network's state dict -> shape, of every tensor that was taken out."""
    return {f"{path}.{name}" if path else name: tuple(layer._buffers[name].shape)
            for path, layer in module.named_modules() for name in sorted(layer.__dict__.get(ABSENT, ()))}


def is_absent(layer: nn.Module, tensor: str = "") -> bool:
    """Whether a layer's weight, or its parameter ``tensor``, was taken out."""
    return name_of(layer, tensor) in layer.__dict__.get(ABSENT, ())


def apply_absent(module: nn.Module, shapes: Mapping[str, Any]) -> None:
    """Take out of a factory's fresh ``module`` what was taken out of a pruned model, in place.

    Args:
        module: as the factory built it.
        shapes: what :func:`absent` says of the pruned module, as it came from a file.

    Raises:
        CompressError: if it names a tensor that the module does not have, or that would grow.
    """
    modules = dict(module.named_modules())
    for key, shape in shapes.items():
        path, _, name = key.rpartition(".")
        owner = modules.get(path)
        held = None if owner is None else owner._parameters.get(name, owner._buffers.get(name))
        if owner is None or held is None:
            raise CompressError(f"the channel map takes out {key!r}, which the factory's module does not have")
        if (not isinstance(shape, list | tuple) or len(shape) != held.dim()
                or any(type(new) is not int or not 0 <= new <= old
                       for new, old in zip(shape, held.shape, strict=True))):
            raise CompressError(f"the channel map takes out {key!r} of shape {shape}, and the factory's module has "
                                f"{tuple(held.shape)}: pruning only makes tensors smaller, so this is another factory")
        owner._parameters.pop(name, None)
        _put(owner, name, held.new_zeros(()).expand(tuple(shape)))
        refresh(owner)


def silence(module: nn.Module, paths: Iterable[str]) -> None:
    """What these layers of ``module`` give is zero from now on: a tensor, or the first of several."""
    for path in paths:
        layer = module.get_submodule(path)
        layer.__dict__["forward"] = _silent(layer.forward)


def _silent(forward: Callable[..., object]) -> Callable[..., object]:
    def silent(*args: object, **kwargs: object) -> object:
        leaves, form = pytree.tree_flatten(forward(*args, **kwargs))
        at = next(number for number, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor))
        leaves[at] = torch.zeros_like(leaves[at])
        return pytree.tree_unflatten(leaves, form)

    return silent
