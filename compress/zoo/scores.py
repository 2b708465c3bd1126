"""Metrics of the reference models, as the field names them."""

from __future__ import annotations

import numpy as np

from compress.errors import CompressError
from compress.metrics import Outputs

THRESHOLD = 0.5


def decided_right(outputs: Outputs, target: np.ndarray) -> np.ndarray:
    """1 where the only output, a probability ``(samples, 1)``, is on the target's side of 0.5; its mean is accuracy.

    The metric ``compress.zoo.scores:decided_right`` of a recipe.
    """
    if len(outputs) != 1:
        raise CompressError(f"it takes a model with one output, and this one has {sorted(outputs)}")
    (probability,) = outputs.values()
    return np.asarray((probability.reshape(len(target), -1)[:, 0] >= THRESHOLD) == (target == 1))


def decisions(output: np.ndarray) -> np.ndarray:
    """Classes i64 ``(samples,)``: of scores ``(samples, classes)`` the largest, of probabilities ``(samples, 1)``."""
    if output.shape[-1] == 1:
        return (output[:, 0] >= THRESHOLD).astype(np.int64)
    return np.asarray(output.argmax(axis=-1), np.int64)


def scores_of(output: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Accuracy, and precision, recall and F1 of class 1, of a classifier with two classes.

    Args:
        output: as :func:`decisions` takes it. target: 0 or 1, ``(samples,)``.

    A share of nothing (no sample was called positive, or none is) is 0.
    """
    said = decisions(output)
    both, called, real = (int(mask.sum()) for mask in ((said == 1) & (target == 1), said == 1, target == 1))
    precision, recall = both / max(called, 1), both / max(real, 1)
    return {
        "accuracy": float((said == target).mean()), "precision": precision, "recall": recall,
        "f1": 2 * both / max(called + real, 1),
    }  # fmt: skip
