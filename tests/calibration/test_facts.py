from __future__ import annotations

import zlib

import numpy as np

from calibration import CalibrationSet, open_set
from calibration.facts import read_facts
from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 1, 64)
IMAGE = TensorSpec(name="image", dtype="float32", shape=(BATCH, 2, 2), modality="image")
TEXT = TensorSpec(name="text", dtype="int64", shape=(BATCH, Dim("length", 1, 4, 8)), modality="text")
MASK = TensorSpec(name="mask", dtype="float32", shape=(BATCH, Dim("length", 1, 4, 8)), modality="text")
AGE = TensorSpec(name="age", dtype="float32", shape=(BATCH,))


def made(**labels: np.ndarray) -> CalibrationSet:
    """Four samples in two feeds, of lengths 3 and 5; the third has no picture."""
    image = np.arange(16, dtype=np.float32).reshape(4, 2, 2) + 1
    image[2] = 0.0
    text = np.array([[7, 8, 9, 0, 0], [7, 0, 0, 0, 0], [1, 2, 3, 4, 5], [0, 0, 0, 0, 0]])
    feeds = [{"image": image[rows], "text": text[rows, :size], "mask": np.ones((2, size), np.float32),
              "age": np.array([0.0, 3.0], np.float32), **{name: array[rows] for name, array in labels.items()}}
             for rows, size in ((slice(0, 2), 3), (slice(2, 4), 5))]  # fmt: skip
    return open_set(feeds, [IMAGE, TEXT, MASK, AGE], name="four")


def test_by_hand() -> None:
    facts = read_facts(made())
    assert len(facts) == 4
    assert {name: values.tolist() for name, values in facts.present.items()} == {
        "image": [True, True, False, True], "text": [True, True, True, False], "mask": [True] * 4, "age": [True] * 4}
    assert {name: values.tolist() for name, values in facts.sizes.items()} == {"length": [3, 3, 5, 5]}
    assert facts.lengths.tolist() == [3 + 3, 1 + 3, 5 + 5, 0 + 5]     # tokens that are not zero, and the mask's size
    assert facts.prints["age"].tolist() == [facts.prints["age"][0], facts.prints["age"][1]] * 2
    assert facts.prints["image"][0] == zlib.crc32(np.arange(1, 5, dtype="<f4").tobytes(), zlib.crc32(b"(2, 2)"))
    assert (facts.labels.tolist(), facts.classes) == ([0, 0, 0, 0], ("",))


def test_labels_that_are_classes() -> None:
    facts = read_facts(made(target=np.array(["cat", "dog", "cat", "dog"])))
    assert (facts.labels.tolist(), facts.classes) == ([0, 1, 0, 1], ("cat", "dog"))
    facts = read_facts(made(**{"target.said": np.array([3, 3, 1, 1]), "target.where": np.array([0.5, 1.5, 2.5, 3.5])}))
    assert (facts.labels.tolist(), facts.classes) == ([0, 0, 1, 1], ("3", "1"))
    facts = read_facts(made(**{"target.a": np.array([3, 3, 1, 1]), "target.b": np.array([True, True, False, False])}))
    assert facts.classes == ("3, True", "1, False")


def test_labels_that_are_none() -> None:
    for target in (np.array([0.5, 0.5, 0.1, 0.1]), np.array(["a", "b", "c", "d"]), np.zeros((4, 2), np.int64)):
        facts = read_facts(made(target=target))
        assert (facts.labels.tolist(), facts.classes) == ([0, 0, 0, 0], ("",))


def test_the_subset_has_each_label_and_each_kind() -> None:
    image = np.ones((100, 2, 2), np.float32)
    image[::10] = 0.0
    data = open_set([{"image": image, "target": np.arange(100) // 2 % 5}], [IMAGE], name="many")
    kept = data.pick(read_facts(data).choose(20))
    facts = read_facts(kept)
    assert (kept.name, len(kept)) == ("many[20 of 100]", 20)
    assert np.bincount(facts.labels).tolist() == [4] * 5
    assert np.count_nonzero(~facts.present["image"]) == 2
