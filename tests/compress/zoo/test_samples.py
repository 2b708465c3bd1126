"""Samples of several shapes as parts, and what a network sees that is blind to a modality."""

import numpy as np

from compress.zoo.samples import alone, blank_of, by_shape, count_of, targets_of


def test_samples_of_one_shape_are_one_part_in_the_order_they_came():
    texts = [[1, 2], [3], [4, 5], [6]]
    parts = by_shape(({"x": np.float32([i]), "text": np.array(text)}, np.array(i)) for i, text in enumerate(texts))
    assert [rows["text"].tolist() for rows, _ in parts] == [[[1, 2], [4, 5]], [[3], [6]]]
    assert [rows["x"].tolist() for rows, _ in parts] == [[[0], [2]], [[1], [3]]]
    assert targets_of(parts).tolist() == [0, 2, 1, 3]


def test_alone_replaces_all_others():
    rows = {"a": np.array([[1.0], [3.0]], np.float32), "b": np.array([[5], [7]]), "c": np.array([[1, 1]] * 2)}
    blank = blank_of([(rows, np.zeros(2))])
    seen = alone(rows, ("b", "c"), blank)
    np.testing.assert_array_equal(seen["a"], [[2], [2]])
    np.testing.assert_array_equal(seen["b"], rows["b"])
    np.testing.assert_array_equal(seen["c"], rows["c"])
    np.testing.assert_array_equal(alone(rows, ("a",), blank)["b"], [[5], [5]])


def test_targets_by_output_are_joined_by_output():
    rows = [({"x": np.zeros(length)}, {"kind": np.array(kind), "said": np.array(said)})
            for length, kind, said in ((2, 0, "a"), (3, 1, "bb"), (2, 2, "ccc"))]  # fmt: skip
    parts = by_shape(rows)
    assert [{name: values.tolist() for name, values in target.items()} for _, target in parts] == [
        {"kind": [0, 2], "said": ["a", "ccc"]}, {"kind": [1], "said": ["bb"]}]  # fmt: skip
    assert targets_of(parts)["said"].tolist() == ["a", "ccc", "bb"]
    assert (count_of(targets_of(parts)), count_of(np.zeros((4, 2)))) == (3, 4)
