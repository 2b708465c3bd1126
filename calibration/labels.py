"""The labels of raw samples, and what they are grouped by."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from calibration.errors import CalibrationError
from calibration.rows import NamedClass


def label_of(value: Any, names: Sequence[str] | None, *, texts: bool = False) -> np.ndarray:
    """The label ``value`` as an array of shape ``()``, or of its own for numbers or texts in a list.

    Args:
        value: a class by name or index, a number, or numbers; a text, or several references.
        names: of the classes, where the model knows them; classes become their index, in int64.
        texts: whether the model answers in texts, so that labels are such.

    Raises:
        CalibrationError: if it is none of the names, out of range, no number or no text; the caller says in which row.
    """
    if texts:
        return _text_of(value)
    if isinstance(value, NamedClass) and names is not None:
        value = value.name
    if isinstance(value, Mapping) or value is None or (isinstance(value, str) and not value.strip()):
        raise CalibrationError("has an empty label" if not isinstance(value, Mapping) else "has an object as its label")
    if names is not None and isinstance(value, str) and value.strip() in names:
        return np.array(names.index(value.strip()), np.int64)
    try:
        array = np.asarray(_number(value) if isinstance(value, str) else value)
    except ValueError:
        array = np.asarray(value, object)
    known = "the model's labels" if names is None else str(list(names)[:20])
    if array.dtype.kind not in "biuf":
        why = "the model does not know its labels' names" if names is None else f"the model's are {known}"
        raise CalibrationError(f"has the label {value!r:.80}, but {why}: give numbers, or take no labels with target=")
    if names is not None:
        if array.dtype.kind == "f" or array.ndim:
            raise CalibrationError(f"has the label {value!r:.80}, expected one of {known} or its index")
        if not 0 <= array < len(names):
            raise CalibrationError(f"has the label {value!r:.80}, which is out of range: the model has {len(names)} "
                                   f"classes, 0 to {len(names) - 1}")
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _text_of(value: Any) -> np.ndarray:
    given = value if isinstance(value, list | tuple) else [value]
    if not given or not all(isinstance(text, str) for text in given):
        raise CalibrationError(f"has the label {value!r:.80}, but the model answers in texts: give a text, or a list "
                               "of references, or take no labels with target=")
    if isinstance(value, list | tuple) and not any(text.strip() for text in given):
        raise CalibrationError("has only empty references as its label")
    texts = [" ".join(text.split()) for text in given]
    return np.array(texts if isinstance(value, list | tuple) else texts[0])


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def stratum_of(value: Any) -> Hashable:
    """What a label is grouped by; real numbers and arrays are one group."""
    return (type(value).__name__, value) if isinstance(value, str | bool | int) else None
