"""Make a module's tensors smaller: cut channels out of layers; give a fresh module a pruned model's shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from compress.errors import CompressError

Role = Literal["in", "out"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel of a convolution is filtered alone, so that its input and output channels are the same."""
    return isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels > 1


def axis_of(layer: nn.Module, role: Role) -> int:
    """The axis of ``layer.weight`` that its input or output channels lie on."""
    if isinstance(layer, BATCH_NORMS) or is_depthwise(layer):
        return 0
    return int((role == "in") != isinstance(layer, TRANSPOSED))


def width_of(layer: nn.Module, role: Role) -> int:
    """Number of input or output channels of a Linear, convolution or batch norm."""
    return int(weight_of(layer).shape[axis_of(layer, role)])


def weight_of(layer: nn.Module) -> torch.Tensor:
    weight = layer._parameters.get("weight")
    if weight is None:
        raise CompressError(f"a {type(layer).__name__} has no weight of its own")
    return weight


def cut(layer: nn.Module, role: Role, removed: Iterable[int]) -> None:
    """Remove input or output channels of a Linear, convolution or batch norm, in place: new, smaller tensors."""
    gone = set(removed)
    kept = torch.tensor([i for i in range(width_of(layer, role)) if i not in gone], dtype=torch.long)
    axis = axis_of(layer, role)
    if role == "out":
        for name in ("bias", "running_mean", "running_var"):
            _select(layer, name, 0, kept)
    depthwise = is_depthwise(layer)
    _select(layer, "weight", axis, kept)
    if depthwise:
        layer.groups = len(kept)  # type: ignore[assignment]
    _refresh(layer)


def apply_channels(module: nn.Module, channels: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Give a factory's fresh ``module`` the shapes of a pruned model, in place; the values come with ``weights``.

    Args:
        module: as the factory built it, every tensor at its full size.
        channels: ``{"attributes": {module path: {attribute: number}}}``, what pruning rewrote besides tensors.
        weights: the pruned model's state dict.

    Raises:
        CompressError: if the map or the weights name something the module does not have, or a tensor would grow.
    """
    modules = dict(module.named_modules())
    for path, attributes in channels.get("attributes", {}).items():
        if path not in modules:
            raise CompressError(f"the channel map names module {path!r}, which the factory's module does not have")
        for name, value in attributes.items():
            # The map comes from a file: it may change a number the module already has, and nothing else.
            if type(modules[path].__dict__.get(name)) is not int or type(value) is not int:
                raise CompressError(
                    f"the channel map sets {path}.{name} to {value!r}: it may only replace whole numbers")
            setattr(modules[path], name, value)
    for key, weight in weights.items():
        path, _, name = key.rpartition(".")
        owner = modules.get(path)
        held = None if owner is None else owner._parameters.get(name, owner._buffers.get(name))
        if owner is None or held is None or held.shape == weight.shape:
            continue                                      # a key that does not fit is for load_state_dict to refuse
        if held.dim() != weight.dim() or any(new > old for new, old in zip(weight.shape, held.shape, strict=True)):
            raise CompressError(f"weight {key!r} has shape {tuple(weight.shape)}, and the factory's module "
                                f"{tuple(held.shape)}: pruning only makes tensors smaller, so this is another factory")
        _put(owner, name, weight.detach().clone())
        _refresh(owner)


def _select(layer: nn.Module, name: str, axis: int, kept: torch.Tensor) -> None:
    held = layer._parameters.get(name, layer._buffers.get(name))
    if held is not None:
        _put(layer, name, held.detach().index_select(axis, kept.to(held.device)).contiguous())


def _put(layer: nn.Module, name: str, value: torch.Tensor) -> None:
    old = layer._parameters.get(name)
    if old is None:
        layer._buffers[name] = value
    else:
        layer._parameters[name] = nn.Parameter(value, requires_grad=old.requires_grad)


def _refresh(layer: nn.Module) -> None:
    """Rewrite the sizes a standard layer repeats as numbers, from the shape of its weight."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, CONVOLUTIONS):
        layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(layer, TRANSPOSED):
        layer.in_channels, layer.out_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
    elif isinstance(layer, BATCH_NORMS) and layer.running_mean is not None:
        layer.num_features = layer.running_mean.shape[0]
