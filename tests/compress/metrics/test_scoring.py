"""Statistics of a set from batches, whatever their shapes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from compress.errors import CompressError
from compress.metrics import Metric, Outputs, get_metric, statistics_of


def lengths(outputs: Outputs) -> list[str]:
    """As many words as tokens that are not 0."""
    return [" ".join("a" for token in row if token) for row in outputs["tokens"].tolist()]


def batches(*parts: np.ndarray, name: str = "tokens") -> Iterator[tuple[int, Outputs]]:
    return ((len(part), {name: part}) for part in parts)


def test_texts_of_batches_with_different_numbers_of_steps() -> None:
    """Three, one and two words; the references have two, one and two."""
    metric = Metric(name="wer", statistics=get_metric("wer").statistics, value=get_metric("wer").value, reads="texts",
                    texts=lengths)
    parts = (np.array([[1, 1, 1], [1, 0, 0]]), np.array([[1, 1, 0, 0, 0]]))
    found = statistics_of(metric, batches(*parts), np.array(["a a", "a", "a a"]))
    np.testing.assert_array_equal(found, [[1, 2], [0, 1], [0, 2]])


def test_texts_of_all_samples_at_once() -> None:
    metric = Metric(name="whole", statistics=lambda said, target: [len(said)] * len(target), reads="texts", whole=True,
                    texts=lengths)
    found = statistics_of(metric, batches(np.ones((2, 3)), np.ones((1, 5))), np.array(["a"] * 3))
    np.testing.assert_array_equal(found, [3, 3, 3])


def test_embeddings_are_joined_for_a_ranking() -> None:
    """Each batch by itself would find both of its pictures."""
    pictures, texts = np.eye(4), np.eye(4)[[0, 2, 1, 3]]
    parts = [(2, {"image": pictures[rows], "text": texts[rows]}) for rows in (slice(0, 2), slice(2, 4))]
    found = statistics_of(get_metric("recall@1"), parts, np.arange(4))
    np.testing.assert_array_equal(found, [1, 0, 0, 1])


def test_one_output_of_several() -> None:
    logits = np.eye(2)
    outputs = {"action": logits, "tokens": np.zeros((2, 7), int)}
    found = statistics_of(get_metric("accuracy/action"), [(2, outputs)], np.array([0, 0]))
    np.testing.assert_array_equal(found, [1, 0])
    with pytest.raises(CompressError, match=r"samples 0 to 1: metric 'accuracy/act' is of an output that is not there: "
                                            r"the outputs are \['action', 'tokens'\]"):
        statistics_of(get_metric("accuracy/act"), [(2, outputs)], np.array([0, 0]))


def test_refusals() -> None:
    with pytest.raises(CompressError, match=r"samples 2 to 2: metric 'accuracy' failed .* answers have shape"):
        statistics_of(get_metric("accuracy"), batches(np.eye(2), np.ones((1, 3, 2))), np.zeros(3, int))
    with pytest.raises(CompressError, match="outputs of 2 samples and targets of 3: these must agree"):
        statistics_of(get_metric("accuracy"), batches(np.eye(2)), np.zeros(3, int))
    with pytest.raises(CompressError, match="'recall@1' needs the outputs of all samples at once, and they differ"):
        statistics_of(get_metric("recall@1"), batches(np.eye(2), np.eye(3)), np.arange(5))
    with pytest.raises(CompressError, match="samples 0 to 0: metric 'wer' compares texts, and it is not known how"):
        statistics_of(get_metric("wer"), batches(np.ones((1, 3))), np.array(["a"]))
    with pytest.raises(CompressError, match="'f1' gave different numbers of statistics for different batches"):
        statistics_of(get_metric("f1"), batches(np.eye(3), np.eye(2)), np.zeros(5, int))
