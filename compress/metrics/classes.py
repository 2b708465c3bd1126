"""Metrics of classifiers: accuracy, precision, recall, F1."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from compress.errors import CompressError
from compress.metrics.metric import Metric, Outputs

THRESHOLD = 0.5


def lone(outputs: Outputs) -> np.ndarray:
    """The only output."""
    if len(outputs) != 1:
        first = sorted(outputs)[0] if outputs else "output"
        raise CompressError(f"it takes a model with one output, and this one has {sorted(outputs)}: "
                            f"name one as METRIC/OUTPUT (such as accuracy/{first}), or give a metric of your own as "
                            "package.module:function")
    (values,) = outputs.values()
    return values


def correct(outputs: Outputs, target: np.ndarray) -> np.ndarray:
    """1 where the answer is the target's class, else 0."""
    scores = lone(outputs)
    if scores.shape == (*target.shape, 1):
        return np.asarray(_decided(scores)[..., 0] == _checked(target, 2))
    answers = scores.argmax(axis=-1)
    if answers.shape != target.shape:
        raise CompressError(f"the answers have shape {answers.shape} and the targets {target.shape}: these must agree")
    return np.asarray(answers == _checked(target, scores.shape[-1]))


def counts(outputs: Outputs, target: np.ndarray) -> np.ndarray:
    """True positives, false positives and false negatives of every class counted, ``(samples, 3 * classes)``.

    Counted are: of a decision, a probability ``(samples, 1)``, and of two classes the second; of more classes
    ``(samples, classes)`` all; of several decisions a sample, with targets of 0 and 1 in the outputs' own shape, each.
    """
    scores = lone(outputs)
    if scores.ndim == 2 and scores.shape[-1] > 1 and scores.shape == target.shape:
        called, real = _decided(scores), _checked(target, 2) == 1
    elif scores.shape == (len(target), 1):
        called, real = _decided(scores), _checked(target.reshape(-1, 1), 2) == 1
    elif scores.ndim == 2 and target.shape == (len(scores),):
        classes = np.arange(scores.shape[-1])[1 if scores.shape[-1] == 2 else 0:]
        called = scores.argmax(axis=-1)[:, None] == classes
        real = _checked(target, scores.shape[-1])[:, None] == classes
    else:
        raise CompressError(f"the output has shape {scores.shape} and the targets {target.shape}: it takes scores of "
                            "classes with a class index each, or probabilities with 0 or 1")
    return np.stack([called & real, called & ~real, ~called & real], axis=-1).reshape(len(scores), -1)


def _macro(share: Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Callable[
    [np.ndarray], np.ndarray
]:
    """The mean of ``share``, a numerator and a denominator, over the classes that occur in answers or targets."""

    def value(sums: np.ndarray) -> np.ndarray:
        both, called, missed = np.moveaxis(sums.reshape(*sums.shape[:-1], -1, 3), -1, 0)
        part, whole = share(both, called, missed)
        there = both + called + missed > 0
        shares = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
        return np.asarray((shares * there).sum(axis=-1) / np.maximum(there.sum(axis=-1), 1))

    return value


def _decided(probabilities: np.ndarray) -> np.ndarray:
    if probabilities.size and not (probabilities.min() >= 0 and probabilities.max() <= 1):
        raise CompressError(f"the output has the value {probabilities.max():.4g} or {probabilities.min():.4g}, and one "
                            "value a decision must be a probability in [0, 1]: end the model in a sigmoid, or give a "
                            "metric of your own as package.module:function")
    return np.asarray(probabilities >= THRESHOLD)


def _checked(target: np.ndarray, classes: int) -> np.ndarray:
    """``target``, of which every value is the index of a class."""
    if target.dtype.kind not in "biuf":
        raise CompressError(f"the targets are texts ({str(target.flat[0])!r:.40}): give class indices")
    wrong = target[(target != np.floor(target)) | (target < 0) | (target >= classes)]
    if wrong.size:
        raise CompressError(f"target {wrong.flat[0]} is no index of the {classes} answers: correct the labels")
    return target


ACCURACY = Metric(name="accuracy", statistics=correct, is_share=True)
PRECISION = Metric(name="precision", statistics=counts, is_share=True,
                   value=_macro(lambda both, called, missed: (both, both + called)))
RECALL = Metric(name="recall", statistics=counts, is_share=True,
                value=_macro(lambda both, called, missed: (both, both + missed)))
F1 = Metric(name="f1", statistics=counts, is_share=True,
            value=_macro(lambda both, called, missed: (2 * both, 2 * both + called + missed)))
