"""Error rates of transcripts, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compress.errors import CompressError
from compress.metrics import get_metric, value_of

SAID = ["turn on light", "lights out", ""]
REFERENCE = np.array(["turn the light on", "lights out", "stop"])


def value(name: str, said: list[str], target: np.ndarray) -> float:
    metric = get_metric(name)
    return value_of(metric, metric.per_sample(said, target)).value


def test_word_errors_by_hand() -> None:
    """Edits and words: "the" -> "on", "on" lost (2 of 4); none of 2; a word lost of 1."""
    wer = get_metric("wer")
    np.testing.assert_array_equal(wer.per_sample(SAID, REFERENCE), [[2, 4], [0, 2], [1, 1]])
    assert value("wer", SAID, REFERENCE) == pytest.approx(3 / 7)     # of the set's words, not the mean of the rates
    assert (wer.lower_is_better, wer.is_share) == (True, True)


def test_character_errors_by_hand() -> None:
    said, target = ["cat", "at"], np.array(["cart", "hat"])
    np.testing.assert_array_equal(get_metric("cer").per_sample(said, target), [[1, 4], [1, 3]])
    assert value("cer", said, target) == pytest.approx(2 / 7)


def test_words_where_nothing_was_said() -> None:
    """A reference may be empty, and then every word is one too many."""
    target = np.array(["", "go on"])
    np.testing.assert_array_equal(get_metric("wer").per_sample(["hm hm", "go on"], target), [[2, 0], [0, 2]])
    assert value("wer", ["hm hm", "go on"], target) == 1.0
    assert value("wer", ["", ""], np.array(["", ""])) == 0.0


def test_exact_match_of_any_reference() -> None:
    target = np.array([["red", "dark red"], ["two", ""], ["yes", ""]])
    np.testing.assert_array_equal(get_metric("exact-match").per_sample(["dark red ", "2", ""], target), [1, 0, 0])


def test_refusals() -> None:
    wer = get_metric("wer")
    with pytest.raises(CompressError, match=r"'wer' failed on 1 samples: a transcript has one reference"):
        wer.per_sample(["a"], np.array([["a", "b"]]))
    with pytest.raises(CompressError, match="the targets are int64: give texts, as an array of strings"):
        wer.per_sample(["a"], np.array([1]))
    with pytest.raises(CompressError, match="there are 1 texts for 2 samples"):
        wer.per_sample(["a"], np.array(["a", "b"]))
    with pytest.raises(CompressError, match="an answer is a list, expected one text for each sample"):
        wer.per_sample([["a", "b"]], np.array(["a"]))  # type: ignore[arg-type]
