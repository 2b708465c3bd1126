"""Metrics of transcripts: word error rate, character error rate, and the share that is right to the letter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from compress.errors import CompressError
from compress.metrics.metric import Metric, Statistics
from compress.metrics.texts import check, references


def _edits(count: Callable[[str, str], Any]) -> Statistics:
    """``(samples, 2)``: substitutions, deletions and insertions together; words (or characters) of the reference."""

    def per_sample(said: Sequence[str], target: np.ndarray) -> np.ndarray:
        check(said, target)
        if target.ndim > 1:
            raise CompressError("a transcript has one reference, and the targets have several: give one text a sample")
        found = [count(reference, text) for reference, text in zip(target.tolist(), said, strict=True)]
        return np.array([(one.substitutions + one.deletions + one.insertions,
                          one.hits + one.substitutions + one.deletions) for one in found], float).reshape(-1, 2)

    return per_sample


def _words(reference: str, text: str) -> Any:
    import jiwer

    return jiwer.process_words(reference, text)


def _characters(reference: str, text: str) -> Any:
    import jiwer

    return jiwer.process_characters(reference, text)


def rate(sums: np.ndarray) -> np.ndarray:
    """Edits over the length of the references; where these have no word at all, over 1."""
    return np.asarray(sums[..., 0] / np.maximum(sums[..., 1], 1))


def exact(said: Sequence[str], target: np.ndarray) -> np.ndarray:
    """1 where the text is one of the references, but for white space around it, else 0."""
    check(said, target)
    return np.array([text.strip() in [one.strip() for one in given]
                     for text, given in zip(said, references(target), strict=True)], float)


WER = Metric(name="wer", statistics=_edits(_words), value=rate, reads="texts", lower_is_better=True, is_share=True)
CER = Metric(name="cer", statistics=_edits(_characters), value=rate, reads="texts", lower_is_better=True, is_share=True)
EXACT = Metric(name="exact-match", statistics=exact, reads="texts", is_share=True)
