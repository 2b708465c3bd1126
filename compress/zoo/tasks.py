"""What the outputs of a reference model are trained for, and the losses of it, as the field names them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from calibration.targets import Targets

Loss = Literal["cross-entropy", "binary cross-entropy", "mean squared error", "ctc"]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One output's: its loss, which also says what the output is, and what the loss weighs in the sum of all.

    ``labels`` are what the classes are called: of ``cross-entropy`` one a score, of ``binary cross-entropy`` two, of
    ``ctc`` (connectionist temporal classification) the words after the blank, which is the first; its targets are
    texts.
    """

    loss: Loss
    labels: Sequence[str] = ()
    weight: float = 1.0


METRICS: Mapping[Loss, Sequence[str]] = {
    "cross-entropy": ("accuracy", "precision", "recall", "f1"),
    "binary cross-entropy": ("accuracy", "precision", "recall", "f1"),
    "mean squared error": ("mse",), "ctc": ("wer",),
}  # fmt: skip
"""What is told of an output, by its loss."""

Tasks = Mapping[str, Task]
"""Output name -> its task; a network's lone tensor is called ``output``."""


def by_task(target: Any, tasks: Tasks) -> dict[str, Any]:
    """Output name -> its targets: all of ``target`` for a lone output, else the column at the output's place.

    ``target`` is an array or a tensor, ``(samples, ...)``, or ``(samples, tasks)`` where there are several; or it is
    such a mapping already.
    """
    if isinstance(target, Mapping):
        return dict(target)
    if len(tasks) == 1:
        return dict.fromkeys(tasks, target)
    return {name: target[:, column] for column, name in enumerate(tasks)}


def encoded(target: Targets, tasks: Tasks) -> Targets:
    """``target`` as losses take it: texts as the places of their words, i64 ``(samples, longest)``, then blanks."""
    if not any(task.loss == "ctc" for task in tasks.values()):
        return target
    return {name: _words(values, tasks[name].labels) if tasks[name].loss == "ctc" else values
            for name, values in by_task(target, tasks).items()}  # fmt: skip


def _words(texts: np.ndarray, labels: Sequence[str]) -> np.ndarray:
    places = [[labels.index(word) for word in text.split()] for text in texts.tolist()]
    longest = max(map(len, places))
    return np.array([[*ids, *[0] * (longest - len(ids))] for ids in places], np.int64)


def loss_of(outputs: Mapping[str, Tensor], target: Any, tasks: Tasks) -> Tensor:
    """The weighted sum of the mean losses of a batch; ``target`` as :func:`by_task` takes it."""
    wanted = by_task(target, tasks)
    return torch.stack([task.weight * _LOSSES[task.loss](outputs[name], wanted[name])
                        for name, task in tasks.items()]).sum()  # fmt: skip


def _cross_entropy(scores: Tensor, classes: Tensor) -> Tensor:
    """Of scores ``(..., classes)`` with indices ``(...)``."""
    return functional.cross_entropy(scores.flatten(0, -2), classes.flatten().long())


def _binary_cross_entropy(probability: Tensor, answers: Tensor) -> Tensor:
    """Of probabilities ``(batch, 1)``, which a sigmoid made, with 0 and 1 ``(batch,)``."""
    return functional.binary_cross_entropy(probability[:, 0], answers.to(probability.dtype))


def _mean_squared_error(value: Tensor, wanted: Tensor) -> Tensor:
    """Of numbers ``(batch, 1)`` with those wanted ``(batch,)``."""
    return functional.mse_loss(value[:, 0], wanted.to(value.dtype))


def _ctc(scores: Tensor, words: Tensor) -> Tensor:
    """Of scores ``(batch, frames, words)`` with the words said ``(batch, longest)``, of which 0 is none."""
    said = functional.log_softmax(scores, dim=-1).transpose(0, 1)
    frames = torch.full((len(words),), len(said))
    return functional.ctc_loss(said, words, frames, (words != 0).sum(dim=1), zero_infinity=True)


_LOSSES: Mapping[Loss, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": _cross_entropy, "binary cross-entropy": _binary_cross_entropy,
    "mean squared error": _mean_squared_error, "ctc": _ctc,
}  # fmt: skip


def constant_answer(target: Targets, tasks: Tasks, count: int) -> dict[str, np.ndarray]:
    """Outputs of ``count`` samples that are always the same: the most frequent class, the mean, silence."""
    wanted = by_task(target, tasks)
    return {name: np.repeat(_constant(wanted[name], task)[None], count, axis=0) for name, task in tasks.items()}


def _constant(target: np.ndarray, task: Task) -> np.ndarray:
    if task.loss == "ctc":
        return np.eye(len(task.labels))[:1]
    if task.loss == "mean squared error":
        return np.array([target.mean()])
    most = int(np.bincount(target.reshape(-1).astype(np.int64)).argmax())
    return np.array([float(most)]) if task.loss == "binary cross-entropy" else np.eye(len(task.labels))[most]
