"""BLEU against sacreBLEU's own corpus score, and one by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sacrebleu import corpus_bleu

from compress.errors import CompressError
from compress.metrics import get_metric, value_of

SAID = ["the cat sat on the mat", "a dog runs, fast", "nothing"]
REFERENCES = [["the cat is on the mat", "there is a cat on the mat"], ["the dog runs fast", "a dog runs quickly"],
              ["a bird sings", ""]]


def test_counts_and_value_by_hand() -> None:
    """Six words, of which five are in the reference; pairs 3 of 5, triples 1 of 4, of four none of 3; equal lengths."""
    metric, target = get_metric("bleu"), np.array(["the cat is on the mat"] * 2)
    found = metric.per_sample(SAID[:1] * 2, target)
    np.testing.assert_array_equal(found[0], [5, 3, 1, 0, 6, 5, 4, 3, 6, 6])
    # Of both samples together six runs of four words, none right, count as half a match: sacreBLEU's smoothing.
    expected = math.exp((math.log(5 / 6) + math.log(3 / 5) + math.log(1 / 4) + math.log(0.5 / 6)) / 4)
    assert value_of(metric, found).value == pytest.approx(expected, rel=1e-9)


def test_of_a_set_as_sacrebleu_gives_it() -> None:
    metric = get_metric("bleu")
    columns = [[row[0] for row in REFERENCES], [row[1] or None for row in REFERENCES]]
    expected = corpus_bleu(SAID, columns).score / 100
    found = metric.per_sample(SAID, np.array(REFERENCES))
    assert value_of(metric, found).value == pytest.approx(expected, rel=1e-12)
    assert 0.1 < expected < 0.9


def test_nothing_said_is_zero() -> None:
    metric = get_metric("bleu")
    assert value_of(metric, metric.per_sample(["", ""], np.array(["a b", "c d"]))).value == 0.0


def test_targets_must_be_texts() -> None:
    with pytest.raises(CompressError, match="'bleu' failed on 1 samples: the targets are int64"):
        get_metric("bleu").per_sample(["a"], np.array([0]))
