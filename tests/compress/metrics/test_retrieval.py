"""Retrieval and zero-shot accuracy on embeddings whose neighbours are known."""

from __future__ import annotations

import numpy as np
import pytest

from compress.errors import CompressError
from compress.metrics import get_metric, value_of
from compress.metrics.metric import Outputs


def on_circle(*degrees: float) -> np.ndarray:
    """Embeddings in these directions, of several lengths."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, len(degrees) + 1)[:, None]


def value(name: str, outputs: Outputs, target: np.ndarray) -> float:
    metric = get_metric(name)
    return value_of(metric, metric.per_sample(outputs, target)).value


# Three pictures at 0, 40 and 100 degrees; the text of the second is nearer to the first picture.
PAIRS = {"image_embeds": on_circle(0, 40, 100), "text_embeds": on_circle(5, 15, 95)}


def test_recall_by_hand() -> None:
    """The second text lies 15 from the first picture and 25 from its own: it is second."""
    ids = np.arange(3)
    np.testing.assert_array_equal(get_metric("recall@1").per_sample(PAIRS, ids), [1, 0, 1])
    assert value("recall@1", PAIRS, ids) == pytest.approx(2 / 3)
    assert value("recall@2", PAIRS, ids) == 1.0
    # From the pictures: the first is nearest to its own text (5 to 15), the second to its own (35 to 25).
    assert value("text-recall@1", PAIRS, ids) == 1.0


def test_several_texts_of_one_picture() -> None:
    """Two texts of the first picture, at 5 and at 80, and one of the other: a picture finds any text of its own."""
    outputs = {"image": on_circle(0, 0, 90), "text": on_circle(5, 80, 95)}
    ids = np.array([7, 7, 3])
    np.testing.assert_array_equal(get_metric("recall@1").per_sample(outputs, ids), [1, 0, 1])
    # Statistics: one query a picture, at its first sample.
    np.testing.assert_array_equal(get_metric("text-recall@1").per_sample(outputs, ids), [[1, 1], [0, 0], [1, 1]])
    assert value("text-recall@1", outputs, ids) == 1.0


def test_against_every_pair_ranked_by_sorting() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.normal(size=(700, 8))       # more than one block
    texts = pictures + rng.normal(size=(700, 8))
    similar = (texts / np.linalg.norm(texts, axis=1, keepdims=True)) @ (
        pictures / np.linalg.norm(pictures, axis=1, keepdims=True)).T
    ranks = np.array([list(np.argsort(-row)).index(i) for i, row in enumerate(similar)])
    for k in (1, 5, 10):
        assert value(f"recall@{k}", {"a": pictures, "text": texts}, np.arange(700)) == (ranks < k).mean()


def test_towers_that_say_the_same_of_everything_find_nothing() -> None:
    same = {"image_embeds": np.ones((4, 3)), "text_embeds": np.ones((4, 3))}
    for name in ("recall@1", "text-recall@3", "zero-shot-accuracy"):
        assert value(name, same, np.arange(4)) == 0
    assert value("recall@4", same, np.arange(4)) == 1.0


def test_zero_shot_by_hand() -> None:
    """Prompts of class 4 at 0 and 20, on average at 10 whatever their lengths; of class 9 at 90."""
    outputs = {"image_embeds": on_circle(45, 51, 80, 100), "text_embeds": on_circle(0, 20, 90, 90)}
    found = get_metric("zero-shot-accuracy").per_sample(outputs, np.array([4, 4, 9, 9]))
    np.testing.assert_array_equal(found, [1, 0, 1, 1])


@pytest.mark.parametrize(("outputs", "target", "message"), [
    ({"output": np.ones((2, 3))}, [0, 1], r"dual encoder with two outputs.* and this model has \['output'\]"),
    ({"a": np.ones((2, 3)), "b": np.ones((2, 3))}, [0, 1], r"one has 'text' in its name.* has \['a', 'b'\]"),
    ({"a": np.ones((2, 3)), "text": np.ones((2, 4))}, [0, 1], r"'a' has shape \(2, 3\) and 'text' \(2, 4\)"),
    ({"a": np.ones((2, 3, 1)), "text": np.ones((2, 3))}, [0, 1], r"output 'a' has shape \(2, 3, 1\)"),
    ({"a": np.ones((2, 3)), "text": np.array([[1.0] * 3, [0.0] * 3])}, [0, 1], "'text' is all zeros for sample 1"),
    ({"a": np.ones((2, 3)), "text": np.ones((2, 3))}, [0.5, 1], r"targets are float64\[2\]: give each sample an int"),
])  # fmt: skip
def test_refusals(outputs: Outputs, target: list[float], message: str) -> None:
    with pytest.raises(CompressError, match=f"'recall@1' failed on 2 samples: .*{message}"):
        get_metric("recall@1").per_sample(outputs, np.array(target))


def test_zero_shot_needs_two_classes() -> None:
    with pytest.raises(CompressError, match="all samples have the target 3: it needs samples of at least two classes"):
        get_metric("zero-shot-accuracy").per_sample(PAIRS, np.array([3, 3, 3]))
