"""Outputs of the model to plain Python values: labels with their scores, numbers, texts, similarities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Union

import numpy as np

from runtimes.errors import RuntimesError
from runtimes.processing.fields import in_range
from runtimes.processing.text import ReadFile, Tokenizer, Words, load_tokenizer, load_words
from runtimes.records import inside

Activation = Literal["softmax", "sigmoid", "none"]


@dataclass(frozen=True, kw_only=True)
class ClassesOutput:
    """The index of the largest value of the last axis, what it means, and its score after ``activation``.

    ``{"label", "index", "score"}``, or with ``top`` a list of that many, best first. Without ``labels`` no "label".
    """

    KIND: ClassVar[str] = "classes"
    labels: tuple[str, ...] | None = None
    activation: Activation = "softmax"
    top: int | None = None

    def __post_init__(self) -> None:
        in_range(self.top, 1, 10**6, "the number of answers")

    def answer(self, row: np.ndarray) -> Any:
        _check_labels(self.labels, row)
        scores = activate(self.activation, row)
        best = np.argsort(-row, kind="stable")[: self.top or 1]     # of equal ones the first, as argmax
        answers = [_labelled(self.labels, int(index), scores) for index in best]
        return answers[0] if self.top is None else answers


@dataclass(frozen=True, kw_only=True)
class MultilabelOutput:
    """Every index of the last axis whose score reaches ``threshold`` (one, or one an index), best first."""

    KIND: ClassVar[str] = "multilabel"
    labels: tuple[str, ...] | None = None
    activation: Activation = "sigmoid"
    threshold: float | tuple[float, ...] = 0.5

    def answer(self, row: np.ndarray) -> Any:
        _check_labels(self.labels, row)
        if isinstance(self.threshold, tuple) and len(self.threshold) != len(row):
            raise RuntimesError(f"has {len(row)} values, but {len(self.threshold)} thresholds")
        scores = activate(self.activation, row)
        best = np.argsort(-scores, kind="stable")
        reached = scores >= np.asarray(self.threshold)
        return [_labelled(self.labels, int(index), scores) for index in best if reached[index]]


@dataclass(frozen=True, kw_only=True)
class DecisionOutput:
    """One value a sample: ``labels`` has what it means to stay below the ``threshold`` and to reach it."""

    KIND: ClassVar[str] = "decision"
    labels: tuple[str, str] = ("no", "yes")
    activation: Literal["sigmoid", "none"] = "sigmoid"
    threshold: float = 0.5

    def answer(self, row: np.ndarray) -> Any:
        if row.size != 1:
            raise RuntimesError(f"has {row.size} values a sample, expected one to decide on")
        score = float(activate(self.activation, row)[0])
        index = int(score >= self.threshold)
        return {"label": self.labels[index], "index": index, "score": score}


@dataclass(frozen=True, kw_only=True)
class ValuesOutput:
    """The numbers ``value * scale + offset``, as nested lists, or by name along the last axis where ``names`` are."""

    KIND: ClassVar[str] = "values"
    activation: Activation = "none"
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0
    names: tuple[str, ...] | None = None

    def answer(self, row: np.ndarray) -> Any:
        for values in (self.scale, self.offset, self.names):
            if isinstance(values, tuple) and len(values) != len(row):
                raise RuntimesError(f"has {len(row)} values, but the record {len(values)}")
        result = (activate(self.activation, row) * np.asarray(self.scale) + np.asarray(self.offset)).tolist()
        return result if self.names is None else dict(zip(self.names, result, strict=True))


@dataclass(frozen=True, kw_only=True)
class TextOutput:
    """Token ids along the last axis, or scores of each token along the last of two, decoded to a string.

    What follows the first ``stop`` id is left out, with it. ``collapse`` makes equal neighbours one and then drops
    ``blank`` (connectionist temporal classification). ``skip`` are ids to drop, ``replace`` are pairs of strings.
    """

    KIND: ClassVar[str] = "text"
    scores: bool
    tokenizer: str | None = None
    vocabulary: Words | None = None
    special: bool = False           # keep the special tokens of the tokenizer's file
    stop: int | None = None
    skip: tuple[int, ...] = ()
    collapse: bool = False
    blank: int | None = None
    replace: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.vocabulary is None):
            raise RuntimesError("needs either 'tokenizer' or 'vocabulary'")
        if self.tokenizer is not None:
            inside(self.tokenizer, "'tokenizer'")
        if any(not old for old, _ in self.replace):
            raise RuntimesError("has an empty string to replace")

    def opened(self, read: ReadFile) -> Callable[[np.ndarray], str]:
        """What turns one row into a string."""
        if self.vocabulary is not None:
            tokenizer = load_words(self.vocabulary)
        else:
            assert self.tokenizer is not None
            tokenizer = load_tokenizer(read(self.tokenizer), self.tokenizer, special=not self.special)
        return lambda row: self._decode(tokenizer, row)

    def _decode(self, tokenizer: Tokenizer, row: np.ndarray) -> str:
        ids: list[int] = row.tolist()
        if self.stop is not None and self.stop in ids:
            ids = ids[: ids.index(self.stop)]
        if self.collapse:
            ids = [token for at, token in enumerate(ids) if at == 0 or token != ids[at - 1]]
        text = tokenizer.decode([token for token in ids if token != self.blank and token not in self.skip])
        for old, new in self.replace:
            text = text.replace(old, new)
        return text.strip()


@dataclass(frozen=True, kw_only=True)
class SimilarityOutput:
    """How alike two outputs ``of`` the model are: for each row of the first, a score for each row of the second.

    ``activation(scale * cosine + bias)``; ``normalize=False`` takes the plain dot product. Its name is no output's.
    """

    KIND: ClassVar[str] = "similarity"
    of: tuple[str, str]
    scale: float = 1.0
    bias: float = 0.0
    normalize: bool = True
    activation: Activation = "none"

    def answer(self, first: np.ndarray, second: np.ndarray) -> list[Any]:
        if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
            raise RuntimesError(f"compares {self.of[0]!r} of shape {first.shape} with {self.of[1]!r} of {second.shape}")
        rows = [array.astype(np.float64) for array in (first, second)]
        if self.normalize:
            rows = [array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12) for array in rows]
        scores = self.scale * (rows[0] @ rows[1].T) + self.bias
        return list(activate(self.activation, scores).tolist())


Output = Union[  # noqa: UP007 - a name for the six, in one place
    ClassesOutput, MultilabelOutput, DecisionOutput, ValuesOutput, TextOutput, SimilarityOutput
]


def activate(kind: Activation, values: np.ndarray) -> np.ndarray:
    """``values`` in float64 after the activation, softmax along the last axis."""
    values = values.astype(np.float64)
    if kind == "softmax":
        powers = np.exp(values - values.max(axis=-1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=-1, keepdims=True))
    if kind == "sigmoid":
        return np.asarray(np.exp(-np.logaddexp(0, -values)))    # never overflows
    return values


def rows_of(output: Output, array: np.ndarray, answer: Callable[[np.ndarray], Any]) -> list[Any]:
    """``answer`` of each sample of ``array``, batch first; leading axes of a sample become nested lists."""
    if isinstance(output, TextOutput):
        if array.dtype.kind == "f" and output.scores:
            array = array.argmax(axis=-1)
        if array.dtype.kind not in "iu":
            raise RuntimesError(f"is {array.dtype}, expected {'scores' if output.scores else 'ids'} to decode")
    elif isinstance(output, DecisionOutput):
        array = array.reshape(len(array), -1)
    elif array.ndim == 1:
        array = array[:, None]
    return [_nested(sample, answer) for sample in array]


def _nested(sample: np.ndarray, answer: Callable[[np.ndarray], Any]) -> Any:
    return answer(sample) if sample.ndim <= 1 else [_nested(part, answer) for part in sample]


def _labelled(labels: tuple[str, ...] | None, index: int, scores: np.ndarray) -> Mapping[str, Any]:
    label = {} if labels is None else {"label": labels[index]}
    return {**label, "index": index, "score": float(scores[index])}


def _check_labels(labels: tuple[str, ...] | None, row: np.ndarray) -> None:
    if labels is not None and len(labels) != len(row):
        raise RuntimesError(f"has {len(row)} values, but there are {len(labels)} labels")
