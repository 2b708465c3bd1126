"""The demo's task: questions about scikit-learn's real handwritten digits, split by image.

Every image has 8x8 pixels (UCI's optical recognition of handwritten digits). A question is a row of word ids from a
fixed vocabulary; its answer is one of twelve: yes, no, and the ten digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from compress.errors import CompressError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ANSWERS = ("yes", "no", *DIGITS)
VOCABULARY = (
    "[padding]", "?", "is", "it", "the", "digit", "a", "what", "which", "this", "name", "number", "not", "and", "or",
    "even", "odd", "prime", "square", "multiple", "of", "greater", "less", "than", "at", "least", "most",
    *DIGITS,
)
LENGTH = 12             # words a question is padded to
PROCESSING = {          # light ink on dark paper, of any size; a question of the vocabulary's words
    "inputs": {
        "image": {"kind": "image", "from": "image", "mode": "L", "steps": [
            {"op": "resize", "size": [8, 8], "resample": "box"}, {"op": "rescale", "scale": 1 / 255}]},
        "question": {"kind": "text", "from": "question", "pad_id": 0,
                     "vocabulary": {"words": list(VOCABULARY), "lowercase": True, "separate": "?"}},
    },
}
SPLIT = {"train": 1150, "calibration": 100, "validation": 547}     # images; together scikit-learn's 1797


@dataclass(frozen=True)
class Question:
    """``answers[d]`` is the index in :data:`ANSWERS` of the answer about digit ``d``; ``kind`` groups variants."""

    kind: str
    text: str
    answers: tuple[int, ...]

    @property
    def tokens(self) -> list[int]:
        return tokenize(self.text)


def tokenize(text: str, length: int = LENGTH) -> list[int]:
    """Ids of the words of ``text``, padded with zeros to ``length``.

    Raises:
        CompressError: on a word outside the vocabulary, or more words than ``length``.
    """
    words = text.lower().replace("?", " ?").split()
    unknown = [word for word in words if word not in VOCABULARY[1:]]
    if unknown:
        raise CompressError(f"question {text!r} has a word outside the demo's vocabulary: {unknown[0]!r}")
    if len(words) > length:
        raise CompressError(f"question {text!r} has {len(words)} words, more than {length}")
    return [VOCABULARY.index(word) for word in words] + [0] * (length - len(words))


@cache
def questions() -> tuple[Question, ...]:
    """Every question of the task, in a fixed order."""
    every = range(10)
    asked = [Question("which", text, tuple(ANSWERS.index(word) for word in DIGITS))
             for text in ("what digit is it ?", "which digit is this ?", "which number is it ?", "name the digit ?")]

    def add(kind: str, text: str, true: Sequence[int] | range) -> None:
        asked.append(Question(kind, text, tuple(ANSWERS.index("yes" if digit in true else "no") for digit in every)))

    properties: dict[str, tuple[int, ...]] = {
        "even": (0, 2, 4, 6, 8), "odd": (1, 3, 5, 7, 9), "prime": (2, 3, 5, 7), "a square": (0, 1, 4, 9),
        "a multiple of three": (0, 3, 6, 9),
    }
    for name, true in properties.items():
        false = [digit for digit in every if digit not in true]
        add("property", f"is it {name} ?", true)
        add("property", f"is the digit {name} ?", true)
        add("negation", f"is it not {name} ?", false)
    for first, word in enumerate(DIGITS):
        add("identity", f"is it a {word} ?", [first])
        add("identity", f"is this the digit {word} ?", [first])
        if first < 9:
            add("order", f"is it greater than {word} ?", range(first + 1, 10))
            add("order", f"is the digit at most {word} ?", range(first + 1))
        if first > 0:
            add("order", f"is it less than {word} ?", range(first))
            add("order", f"is the digit at least {word} ?", range(first, 10))
        for second in range(first + 1, 10):
            add("either", f"is it a {word} or a {DIGITS[second]} ?", [first, second])
            if second - first > 1 and second - first < 9:
                add("range", f"is the digit greater than {word} and less than {DIGITS[second]} ?",
                    range(first + 1, second))
    return tuple(asked)


@cache
def tables() -> tuple[np.ndarray, np.ndarray]:
    """Token ids i64 ``(questions, LENGTH)`` and answers i64 ``(questions, 10)`` of :func:`questions`."""
    return (np.array([q.tokens for q in questions()], np.int64), np.array([q.answers for q in questions()], np.int64))


@cache
def sampling() -> np.ndarray:
    """Cumulative probability ``(10, questions)`` of asking each question about an image of each digit.

    A kind first ("which digit" as often as any two others), then the answer, then a question of that kind with that
    answer: so yes and no are equally frequent, and the question alone says little about the answer.
    """
    kinds = sorted({q.kind for q in questions()})
    chances = np.zeros((10, len(questions())))
    for digit in range(10):
        for kind in kinds:
            mine = [i for i, q in enumerate(questions()) if q.kind == kind]
            by_answer = [[i for i in mine if questions()[i].answers[digit] == answer] for answer in range(len(ANSWERS))]
            present = [group for group in by_answer if group]
            for group in present:
                chances[digit, group] = (2.0 if kind == "which" else 1.0) / len(present) / len(group)
    total = chances.cumsum(axis=1)
    return np.asarray(total / total[:, -1:])


def choose(digits: np.ndarray, asked: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``asked`` questions about each image, as indices ``(images, asked)`` of :func:`questions`.

    Args:
        digits: what each image shows, ``(images,)`` in 0..9.
    """
    draws = rng.random((len(digits), asked))
    return np.stack([np.searchsorted(sampling()[d], row, side="right") for d, row in zip(digits, draws, strict=True)])


def ask(digits: np.ndarray, asked: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw as :func:`choose`: word ids i64 ``(images, asked, LENGTH)`` and answers i64 ``(images, asked)``."""
    chosen = choose(digits, asked, rng)
    tokens, answers = tables()
    return tokens[chosen], answers[chosen, digits[:, None]]


def splits() -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
    """Images f32 ``(images, 1, 8, 8)`` in [0, 1] and their digits i64, for ``train``, ``calibration``, ``validation``.

    The order is a fixed permutation, the same for every seed of training: no image is in two splits.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = (data.images / 16).astype(np.float32)[:, None]
    order = np.random.default_rng(0).permutation(len(images))
    parts, start = {}, 0
    for name, count in SPLIT.items():
        chosen = order[start:start + count]
        parts[name] = (images[chosen], data.target[chosen].astype(np.int64))
        start += count
    return parts
