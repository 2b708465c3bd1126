"""Make a module's tensors smaller: cut channels out of layers; give a fresh module a pruned model's shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from compress.errors import CompressError

Role = Literal["in", "out"]
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
RNNS = (nn.LSTM, nn.GRU, nn.RNN)
NORMS = re.compile(r"[Nn]orm|(LN|GRN)$")         # in the name of a class of one's own that is a norm
ABSENT = "absent_tensors"                        # attribute: which of a module's tensors went with a whole branch


class Place(NamedTuple):
    """One side of a layer, or a parameter of a module that is no layer's own: ``tensor`` names that."""

    path: str
    role: Role
    tensor: str = ""


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each channel of a convolution is filtered alone, so that its input and output channels are the same."""
    return isinstance(layer, CONVOLUTIONS) and layer.groups == layer.in_channels == layer.out_channels > 1


def is_norm(layer: nn.Module) -> bool:
    """Whether a layer normalises over its channels, with a weight of them: LayerNorm, RMSNorm, GRN, on any axis.

    A class of one's own counts by its name (``...Norm...``, ``...LN``, ``...GRN``) and has vectors alone, all of one
    length, and no children.
    """
    own = isinstance(layer, nn.LayerNorm | nn.RMSNorm) or NORMS.search(type(layer).__name__)
    if not own or layer._modules or isinstance(layer, (*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm)):
        return False
    held = vectors(layer)
    return len({max(p.shape, default=0) for p in held.values()}) == 1 and all(
        p.dim() and p.numel() == max(p.shape) for p in held.values())


def vectors(norm: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters of a norm by name, also where they went with a whole branch; the first of them is its weight."""
    gone = {name: norm._buffers[name] for name in sorted(norm.__dict__.get(ABSENT, ()))}
    held = {name: p for name, p in {**norm._parameters, **gone}.items() if p is not None}
    return {name: held[name] for name in sorted(held, key=lambda name: name != "weight")}


def name_of(layer: nn.Module, tensor: str = "") -> str:
    """What a layer calls ``tensor``, by default its weight."""
    return tensor or (next(iter(vectors(layer))) if is_norm(layer) else "weight")


def is_per_channel(layer: nn.Module) -> bool:
    """Whether what goes into a channel comes out of the same one: both are called its ``out``."""
    return isinstance(layer, BATCH_NORMS) or is_norm(layer) or is_depthwise(layer)


def axis_of(layer: nn.Module, role: Role, tensor: str = "") -> int:
    """The axis of the layer's weight, or of the parameter ``tensor``, that its input or output channels lie on."""
    if tensor:
        return parameter_axis(weight_of(layer, tensor))
    if isinstance(layer, nn.Embedding):
        return 1
    if is_norm(layer):
        return parameter_axis(weight_of(layer))
    if is_per_channel(layer):
        return 0
    return int((role == "in") != isinstance(layer, TRANSPOSED))


def parameter_axis(parameter: torch.Tensor) -> int:
    """A parameter that is added to what layers give has its channels where they do: last, or behind the batch.

    One that is a vector has them where that lies.
    """
    if parameter.numel() == max(parameter.shape):
        return parameter.shape.index(parameter.numel())
    return 1 if parameter.dim() == 4 else parameter.dim() - 1


def width_of(layer: nn.Module, role: Role, tensor: str = "") -> int:
    """Number of input or output channels of a layer; of a recurrent one those of its input, and its hidden units."""
    if isinstance(layer, RNNS):
        return int(layer.input_size if role == "in" else layer.hidden_size)
    return int(weight_of(layer, tensor).shape[axis_of(layer, role, tensor)])


def weight_of(layer: nn.Module, tensor: str = "") -> torch.Tensor:
    name = name_of(layer, tensor)
    weight = layer._parameters.get(name, layer._buffers.get(name))
    if weight is None:
        raise CompressError(f"a {type(layer).__name__} has no {tensor or 'weight'} of its own")
    return weight


def cut(layer: nn.Module, role: Role, removed: Iterable[int], tensor: str = "") -> None:
    """Remove input or output channels of a layer, or those of its parameter ``tensor``, in place: new, smaller tensors.

    Of a recurrent layer an ``out`` channel is a hidden unit: in every gate, direction and layer of it.
    """
    gone = set(removed)
    kept = torch.tensor([i for i in range(width_of(layer, role, tensor)) if i not in gone], dtype=torch.long)
    if isinstance(layer, RNNS):
        _cut_recurrent(layer, role, kept)
    elif tensor:
        _select(layer, tensor, axis_of(layer, role, tensor), kept)
    elif is_norm(layer):
        for name, vector in vectors(layer).items():
            _select(layer, name, parameter_axis(vector), kept)
    else:
        axis = axis_of(layer, role)
        if role == "out" and not isinstance(layer, nn.Embedding):
            for name in ("bias", "running_mean", "running_var"):
                _select(layer, name, 0, kept)
        depthwise = is_depthwise(layer)
        _select(layer, "weight", axis, kept)
        if depthwise:
            layer.groups = len(kept)  # type: ignore[assignment]
    refresh(layer)


def _cut_recurrent(layer: nn.RNNBase, role: Role, kept: torch.Tensor) -> None:
    hidden = layer.hidden_size
    rows = hidden_rows(layer, kept)
    for name in layer._flat_weights_names:
        first = "_l0" in name and not name.startswith(("weight_hh", "bias"))
        if role == "in":
            if first:
                _select(layer, name, 1, kept)
            continue
        _select(layer, name, 0, rows)
        if name.startswith("weight") and not first:
            width = layer._parameters[name].shape[1]  # type: ignore[union-attr]
            _select(layer, name, 1, torch.cat([kept + start for start in range(0, width, hidden)]))


def hidden_rows(layer: nn.RNNBase, units: torch.Tensor) -> torch.Tensor:
    """The rows of a weight that hidden ``units`` have: one in each gate."""
    gates = weight_of(layer, "weight_hh_l0").shape[0] // layer.hidden_size
    return torch.cat([units + gate * layer.hidden_size for gate in range(gates)])


def ties(module: nn.Module) -> list[list[tuple[nn.Module, str]]]:
    """The parameters that several modules hold as one, each with its holders and what they call it."""
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for layer in module.modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((layer, name))
    return [found for found in holders.values() if len(found) > 1]


def tie(tied: Iterable[Iterable[tuple[nn.Module, str]]]) -> None:
    """Make one parameter again of those that were one, where all of them still have one shape."""
    for (first, name), *others in map(list, tied):
        parameter = first._parameters[name]
        shapes = {layer._parameters[called].shape for layer, called in others}  # type: ignore[union-attr]
        if parameter is not None and shapes == {parameter.shape}:
            for layer, called in others:
                layer._parameters[called] = parameter


def apply_channels(module: nn.Module, channels: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
    """Give a factory's fresh ``module`` the shapes of a pruned model, in place; the values come with ``weights``.

    Args:
        module: as the factory built it, every tensor at its full size.
        channels: what pruning rewrote besides tensors: ``{"attributes": {module path: {attribute: number}}}``, and
            ``"vocabulary": {"tables": [path], "heads": [path]}`` where rows are looked up (:mod:`compress.prune.rows`);
            ``"merging": [{"blocks": [path], "r": number, "prefix": number}]`` (:mod:`compress.prune.merging`);
            ``"absent": {name of a tensor: shape}`` of branches that were removed (:mod:`compress.prune.absent`);
            ``"multihead": [path]`` and ``"conv1d": [path]`` of layers that others stand for
            (:mod:`compress.prune.standins`);
            ``"reshaping": [path]`` of attention whose reshapes take what there is (:mod:`compress.prune.reshaping`).
        weights: the pruned model's state dict.

    Raises:
        CompressError: if the map or the weights name something the module does not have, or a tensor would grow.
    """
    if "multihead" in channels or "conv1d" in channels:
        from compress.prune.standins import apply_stand_ins

        apply_stand_ins(module, channels)
    if "reshaping" in channels:
        from compress.prune.reshaping import apply_reshaping

        apply_reshaping(module, channels["reshaping"])
    if "merging" in channels:
        from compress.prune.merging import apply_merging

        apply_merging(module, channels["merging"])
    if "vocabulary" in channels:
        from compress.prune.rows import apply_rows

        apply_rows(module, channels["vocabulary"], weights)
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
    if "absent" in channels:
        from compress.prune.absent import apply_absent

        apply_absent(module, channels["absent"])
    tied = ties(module)
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
        refresh(owner)
    tie(tied)


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


def refresh(layer: nn.Module) -> None:
    """Rewrite the sizes a standard layer repeats as numbers, from the shape of its weight."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, CONVOLUTIONS):
        layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(layer, TRANSPOSED):
        layer.in_channels, layer.out_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.embedding_dim = layer.weight.shape
    elif isinstance(layer, RNNS):
        layer.hidden_size = layer._parameters["weight_hh_l0"].shape[1]  # type: ignore[union-attr]
        layer.input_size = layer._parameters["weight_ih_l0"].shape[1]  # type: ignore[union-attr]
        layer._flat_weights = [layer._parameters.get(name) for name in layer._flat_weights_names]
    elif isinstance(layer, BATCH_NORMS) and layer.running_mean is not None:
        layer.num_features = layer.running_mean.shape[0]
    elif isinstance(layer, INSTANCE_NORMS) and layer.weight is not None:
        layer.num_features = layer.weight.shape[0]
    elif isinstance(layer, nn.GroupNorm) and layer.weight is not None:
        layer.num_channels = layer.weight.shape[0]
    elif is_norm(layer) and isinstance(layer.__dict__.get("normalized_shape"), list | tuple):
        layer.normalized_shape = (weight_of(layer).numel(),)  # type: ignore[assignment]
