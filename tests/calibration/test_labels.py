from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration import CalibrationError
from calibration.labels import label_of, stratum_of
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


def test_what_labels_are_grouped_by() -> None:
    assert stratum_of("a") == stratum_of("a") != stratum_of("b")
    assert stratum_of(1) != stratum_of(True)
    assert stratum_of(0.5) is stratum_of([1]) is stratum_of(None) is None
