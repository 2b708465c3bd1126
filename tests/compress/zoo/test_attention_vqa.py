"""Visual question answering by cross-attention: answers are about the corner asked for."""

import numpy as np
from sklearn.datasets import load_digits

from compress.zoo.attention_vqa import ANSWERS, VOCABULARY, samples
from compress.zoo.digits_questions import DIGITS


def test_every_answer_is_of_the_corner_asked_for():
    shown = {(image / 16).astype(np.float32).tobytes(): int(digit)
             for image, digit in zip(load_digits().images, load_digits().target, strict=True)}  # fmt: skip
    asked = set()
    for rows, target in samples()["validation"]:
        for image, question, answer in zip(rows["image"], rows["question"], target, strict=True):
            words = [VOCABULARY[index] for index in question]
            down, across = 8 * ("lower" in words), 8 * ("right" in words)
            digit = shown[np.ascontiguousarray(image[0, down : down + 8, across : across + 8]).tobytes()]
            expected = ("odd" if digit % 2 else "even") if "odd" in words else DIGITS[digit]
            assert ANSWERS[answer] == expected, words
            asked.add((len(words), (down, across)))
    assert {length for length, _ in asked} == {7, 9, 10, 14}
    assert {corner for _, corner in asked} == {(0, 0), (0, 8), (8, 0), (8, 8)}
