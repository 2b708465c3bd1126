"""Metrics of the reference models, as the field names them."""

from __future__ import annotations

import numpy as np

from calibration.targets import Targets
from compress.errors import CompressError
from compress.metrics import Outputs
from compress.zoo.tasks import Task, Tasks, by_task

THRESHOLD = 0.5


def decided_right(outputs: Outputs, target: np.ndarray) -> np.ndarray:
    """1 where the only output, a probability ``(samples, 1)``, is on the target's side of 0.5; its mean is accuracy.

    The metric ``compress.zoo.scores:decided_right`` of a recipe.
    """
    if len(outputs) != 1:
        raise CompressError(f"it takes a model with one output, and this one has {sorted(outputs)}")
    (probability,) = outputs.values()
    return np.asarray((probability.reshape(len(target), -1)[:, 0] >= THRESHOLD) == (target == 1))


def scores_of(outputs: Outputs, target: Targets, tasks: Tasks) -> dict[str, float]:
    """What is said of a task's outputs: :func:`class_scores`, or :func:`number_scores` of a regression.

    Of texts nothing is said here. With several outputs each score's name begins with its output's. ``target`` is as
    :func:`compress.zoo.tasks.by_task` takes it.
    """
    wanted = by_task(target, tasks)
    found: dict[str, float] = {}
    for name, task in tasks.items():
        if task.loss == "ctc":
            continue
        if task.loss == "mean squared error":
            scores = number_scores(outputs[name][:, 0], wanted[name])
        else:
            scores = class_scores(_decisions(outputs[name], task), wanted[name], len(task.labels))
        found |= {key if len(tasks) == 1 else f"{name} {key}": value for key, value in scores.items()}
    return found


def class_scores(said: np.ndarray, target: np.ndarray, classes: int) -> dict[str, float]:
    """Accuracy, precision, recall and F1: with two classes those of class 1, with more the mean over all classes.

    Args:
        said, target: class indices of one shape. A share of nothing (no sample was called so, or none is) is 0.
    """
    every = np.arange(classes) if classes > 2 else np.array([1])
    called, real = (values.reshape(1, -1) == every[:, None] for values in (said, target))
    both = (called & real).sum(axis=1)
    called, real = called.sum(axis=1), real.sum(axis=1)
    return {
        "accuracy": float((said == target).mean()), "precision": float((both / np.maximum(called, 1)).mean()),
        "recall": float((both / np.maximum(real, 1)).mean()),
        "f1": float((2 * both / np.maximum(called + real, 1)).mean()),
    }  # fmt: skip


def number_scores(said: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Mean squared and mean absolute error, and R², the share of the target's variance that ``said`` explains."""
    wrong = said.astype(np.float64) - target
    return {
        "mean squared error": float(np.square(wrong).mean()), "mean absolute error": float(np.abs(wrong).mean()),
        "r2": float(1 - np.square(wrong).mean() / np.var(target)),
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


def _decisions(output: np.ndarray, task: Task) -> np.ndarray:
    """Class indices: of scores ``(..., classes)`` the largest, of probabilities ``(samples, 1)`` their side of 0.5."""
    if task.loss == "binary cross-entropy":
        return (output[:, 0] >= THRESHOLD).astype(np.int64)
    return np.asarray(output.argmax(axis=-1), np.int64)
