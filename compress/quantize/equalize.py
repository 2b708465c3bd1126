"""Cross-layer equalisation: a layer's channels and the weights that read them get equal ranges.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1, equations 9-11.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.model import Model
from compress.quantize.following import find_scalable
from compress.quantize.scaling import Reader, Scalable, largest, of_inputs

_LAYERS = ("linear", "conv1d", "conv2d")
SWEEPS = 50             # over all pairs, which change each other's ranges where a layer is in two
CONVERGED = 1e-3        # the largest change of a scale in a sweep, relative


def equalize(model: Model) -> tuple[Model, int]:
    """``model`` with the same function and equalised weights, and how many layers had channels to equalise.

    Channels of convolutions and linear layers whose only readers are such layers too, behind ReLU or what else keeps a
    factor (:mod:`compress.quantize.following`); ReLU6 does not. Channel ``i`` is divided by ``sqrt(r1 / r2)`` where
    ``r1`` is the largest weight that makes it and ``r2`` the largest that reads it: both become ``sqrt(r1 r2)``.
    A channel that no weight makes, or none reads, stays.
    """
    found = find_scalable(model)
    of_layer = torch.zeros_like(found.free)
    for source in found.sources:
        of_layer[source.channels] = source.op in _LAYERS
    found.free &= of_layer
    layers = sum(bool(found.free[source.channels].any()) for source in found.sources)
    if not layers:
        return model, 0
    return found.rescaled(model, equal_scales(found, model)), layers


def equal_scales(found: Scalable, model: Model) -> Tensor:
    """What each free channel is to be divided by, f64 ``(channels,)``; 1 for the others."""
    weights = {name: model.weights[name].detach().double().abs()
               for name in {*(source.weight for source in found.sources), *(reader.weight for reader in found.readers)}}
    scales = torch.ones(len(found.free), dtype=torch.float64)
    for _ in range(SWEEPS):
        before = scales.clone()
        for source in found.sources:
            own = torch.zeros_like(found.free)
            own[source.channels] = found.free[source.channels]
            if not own.any():
                continue
            made = torch.zeros_like(scales)
            made[source.channels] = _current(weights[source.weight], source.weight, found, scales).flatten(1).amax(1)
            read = largest(((reader, _columns(reader, weights, found, scales)) for reader in found.readers
                            if own[reader.channels[reader.channels >= 0]].any()), len(scales))
            change = torch.sqrt(made / read)
            own &= (made > 0) & (read > 0)
            scales[own] *= change[own]
        if float((scales / before).log().abs().max()) < CONVERGED:
            break
    return scales


def _current(weight: Tensor, name: str, found: Scalable, scales: Tensor) -> Tensor:
    """The magnitudes ``weight`` has with ``scales``."""
    for source in found.sources:
        if source.weight == name:
            weight = weight / scales[source.channels].reshape(-1, *[1] * (weight.ndim - 1))
    for reader in found.readers:
        if reader.weight == name:
            factors = of_inputs(reader, scales, 1.0).reshape(reader.groups, 1, -1, 1)
            weight = (reader.columns(weight) * factors).reshape(weight.shape)
    return weight


def _columns(reader: Reader, weights: dict[str, Tensor], found: Scalable, scales: Tensor) -> Tensor:
    """The largest magnitude for each input of ``reader``."""
    return reader.columns(_current(weights[reader.weight], reader.weight, found, scales)).amax((1, 3)).flatten()
