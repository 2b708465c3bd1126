"""The demo's task: right answers, a fixed vocabulary, a split by image, and questions that do not give answers away."""

from collections import Counter

import numpy as np
import pytest

from compress.errors import CompressError
from compress.zoo.digits_questions import (
    ANSWERS,
    LENGTH,
    SPLIT,
    VOCABULARY,
    ask,
    choose,
    questions,
    sampling,
    splits,
    tables,
    tokenize,
)


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("is it even ?", "02468"),
        ("is the digit odd ?", "13579"),
        ("is it prime ?", "2357"),
        ("is it not prime ?", "014689"),
        ("is it a square ?", "0149"),
        ("is the digit a multiple of three ?", "0369"),
        ("is it greater than four ?", "56789"),
        ("is it less than seven ?", "0123456"),
        ("is the digit at least eight ?", "89"),
        ("is the digit at most one ?", "01"),
        ("is it a three ?", "3"),
        ("is it a three or a seven ?", "37"),
        ("is the digit greater than two and less than six ?", "345"),
    ],
)
def test_answers_by_hand(text, yes):
    question = next(q for q in questions() if q.text == text)
    assert [ANSWERS[a] for a in question.answers] == ["yes" if str(d) in yes else "no" for d in range(10)]


def test_which_digit_is_named():
    question = next(q for q in questions() if q.text == "what digit is it ?")
    assert [ANSWERS[a] for a in question.answers[3:5]] == ["three", "four"]


def test_questions_differ_and_fit():
    rows = {tuple(q.tokens) for q in questions()}
    assert len(rows) == len(questions())
    lengths = [np.count_nonzero(row) for row in rows]
    assert min(lengths) == 4
    assert max(lengths) == 11
    assert len(set(VOCABULARY)) == len(VOCABULARY) <= 40


def test_tokenize_pads_with_zeros():
    assert tokenize("Is it even?") == [VOCABULARY.index(w) for w in ("is", "it", "even", "?")] + [0] * (LENGTH - 4)


def test_tokenize_refuses():
    with pytest.raises(CompressError, match=r"'is it purple \?'.*'purple'"):
        tokenize("is it purple ?")
    with pytest.raises(CompressError, match="has 5 words, more than 4"):
        tokenize("is it not even ?", length=4)


def test_drawn_answers_are_those_of_the_table():
    digits = np.array([7, 0])
    words, answers = ask(digits, 50, np.random.default_rng(0))
    chosen = choose(digits, 50, np.random.default_rng(0))
    for image, digit in enumerate(digits):
        for row, answer, index in zip(words[image], answers[image], chosen[image], strict=True):
            assert row.tolist() == questions()[index].tokens
            assert answer == questions()[index].answers[digit]


def test_a_question_alone_says_little():
    """One who sees only the question, digits being equally frequent, is right less than half the time."""
    chance = np.diff(sampling(), axis=1, prepend=0)                     # (10, questions)
    _, answers = tables()
    best = sum(
        max(sum(chance[d, i] for d in range(10) if answers[i, d] == a) for a in set(answers[i]))
        for i in range(len(answers))
    )
    assert best / 10 < 0.5
    yes_no = Counter()
    for i in range(len(answers)):
        for d in range(10):
            yes_no[ANSWERS[answers[i, d]] if answers[i, d] < 2 else "digit"] += chance[d, i] / 10
    assert yes_no["digit"] == pytest.approx(2 / 8, abs=0.01)            # two shares of which-digit, six other kinds
    assert yes_no["yes"] == pytest.approx(yes_no["no"], abs=0.05)


def test_splits_share_no_image():
    parts = splits()
    assert {name: len(images) for name, (images, _) in parts.items()} == SPLIT
    assert sum(SPLIT.values()) == 1797
    seen = [image.tobytes() for images, _ in parts.values() for image in images]
    assert len(set(seen)) == len(seen)
    images, digits = parts["validation"]
    assert images.dtype == np.float32
    assert images.shape[1:] == (1, 8, 8)
    assert images.min() == 0
    assert images.max() == 1
    assert set(digits) == set(range(10))
