"""BLEU of the whole set, with up to four words, as sacreBLEU counts it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.metrics.metric import Metric
from compress.metrics.texts import check, references

ORDER = 4


def matches(said: Sequence[str], target: np.ndarray) -> np.ndarray:
    """``(samples, 10)``: n-grams of 1 to 4 words that are in a reference; all n-grams; the two lengths in words.

    The words are those of sacreBLEU's tokenizer 13a, case counts, and the reference's length is that of the nearest.

    Source: Papineni et al. 2002, doi:10.3115/1073083.1073135; Post 2018, arXiv:1804.08771.
    """
    from sacrebleu.metrics.bleu import BLEU

    check(said, target)
    counter = BLEU(effective_order=True)    # which is of single sentences' scores, and changes no count
    found = [counter.sentence_score(text, given) for text, given in zip(said, references(target), strict=True)]
    return np.array([[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in found], float).reshape(-1, 10)


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU in [0, 1] of sums of :func:`matches`, with sacreBLEU's smoothing (``exp``) where no n-gram is right."""
    from sacrebleu.metrics.bleu import BLEU

    def one(row: np.ndarray) -> float:
        counts = [int(count) for count in row]
        return float(BLEU.compute_bleu(correct=counts[:ORDER], total=counts[ORDER:2 * ORDER], sys_len=counts[-2],
                                       ref_len=counts[-1], smooth_method="exp").score / 100)

    return np.apply_along_axis(one, -1, sums)


BLEU4 = Metric(name="bleu", statistics=matches, value=bleu, reads="texts", is_share=True)
