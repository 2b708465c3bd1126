"""What the layers of a group read, and which of it belongs to each unit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.prune.channels import RNNS, axis_of, hidden_rows, weight_of
from compress.prune.groups import Edit, Group
from compress.prune.tracing import channel_axis

Noted = Callable[[str, torch.Tensor], "torch.Tensor | None"]
"""Of a layer's path and what it reads; what is returned takes its place."""


@contextmanager
def reading(module: nn.Module, groups: Sequence[Group], noted: Noted) -> Iterator[None]:
    """``noted`` is told what every layer that reads a group's units is given, while it lasts."""
    with reading_layers(module, sorted({edit.path for group in groups for edit in group.consumers}), noted):
        yield


@contextmanager
def reading_layers(module: nn.Module, paths: Iterable[str], noted: Noted) -> Iterator[None]:
    """``noted`` is told what these layers are given, while it lasts."""
    hooks = [module.get_submodule(path).register_forward_pre_hook(_hook(path, noted), with_kwargs=True)
             for path in paths]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(path: str, noted: Noted) -> Callable[[nn.Module, Any, Any], tuple[Any, dict[str, Any]] | None]:
    def hook(_: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        if args and isinstance(args[0], torch.Tensor):
            changed = noted(path, args[0])
            return None if changed is None else ((changed, *args[1:]), kwargs)
        name = next((name for name, value in kwargs.items() if isinstance(value, torch.Tensor)), None)
        if name is None:
            return None
        changed = noted(path, kwargs[name])
        return None if changed is None else (args, {**kwargs, name: changed})

    return hook


def by_channel(layer: nn.Module, value: torch.Tensor) -> torch.Tensor:
    """``value``, which the layer reads, as ``(samples, everything else, channels)``."""
    if value.dim() == 1:
        value = value[None]
    moved = value.movedim(channel_axis(layer, value), -1)
    return moved.reshape(moved.shape[0], -1, moved.shape[-1])


def per_unit(per_channel: torch.Tensor, edit: Edit) -> np.ndarray:
    """``(samples, channels)`` -> ``(samples, units)``: the sum over the channels each unit owns."""
    unit = [u for u, channels in enumerate(edit.index) for _ in channels]
    channels = [channel for owned in edit.index for channel in owned]
    summed = torch.zeros(per_channel.shape[0], len(edit.index), dtype=per_channel.dtype)
    summed.index_add_(1, torch.tensor(unit), per_channel[:, channels])
    return np.asarray(summed.numpy())


def matrices_of(layer: nn.Module, edit: Edit) -> list[tuple[torch.Tensor, int]]:
    """The weights that an edit cuts, and the axis of each its channels lie on.

    Those of a recurrent layer's hidden units are brought into the form ``(units, gates x inputs)`` first.
    """
    if not isinstance(layer, RNNS):
        return [(weight_of(layer, edit.tensor), axis_of(layer, edit.role, edit.tensor))]
    found: list[tuple[torch.Tensor, int]] = []
    rows = hidden_rows(layer, torch.arange(layer.hidden_size))
    for name in layer._flat_weights_names:
        weight = layer._parameters[name]
        if weight is None or weight.dim() != 2:
            continue
        if edit.role == "in":
            found += [(weight, 1)] if name.startswith("weight_ih_l0") else []
        else:
            gates = weight.detach()[rows].reshape(-1, layer.hidden_size, weight.shape[1])
            found.append((gates.transpose(0, 1).flatten(1), 0))
    return found
