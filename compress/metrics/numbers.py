"""Metrics of regression: mean squared error."""

from __future__ import annotations

import numpy as np

from compress.errors import CompressError
from compress.metrics.classes import lone
from compress.metrics.metric import Metric, Outputs


def squared_error(outputs: Outputs, target: np.ndarray) -> np.ndarray:
    """The mean over a sample's values of the squared difference, in the square of the target's unit."""
    values = lone(outputs)
    if target.dtype.kind not in "biuf":
        raise CompressError(f"the targets are texts ({str(target.flat[0])!r:.40}): give numbers")
    if values.shape == (*target.shape, 1):
        values = values[..., 0]
    if values.shape != target.shape:
        raise CompressError(f"the output has shape {values.shape} and the targets {target.shape}: these must agree")
    squares = (values.astype(np.float64) - target) ** 2
    return np.asarray(squares.reshape(len(target), -1).mean(axis=1))


MSE = Metric(name="mse", statistics=squared_error, lower_is_better=True)
