"""Task metrics: one score per sample, the higher the better, so that two engines can be compared sample by sample."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from compress.errors import CompressError

Outputs: TypeAlias = Mapping[str, np.ndarray]
"""Output name -> array with a leading sample axis; a lone output is called ``output``."""

PerSample: TypeAlias = Callable[[Outputs, np.ndarray], Any]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A name and ``per_sample(outputs, target)``, float64 scores of shape ``(samples,)`` whose mean is the value.

    A metric of :func:`get_metric` raises a CompressError, which names it, where the function raises, returns another
    shape or returns a score that is not finite.
    """

    name: str
    per_sample: Callable[[Outputs, np.ndarray], np.ndarray]


def accuracy(outputs: Outputs, target: np.ndarray) -> np.ndarray:
    """1 where the largest value along the last axis of the only output is at the target's index, else 0."""
    if len(outputs) != 1:
        raise CompressError(f"it takes a model with one output, and this one has {sorted(outputs)}: "
                            "give a metric of your own as package.module:function")
    (scores,) = outputs.values()
    answers = scores.argmax(axis=-1)
    if answers.shape != target.shape:
        raise CompressError(f"the answers have shape {answers.shape} and the targets {target.shape}: these must agree")
    wrong = target[(target != np.floor(target)) | (target < 0) | (target >= scores.shape[-1])]
    if wrong.size:
        raise CompressError(f"target {wrong.flat[0]} is no index of the {scores.shape[-1]} answers: correct the labels")
    return np.asarray(answers == target)


METRICS: Mapping[str, PerSample] = {"accuracy": accuracy}


def get_metric(name: str) -> Metric:
    """The metric called ``name``: one of :data:`METRICS`, or ``package.module:function`` (the user's own code).

    The function gets the outputs of all samples by name and the targets, and returns one score per sample.

    Raises:
        CompressError: if there is no such metric (with the nearest names), or the function cannot be imported.
    """
    return Metric(name=name, per_sample=_checked(name, _imported(name) if ":" in name else _built_in(name)))


def _built_in(name: str) -> PerSample:
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.3) or list(METRICS)
        raise CompressError(f"unknown metric {name!r}: did you mean {near[0]!r}? "
                            "A metric of your own is written package.module:function")
    return METRICS[name]


def _imported(reference: str) -> PerSample:
    module_name, _, attribute = reference.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise CompressError(f"metric {reference!r} cannot be imported: {error}; "
                            "the module must be installed or in the current folder") from error
    if not callable(function):
        raise CompressError(f"metric {reference!r} is a {type(function).__name__}, not a function")
    return function  # type: ignore[no-any-return]


def _checked(name: str, function: PerSample) -> Callable[[Outputs, np.ndarray], np.ndarray]:
    def per_sample(outputs: Outputs, target: np.ndarray) -> np.ndarray:
        # The function may be the user's own: whatever it raises is told under its name, with the cause attached.
        try:
            scores = np.asarray(function(outputs, target), dtype=np.float64)
        except Exception as error:
            kind = "" if isinstance(error, CompressError) else f"{type(error).__name__}: "
            raise CompressError(f"metric {name!r} failed on {len(target)} samples: {kind}{error}") from error
        if scores.shape != (len(target),):
            raise CompressError(f"metric {name!r} returned shape {scores.shape} for {len(target)} samples, "
                                f"expected ({len(target)},): one score per sample")
        if not np.isfinite(scores).all():
            index = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise CompressError(f"metric {name!r} gave {scores[index]} for sample {index}: a score must be finite")
        return scores

    return per_sample
