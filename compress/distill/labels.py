"""The losses with the train set's labels: what an output is decides which."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, cross_entropy, mse_loss

from calibration import CalibrationSet
from calibration.targets import TARGET
from compress.distill.kinds import Kind, Output
from compress.distill.losses import affinity
from compress.errors import CompressError


def label_loss(kind: Kind, output: Tensor, labels: Tensor) -> Tensor:
    """The task's own loss: cross-entropy of class scores or shares, that of two classes of probabilities, or mean
    squared error.

    Args:
        output: ``(batch, ..., classes)`` where ``kind`` is ``scores`` or ``shares``, else ``(batch, ...)``.
        labels: class indices ``(batch, ...)``; otherwise as many numbers as the output has.
    """
    output = output.double()
    if kind == "scores":
        return cross_entropy(output.flatten(0, -2), labels.flatten().long())
    if kind == "shares":
        return cross_entropy(output.clamp(min=1e-7).log().flatten(0, -2), labels.flatten().long())
    wanted = labels.reshape(output.shape).double()
    return binary_cross_entropy(output, wanted) if kind == "probabilities" else mse_loss(output, wanted)


def pairing_loss(left: Tensor, right: Tensor, sharpness: float) -> Tensor:
    """Cross-entropy of telling which sample of the batch is one's own partner, the mean over both sides.

    It needs no labels: left and right of one sample belong together.

    Source: Radford et al. 2021, arXiv:2103.00020 (CLIP), figure 3.
    """
    alike = affinity(left, right, sharpness).double()
    own = torch.arange(len(alike), device=alike.device)
    return (cross_entropy(alike, own) + cross_entropy(alike.T, own)) / 2


def read_labels(data: CalibrationSet, outputs: Sequence[Output]) -> dict[str, np.ndarray]:
    """Output -> its labels ``(samples, ...)``, checked; an output that has none is left out.

    Raises:
        CompressError: if there are none at all, or they do not fit their output; names the set and the output.
    """
    if not data.labels:
        raise CompressError(f"train set {data.name!r} has no labels: write it with target=, or set label_weight to 0")
    found = {}
    for output in outputs:
        own = f"{TARGET}.{output.spec.name}"
        if own not in data.labels and (len(outputs) > 1 or TARGET not in data.labels):
            continue
        labels = data.targets(output.spec.name)
        assert labels is not None
        _check(labels, output, f"train set {data.name!r}: the labels of {output.spec.name!r}")
        found[output.spec.name] = labels
    if not found:
        raise CompressError(
            f"train set {data.name!r} has the labels {list(data.labels)}, and the model the outputs "
            f"{[output.spec.name for output in outputs]}: write an array {TARGET}.{outputs[0].spec.name!s} for each "
            "output that has labels, or set label_weight to 0"
        )
    return found


def task_kind(kind: Kind, labels: np.ndarray) -> Kind:
    """The kind of an output by its labels: what looks like class scores is numbers where the labels are real."""
    return "numbers" if kind in ("scores", "embedding") and labels.dtype.kind == "f" else kind


def _check(labels: np.ndarray, output: Output, what: str) -> None:
    if labels.dtype.kind not in "biuf":
        raise CompressError(f"{what} are {labels.dtype}: label_weight is for class indices and numbers; set it to 0")
    sizes = [size for size in output.spec.shape[1:] if isinstance(size, int)]
    fixed = len(sizes) == len(output.spec.shape) - 1
    if task_kind(output.kind, labels) in ("scores", "shares"):
        classes = output.spec.shape[-1]
        bad = np.argwhere((labels < 0) | (labels >= classes)) if isinstance(classes, int) else np.empty(0)
        if bad.size and isinstance(classes, int):
            raise CompressError(f"{what} have {labels[tuple(bad[0])]} for sample {bad[0][0]}: the output scores "
                                f"{classes} classes, 0 to {classes - 1}")
        sizes = sizes[:-1]
    if fixed and labels[0].size != math.prod(sizes):
        raise CompressError(f"{what} have {labels[0].size} numbers a sample, {math.prod(sizes)} are expected: they "
                            "must agree")
