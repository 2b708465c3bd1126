from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration import CalibrationError
from calibration.labels import choose, label_of, stratum_of
from calibration.rows import NamedClass

NAMES = ("no", "yes", "10")


@pytest.mark.parametrize(("value", "names", "expected"), [
    ("yes", NAMES, 1), (" no ", NAMES, 0), ("1", NAMES, 1), (2, NAMES, 2), ("10", NAMES, 2), (True, NAMES, 1),
    (NamedClass.of(0, "yes"), NAMES, 1), (NamedClass.of(0, "yes"), None, 0), ("7", None, 7), (-3, None, -3),
])
def test_classes(value: Any, names: tuple[str, ...] | None, expected: int) -> None:
    label = label_of(value, names)
    assert (label.dtype, label.shape, label.item()) == (np.int64, (), expected)


def test_numbers() -> None:
    for value in ("0.5", 0.5, np.float32(0.5)):
        assert (label_of(value, None).dtype, label_of(value, None).item()) == (np.float64, 0.5)
    np.testing.assert_array_equal(label_of([0, 1, 1], None), [0, 1, 1])


@pytest.mark.parametrize(("value", "names", "message"), [
    (3, NAMES, "has the label 3, which is out of range: the model has 3 classes, 0 to 2"),
    ("-1", NAMES, "has the label '-1', which is out of range"), (0.5, NAMES, "has the label 0.5, expected one of"),
    ([0, 1], NAMES, r"has the label \[0, 1\], expected one of"), ("", NAMES, "has an empty label"),
    (None, None, "has an empty label"), ({"a": 1}, None, "has an object as its label"),
    ("maybe", NAMES, r"has the label 'maybe', but the model's are \['no', 'yes', '10'\]"),
    (NamedClass.of(1, "cat"), NAMES, "has the label 'cat', but the model's are"),
    ("cat", None, "has the label 'cat', but the model does not know its labels' names: give numbers, or take no"),
    ([[1], [2, 3]], None, "but the model does not know"),
])
def test_labels_that_cannot_be_used(value: Any, names: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        label_of(value, names)


def test_texts() -> None:
    assert label_of(" turn it\n off ", None, texts=True).tolist() == "turn it off"
    assert label_of("", None, texts=True).tolist() == ""          # nothing was said
    assert label_of(["a dog", "one dog"], None, texts=True).tolist() == ["a dog", "one dog"]


@pytest.mark.parametrize(("value", "message"), [
    (3, "has the label 3, but the model answers in texts: give a text, or a list of references"),
    ([], r"has the label \[\], but the model answers in texts"), (["a", 1], "but the model answers in texts"),
    (None, "has the label None, but the model answers in texts"), (["", " "], "has only empty references as its label"),
])  # fmt: skip
def test_texts_that_cannot_be_used(value: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        label_of(value, None, texts=True)


def test_each_stratum_by_its_share_evenly_spaced() -> None:
    strata = ["a"] * 6 + ["b"] * 3 + ["a"] * 0 + ["c"] * 3     # 6, 3, 3 of 12: 4, 2, 2 of 8
    assert choose(strata, 8) == [0, 2, 3, 5, 6, 8, 9, 11]
    assert choose(strata, 4) == [1, 4, 7, 10]                   # 2, 1, 1
    assert choose(strata, 1) == [3]                             # 0.5 is the largest remainder
    assert choose([None] * 10, 3) == [1, 5, 8]
    assert choose(strata, 12) == choose(strata, 99) == list(range(12))


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60), st.integers(1, 60))
def test_shares_are_right_within_one(strata: list[str], count: int) -> None:
    kept = choose(strata, count)
    assert kept == sorted(set(kept))
    assert len(kept) == min(count, len(strata))
    for name, total in Counter(strata).items():
        assert abs(sum(strata[i] == name for i in kept) - len(kept) * total / len(strata)) < 1


def test_what_labels_are_grouped_by() -> None:
    assert stratum_of("a") == stratum_of("a") != stratum_of("b")
    assert stratum_of(1) != stratum_of(True)
    assert stratum_of(0.5) is stratum_of([1]) is stratum_of(None) is None
