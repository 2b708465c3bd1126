"""Migration of outliers: channels of an activation that are large are divided, the weights that read them multiplied.

Source: SmoothQuant, Xiao et al. 2023, arXiv:2211.10438, section 4, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Iterable

from compress.model import Model
from compress.quantize.following import find_scalable
from compress.quantize.peaks import find_peaks
from compress.quantize.scaling import largest_weights
from runtimes.spec import Feed


def smooth(model: Model, feeds: Iterable[tuple[str, Feed]], alpha: float) -> tuple[Model, int]:
    """``model`` with the same function and smoother activations, and how many of its norms and layers were scaled.

    Channel ``j`` is divided by ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`` where it is made, by a norm's weight and
    bias or by the layer before, and the weights that read it are multiplied by it; layers that read the same activation
    share ``s``, with the largest of their ``|W_j|``. Scaled are channels of norms, and those of a layer that another
    reads as they are: attention's values, say. Behind ReLU channels stay: it costs more than it gives there, and
    :mod:`compress.quantize.equalize` is what suits. So does one that is always zero or that nothing reads.

    Args:
        model: a float one.
        feeds: graph and what it is run on, once for all of them.
        alpha: migration strength in (0, 1]: how much of the difficulty goes to the weights.
    """
    found = find_scalable(model)
    seen, weights = find_peaks(model, found, feeds).channels, largest_weights(model, found)
    found.free &= (seen > 0) & seen.isfinite() & (weights > 0) & ~found.rectified
    scaled = sum(bool(found.free[source.channels].any()) for source in found.sources)
    return found.rescaled(model, seen**alpha / weights ** (1 - alpha)) if scaled else model, scaled
