"""Pictures of scikit-learn's real handwritten digits in colours, and the sentences that describe them.

A picture shows one digit at one of nine places ("a red three at the top left") or two, one beside the other ("a red
three left of a blue eight"). Each sentence can be said the other way round ("at the top left a red three", "a blue
eight right of a red three").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.errors import CompressError
from compress.zoo.digits_questions import DIGITS, splits

COLOURS = {"red": (1.0, 0.2, 0.2), "green": (0.2, 0.9, 0.2), "blue": (0.3, 0.4, 1.0), "yellow": (1.0, 0.9, 0.2),
           "white": (0.95, 0.95, 0.95)}  # fmt: skip
PLACES = ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
BESIDE = {"left of": "right of", "above": "below"}      # how the first lies to the second, and the second to the first
VOCABULARY = ("[padding]", "[begin]", "[end]", "a", "at", "the", "top", "middle", "bottom", "left", "right", "of",
              "above", "below", *COLOURS, *DIGITS)  # fmt: skip
PADDING, BEGIN, END = 0, 1, 2
SHORTEST, LONGEST = 3, 8            # words of a text; a sentence has 6 to 8
SIZE, DIGIT = 24, 8                 # pixels a side, of a picture and of a digit in it


@dataclass(frozen=True)
class Scene:
    """One or two ``(colour, digit)``, and where the one is, or how the first lies to the second."""

    items: tuple[tuple[str, str], ...]
    placed: str

    @property
    def sentences(self) -> tuple[str, str]:
        """The two that are true of it."""
        first, *others = (f"a {colour} {digit}" for colour, digit in self.items)
        if not others:
            return f"{first} at the {self.placed}", f"at the {self.placed} {first}"
        return f"{first} {self.placed} {others[0]}", f"{others[0]} {BESIDE[self.placed]} {first}"


@dataclass(frozen=True)
class Pictures:
    """Pictures f32 ``(pictures, 3, 24, 24)`` in [0, 1] with what each shows."""

    images: np.ndarray
    scenes: tuple[Scene, ...]


def tokenize(text: str, length: int = LONGEST, vocabulary: Sequence[str] = VOCABULARY) -> list[int]:
    """Ids of the words of ``text``, padded with zeros to ``length``.

    Raises:
        CompressError: on a word outside the vocabulary, or more words than ``length``.
    """
    words = text.split()
    unknown = [word for word in words if word not in vocabulary[END + 1:]]
    if unknown:
        raise CompressError(f"text {text!r} has a word outside the vocabulary: {unknown[0]!r}")
    if len(words) > length:
        raise CompressError(f"text {text!r} has {len(words)} words, more than {length}")
    return [vocabulary.index(word) for word in words] + [PADDING] * (length - len(words))


def every_single() -> list[Scene]:
    """Each digit in each colour at each place, 450 of them."""
    return [Scene(((colour, digit),), place) for place in PLACES for colour in COLOURS for digit in DIGITS]


def some_pairs(count: int, rng: np.random.Generator) -> list[Scene]:
    """``count`` different scenes of two digits; there are 5000."""
    things = [(colour, digit) for colour in COLOURS for digit in DIGITS]
    chosen = rng.choice(2 * len(things) ** 2, count, replace=False)
    return [Scene((things[number // 2 % len(things)], things[number // 2 // len(things)]), tuple(BESIDE)[number % 2])
            for number in chosen]  # fmt: skip


def draw(scenes: Sequence[Scene], split: str, rng: np.random.Generator) -> Pictures:
    """A picture of each scene, in the handwriting of a split of :func:`compress.zoo.digits_questions.splits`.

    That of ``train`` is a little deformed, each time in another way.
    """
    written, digits = splits()[split]
    chosen = [[rng.choice(np.flatnonzero(digits == DIGITS.index(digit))) for _, digit in scene.items]
              for scene in scenes]  # fmt: skip
    ink = written[np.concatenate(chosen)]
    if split == "train":
        ink = _deformed(ink, rng)
    images = rng.uniform(0, 0.06, (len(scenes), 3, SIZE, SIZE))
    number = 0
    for image, scene in zip(images, scenes, strict=True):
        for (colour, _), (down, across) in zip(scene.items, _corners(scene, rng), strict=True):
            there = image[:, down : down + DIGIT, across : across + DIGIT]
            painted = np.array(COLOURS[colour])[:, None, None] * ink[number] * rng.uniform(0.85, 1.0)
            np.maximum(there, painted, out=there)
            number += 1
    return Pictures(images.astype(np.float32), tuple(scenes))


def _corners(scene: Scene, rng: np.random.Generator) -> list[tuple[int, int]]:
    """The upper left corner (down, across) of each digit."""
    if len(scene.items) == 1:
        down, across = divmod(PLACES.index(scene.placed), 3)
        return [(_near(DIGIT * down, rng), _near(DIGIT * across, rng))]
    along = [int(rng.integers(0, 5)), int(rng.integers(12, 17))]
    aside = [int(rng.integers(5, 12)) for _ in along]       # nearer to a row, or to a column, than to a diagonal
    corners = list(zip(aside, along, strict=True))
    return corners if scene.placed == "left of" else [(across, down) for down, across in corners]


def _near(corner: int, rng: np.random.Generator) -> int:
    return int(np.clip(corner + rng.integers(-1, 2), 0, SIZE - DIGIT))


def _deformed(ink: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    import torch

    from compress.zoo.training import deform

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(1 << 31)))
        return np.asarray(deform(torch.from_numpy(ink)).numpy())
