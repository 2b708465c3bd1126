"""The metrics by name, and those of the user's own."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from compress.errors import CompressError
from compress.metrics.bleu import BLEU4
from compress.metrics.cider import CIDER
from compress.metrics.classes import ACCURACY, F1, PRECISION, RECALL
from compress.metrics.metric import Metric
from compress.metrics.numbers import MSE
from compress.metrics.retrieval import AT, ZERO_SHOT, recall_at, text_recall_at
from compress.metrics.words import CER, EXACT, WER

if TYPE_CHECKING:
    from runtimes.processing.processor import Described

METRICS: Mapping[str, Metric] = {metric.name: metric for metric in (
    ACCURACY, PRECISION, RECALL, F1, MSE,
    *(recall_at(k) for k in (1, 5, 10)), *(text_recall_at(k) for k in (1, 5, 10)), ZERO_SHOT,
    WER, CER, EXACT, BLEU4, CIDER,
)}  # fmt: skip
"""By name; ``recall@K`` and ``text-recall@K`` are there for any ``K``."""


def get_metric(name: str, described: Described | None = None) -> Metric:
    """The metric called ``name``: one of :data:`METRICS`, or ``package.module:function`` (the user's own code).

    The function gets the outputs of a batch by name and the targets, and returns one score per sample, higher is
    better. ``package.module:NAME`` may also be a :class:`Metric`. ``NAME/OUTPUT`` is of one output of several.

    Args:
        described: the model (:func:`compress.processing.described`) or the bundle, which says how outputs become
            texts; a metric that reads texts cannot score without.

    Raises:
        CompressError: if there is no such metric (with the nearest names), the function cannot be imported, or the
            model has no text for a metric that reads texts.
    """
    kind, _, output = name.partition("/")
    found = (_imported(kind) if ":" in kind else _built_in(kind)).named(name, output or None)
    if found.reads != "texts" or described is None:
        return found
    from compress.metrics.texts import reader_of

    texts = reader_of(described, found.output)
    if texts is None:
        raise CompressError(f"metric {name!r} compares texts, and the model's processing makes none: give it an output "
                            "of kind 'text', with compress.save(..., processing=...)")
    return dataclasses.replace(found, texts=texts)


def find_metric(name: str) -> Metric | None:
    """The built-in metric called ``name``; None where there is none, or it is of the user's own, which is not run."""
    kind, _, output = name.partition("/")
    try:
        return None if ":" in kind else _built_in(kind).named(name, output or None)
    except CompressError:
        return None


def _built_in(name: str) -> Metric:
    family, _, count = name.partition("@")
    if family in AT and re.fullmatch("[1-9][0-9]{0,5}", count):
        return AT[family](int(count))
    if name not in METRICS:
        near = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.3) or list(METRICS)
        raise CompressError(f"unknown metric {name!r}: did you mean {near[0]!r}? There are {', '.join(METRICS)}; "
                            "one of your own is written package.module:function")
    return METRICS[name]


def _imported(reference: str) -> Metric:
    module_name, _, attribute = reference.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise CompressError(f"metric {reference!r} cannot be imported: {error}; "
                            "the module must be installed or in the current folder") from error
    if isinstance(function, Metric):
        return function
    if not callable(function):
        raise CompressError(f"metric {reference!r} is a {type(function).__name__}, not a function")
    return Metric(name=reference, statistics=function)
