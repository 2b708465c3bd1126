"""Cross-layer equalisation: a layer's channels are scaled to like sizes, the weights that read them scaled back.

One range serves all channels of an activation, and what is small beside it is lost; weights have a scale for each
output channel and so lose nothing when channels before them are scaled. Nagel et al. 2019, arXiv:1906.04721, section
4.1, equalise weights, whose ranges are to stand for those of activations; here the ranges are the activations' own, and
the scales those of Xiao et al. 2023, arXiv:2211.10438, equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from compress.model import Model
from compress.quantize.following import find_scalable, rectifies
from compress.quantize.peaks import Peaks, find_peaks
from compress.quantize.scaling import Scalable, Source, largest_weights, of_inputs
from runtimes.spec import Feed

_LAYERS = ("linear", "conv1d", "conv2d")
HEADROOM = 1.25         # over what a channel reached, before ReLU6 may cut it
GAIN = 4.0              # least fall of the noise's power that channels are scaled for: one bit


def equalize(model: Model, feeds: Iterable[tuple[str, Feed]]) -> tuple[Model, int]:
    """``model`` with the same function and activations that suit integers, and how many layers' channels were scaled.

    Channels of convolutions and linear layers whose only readers are such layers too, behind ReLU, ReLU6 or what else
    keeps a factor (:mod:`compress.quantize.following`); a model without any of these is not looked at. Channel ``j`` is
    divided by ``sqrt(max|X_j| / max|W_j|)``, or, where its readers are depthwise and scales of their weights cost
    nothing, by ``max|X_j|``; times what leaves the largest activation as it is. One that ReLU6 cuts is enlarged alone,
    up to :data:`HEADROOM` below the cut: it may be cut beyond, where integers would be too. A layer's channels stay
    where the noise that its readers get of rounded activations, ``(max|X|)^2 |W|^2``, would not fall by :data:`GAIN`.

    Args:
        model: a float one.
        feeds: graph and what it is run on, once for all of them; not read where no channel can be scaled.
    """
    if not any(rectifies(node) for graph in model.graphs.values() for node in graph.program.graph.nodes):
        return model, 0
    found = find_scalable(model)
    of_layer = torch.zeros_like(found.free)
    for source in found.sources:
        of_layer[source.channels] = source.op in _LAYERS
    found.free &= of_layer
    if not bool(found.free.any()):
        return model, 0
    peaks, weights = find_peaks(model, found, feeds), largest_weights(model, found)
    found.free &= (peaks.channels > 0) & peaks.channels.isfinite() & (weights > 0)
    scales, layers = torch.ones_like(weights), 0
    for source in found.sources:
        if not bool(found.free[source.channels].any()):
            continue
        equal = equal_scales(model, found, source, peaks, weights)
        before, after = (noise(model, found, source, peaks, some) for some in (torch.ones_like(equal), equal))
        if before > GAIN * after:
            scales *= equal
            layers += 1
    return (found.rescaled(model, scales), layers) if layers else (model, 0)


def equal_scales(model: Model, found: Scalable, source: Source, peaks: Peaks, weights: Tensor) -> Tensor:
    """What each free channel of ``source`` is to be divided by, f64 ``(channels,)``; 1 for all others."""
    own = torch.zeros_like(found.free)
    own[source.channels] = found.free[source.channels]
    scales = torch.ones_like(weights)
    depthwise = all(model.weights[reader.weight].shape[1] == 1 for reader in found.readers
                    if bool(own[reader.channels[reader.channels >= 0]].any()))  # fmt: skip
    largest, cut = peaks.channels[own], peaks.cut[own]
    equal = largest if depthwise else (largest / weights[own]).sqrt()
    equal = equal * (largest / equal).max() / largest.max()
    scales[own] = torch.where(cut > 0, equal.clamp(max=1).maximum((HEADROOM * cut).clamp(max=1)), equal)
    return scales


def noise(model: Model, found: Scalable, source: Source, peaks: Peaks, scales: Tensor) -> float:
    """What rounding the activations that hold channels of ``source`` adds to their readers' results, as a power."""
    power = 0.0
    for reader, reached in zip(found.readers, peaks.inputs, strict=True):
        if bool(((reader.channels >= source.channels.start) & (reader.channels < source.channels.stop)).any()):
            factors = of_inputs(reader, scales, 1.0)
            read = reader.columns(model.weights[reader.weight].detach().double()) * factors.reshape(
                reader.groups, 1, -1, 1)  # fmt: skip
            power += float((reached / factors).max() ** 2 * read.square().sum())
    return power
