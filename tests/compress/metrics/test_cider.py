"""CIDEr-D by hand, on captions short enough."""

from __future__ import annotations

import math

import numpy as np
import pytest

from compress.errors import CompressError
from compress.metrics import get_metric, value_of


def score(said: list[str], references: list[list[str]]) -> np.ndarray:
    return get_metric("cider").per_sample(said, np.array(references))


def test_what_equals_its_reference_has_ten() -> None:
    found = score(["a red bird sings", "two dogs run home"], [["a red bird sings"], ["two dogs run home"]])
    np.testing.assert_allclose(found, [10.0, 10.0])
    assert get_metric("cider").is_share is False


def test_by_hand() -> None:
    """Two samples. "a" is in the references of both, and so has no weight; all else weighs log 2.

    "a red cat" against "a red bird": words (red, cat) and (red, bird) share one of two, so their cosine is 1/2; pairs
    (a red, red cat) and (a red, red bird) share one of two; triples share none; there are no four words. The lengths
    are equal. 10/4 x (1/2 + 1/2) = 2.5.
    """
    found = score(["a red cat", "a dog"], [["a red bird"], ["a dog"]])
    assert found[0] == pytest.approx(2.5)
    # "a dog" is right, but has neither triples nor four words: 10/4 x (1 + 1).
    assert found[1] == pytest.approx(5.0)


def test_counts_are_clipped_and_lengths_compared() -> None:
    """"dog dog dog" against "dog": count 3 is clipped to 1 in the product, not in the length: 1 x 1 / (3 x 1).

    It is two words longer: exp(-4 / 72). Of two references, one with nothing in common, it has half of that.
    """
    found = score(["dog dog dog", "cat"], [["dog"], ["cat"]])
    assert found[0] == pytest.approx(10 / 4 * math.exp(-4 / 72) / 3)
    found = score(["dog dog dog", "cat"], [["dog", "bird"], ["cat", ""]])
    assert found[0] == pytest.approx(10 / 4 * math.exp(-4 / 72) / 3 / 2)
    assert found[1] == pytest.approx(2.5)


def test_rare_words_weigh_more() -> None:
    """Of three samples "dog" is in two references (log 1.5), "old" in one (log 3)."""
    references = [["old dog"], ["dog"], ["cat"]]
    common, rare = math.log(1.5), math.log(3)
    found = score(["dog", "dog", "cat"], references)
    expected = common / math.hypot(common, rare) * math.exp(-1 / 72) * 10 / 4
    np.testing.assert_allclose(found, [expected, 2.5, 2.5])


def test_case_and_punctuation_do_not_count() -> None:
    np.testing.assert_allclose(score(["A Dog, runs.", "it's"], [["a dog runs"], ["it's"]])[0], 7.5)


def test_nothing_in_common_and_nothing_said_have_zero() -> None:
    metric = get_metric("cider")
    found = score(["", "bird"], [["dog"], ["cat"]])
    np.testing.assert_array_equal(found, [0.0, 0.0])
    assert value_of(metric, found).value == 0.0


def test_targets_must_be_texts() -> None:
    with pytest.raises(CompressError, match="'cider' failed on 1 samples: the targets are int64"):
        get_metric("cider").per_sample(["a"], np.array([0]))
