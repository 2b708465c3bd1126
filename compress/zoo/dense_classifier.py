"""A dense classifier over a feature vector: is a tumour malignant, from 30 measurements of its cells' nuclei.

The data are scikit-learn's: 569 real patients (Wolberg, Street and Mangasarian 1995, Breast Cancer Wisconsin
(Diagnostic), UCI), 37 % of them with a malignant tumour.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from torch import Tensor, nn

from compress.errors import CompressError
from compress.model import Input
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Splits
from compress.zoo.tasks import Task

FEATURES = 30
SPLIT = {"train": 285, "calibration": 84, "validation": 200}


def build(*, hidden: Sequence[int] = (128, 128), classes: int = 2) -> DenseClassifier:
    """Return the network with fresh weights; ``hidden`` has the channels of each hidden layer.

    Raises:
        CompressError: if there is no hidden layer, or one without channels.
    """
    if not hidden or min(hidden) < 1:
        raise CompressError(f"hidden is {list(hidden)}: give each hidden layer at least 1 channel")
    return DenseClassifier(hidden, classes)


class DenseClassifier(nn.Module):
    """``encoder``: linear layers and ReLUs; ``head``: one score a class."""

    def __init__(self, hidden: Sequence[int], classes: int) -> None:
        super().__init__()
        sizes = [FEATURES, *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], classes)

    def forward(self, cells: Tensor) -> Tensor:
        """Scores ``(batch, classes)`` of standardised measurements f32 ``(batch, 30)``."""
        scores: Tensor = self.head(self.encoder(cells))
        return scores


@cache
def samples() -> Splits:
    """The patients in a fixed random order, standardised with the training set's means."""
    values, target, mean, std = _patients()
    rows = ((values - mean) / std).astype(np.float32)
    parts, start = {}, 0
    for name, count in SPLIT.items():
        parts[name] = [({"cells": rows[start : start + count]}, target[start : start + count])]
        start += count
    return parts


@cache
def _patients() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Measurements, classes, and the mean and standard deviation of the training set's measurements."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    order = np.random.default_rng(0).permutation(len(data.target))
    values, target = data.data[order].astype(np.float32), 1 - data.target[order].astype(np.int64)   # malignant is 1
    seen = values[: SPLIT["train"]].astype(np.float64)
    return values, target, seen.mean(0).astype(np.float32), seen.std(0).astype(np.float32)


def _processing() -> dict[str, object]:
    """A device app passes the 30 measurements as they were taken."""
    from sklearn.datasets import load_breast_cancer

    _, _, mean, std = _patients()
    return {"inputs": {"cells": {
        "kind": "features", "from": "cells", "names": [str(name) for name in load_breast_cancer().feature_names],
        "mean": [float(value) for value in mean], "std": [float(value) for value in std],
    }}}  # fmt: skip


DENSE = Reference(
    name="dense", factory="compress.zoo.dense_classifier:build", samples=samples, metric="accuracy",
    tasks={"output": Task(loss="cross-entropy", labels=("benign", "malignant"))},
    fit=FitConfig(epochs=40, rate=2e-3, decay=0.1, noise=0.1),
    inputs={"cells": Input(modality="sensor", dims=("batch",))}, processing=_processing(),
)  # fmt: skip
