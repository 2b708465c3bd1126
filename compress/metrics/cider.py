"""CIDEr-D of captions: how alike the n-grams of a caption and its references are, rare ones counting more.

Source: Vedantam et al. 2015, arXiv:1411.5726, section 7 (CIDEr-D). As in its authors' evaluation server the clipped
counts are those of the n-grams, not their shares, and the value is on the scale of 0 to 10. Words are lower-cased runs
of letters, digits and apostrophes; they are not stemmed.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from compress.metrics.metric import Metric
from compress.metrics.texts import check, references

ORDER = 4
SIGMA = 6.0             # of the penalty on a difference in length, in words
SCALE = 10.0

Ngram: TypeAlias = tuple[str, ...]
Weights: TypeAlias = Mapping[Ngram, float]


def cider_d(said: Sequence[str], target: np.ndarray) -> np.ndarray:
    """CIDEr-D of each sample, in [0, 10]; how rare an n-gram is, is told by the references of all samples."""
    check(said, target)
    given = [[_words(reference) for reference in one] for one in references(target)]
    seen = Counter(ngram for one in given
                   for ngram in {ngram for words in one for n in _ORDERS for ngram in _ngrams(words, n)})
    return np.array([_score(_words(text), one, seen, len(given)) for text, one in zip(said, given, strict=True)], float)


_ORDERS = range(1, ORDER + 1)


def _score(words: list[str], given: list[list[str]], seen: Mapping[Ngram, int], samples: int) -> float:
    total = 0.0
    for reference in given:
        penalty = math.exp(-((len(words) - len(reference)) ** 2) / (2 * SIGMA**2))
        total += penalty * sum(_alike(_weighted(words, n, seen, samples), _weighted(reference, n, seen, samples))
                               for n in _ORDERS)
    return SCALE * total / ORDER / max(len(given), 1)


def _alike(caption: Weights, reference: Weights) -> float:
    """The cosine of two vectors of weighted counts, the caption's clipped to the reference's in the product."""
    lengths = math.sqrt(sum(w * w for w in caption.values())) * math.sqrt(sum(w * w for w in reference.values()))
    product = sum(min(weight, reference.get(ngram, 0.0)) * reference.get(ngram, 0.0)
                  for ngram, weight in caption.items())
    return product / lengths if lengths > 0 else 0.0


def _weighted(words: list[str], n: int, seen: Mapping[Ngram, int], samples: int) -> Weights:
    """Counts of the n-grams, each times the logarithm of samples over those whose references have it."""
    return {ngram: count * math.log(samples / max(1, seen.get(ngram, 0)))
            for ngram, count in Counter(_ngrams(words, n)).items()}


def _ngrams(words: list[str], n: int) -> list[Ngram]:
    return [tuple(words[start:start + n]) for start in range(len(words) - n + 1)]


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text.lower())


CIDER = Metric(name="cider", statistics=cider_d, reads="texts", whole=True)
