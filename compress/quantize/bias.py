"""Bias correction: what quantization adds to a layer's output on average is taken off its bias.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2, equation 17, with the expectation over calibration samples
as in appendix D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from compress.model import Model
from compress.quantize.lockstep import Lockstep, Part
from compress.weights import with_weights
from runtimes.spec import Feed


def correct_biases(model: Model, feeds: Mapping[str, Sequence[Feed]]) -> tuple[Model, int]:
    """``model`` with the biases of its int8 layers corrected, layer after layer, and how many they are.

    A layer reads what the corrected layers before it give. One without a bias, or whose bias or weight another layer
    has too, stays as it is.

    Args:
        model: a quantized one.
        feeds: graph -> what it is run on.
    """
    corrected: dict[str, Tensor] = {}
    for graph, own in feeds.items():
        lockstep = Lockstep(model, graph, own)
        for part in lockstep.parts():
            layer = lockstep.layers.get(part.nodes[-1].name)
            if layer is None or layer.bias is None:
                continue
            held: Tensor = lockstep.values[layer.bias.name]
            changed = (held.double() - mean_error(part, layer.axis)).to(held.dtype)
            lockstep.values[layer.bias.name] = corrected[str(layer.bias.target)] = changed
    return with_weights(model, corrected), len(corrected)


def mean_error(part: Part, axis: int) -> Tensor:
    """By how much each channel of a part's result is too large on average, f64 ``(channels,)``."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    with torch.no_grad():
        for feed, wanted in enumerate(part.wanted):
            error = (part.run(feed).double() - wanted.double()).movedim(axis, -1).reshape(-1, wanted.shape[axis])
            total = total + error.sum(0)
            count += len(error)
    return total / max(count, 1)
