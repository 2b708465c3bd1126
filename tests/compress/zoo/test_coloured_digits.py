"""Pictures of coloured digits: they show what their sentences say."""

import numpy as np
import pytest

from compress.errors import CompressError
from compress.zoo.coloured_digits import COLOURS, PLACES, VOCABULARY, Scene, draw, every_single, some_pairs, tokenize
from compress.zoo.digits_questions import splits

BESIDE = Scene((("red", "three"), ("blue", "eight")), "left of")


def test_the_sentences_of_a_scene():
    assert BESIDE.sentences == ("a red three left of a blue eight", "a blue eight right of a red three")
    assert Scene((("white", "one"),), "top left").sentences == (
        "a white one at the top left", "at the top left a white one")
    over = Scene((("green", "two"), ("green", "six")), "above")
    assert over.sentences == ("a green two above a green six", "a green six below a green two")


def test_the_words_of_a_text():
    assert tokenize("a red three", 5) == [VOCABULARY.index(word) for word in ("a", "red", "three")] + [0, 0]
    with pytest.raises(CompressError, match="'a pink three' has a word outside the vocabulary: 'pink'"):
        tokenize("a pink three")
    with pytest.raises(CompressError, match=r"word outside the vocabulary: '\[end\]'"):
        tokenize("a red [end]")
    with pytest.raises(CompressError, match="'a red three at the top left' has 7 words, more than 6"):
        tokenize("a red three at the top left", 6)


def test_every_scene_of_one_digit_is_there_once_and_those_of_two_differ():
    assert len(set(every_single())) == len(PLACES) * len(COLOURS) * 10 == 450
    pairs = some_pairs(5000, np.random.default_rng(0))
    assert len(set(pairs)) == 5000
    assert {scene.placed for scene in pairs} == {"left of", "above"}


def test_a_digit_is_where_the_sentence_says_in_its_colour():
    scenes = every_single()[::7]
    pictures = draw(scenes, "validation", np.random.default_rng(0))
    assert pictures.images.shape == (len(scenes), 3, 24, 24)
    assert (pictures.images.min() >= 0, pictures.images.max() <= 1) == (True, True)
    ink = pictures.images.max(axis=1) > 0.2
    for scene, drawn in zip(scenes, ink, strict=True):
        down, across = divmod(PLACES.index(scene.placed), 3)
        rows, columns = np.nonzero(drawn)
        assert abs(rows.mean() - (8 * down + 3.5)) < 3
        assert abs(columns.mean() - (8 * across + 3.5)) < 3
    mean = (pictures.images * ink[:, None]).sum(axis=(2, 3))
    strongest = {"red": 0, "green": 1, "blue": 2}
    for scene, channels in zip(scenes, mean, strict=True):
        (colour, _), = scene.items
        if colour in strongest:
            assert channels.argmax() == strongest[colour]
        elif colour == "yellow":
            assert channels.argmin() == 2
        else:
            np.testing.assert_allclose(channels, channels.mean(), rtol=1e-2)


def test_two_digits_lie_as_the_sentence_says():
    under = Scene((("red", "three"), ("blue", "eight")), "above")
    for scene, axis in ((BESIDE, 1), (under, 0)):
        images = draw([scene] * 20, "validation", np.random.default_rng(0)).images
        for image in images:
            red, blue = (np.argwhere(image[one] - image[other] > 0.2).mean(axis=0) for one, other in ((0, 2), (2, 0)))
            gap = blue - red
            assert gap[axis] > abs(gap[1 - axis])


def apart(image, split):
    """How far a white zero in the middle is from the nearest of the split's handwriting, at its brightest place."""
    written, digits = splits()[split]
    cuts = [image[0, down : down + 8, across : across + 8] for down in (7, 8, 9) for across in (7, 8, 9)]
    return min(np.abs(cut - ink * cut.max() / ink.max()).max() for cut in cuts for ink in written[digits == 0, 0])


def test_only_the_handwriting_of_training_is_deformed_and_the_same_seed_draws_the_same():
    scene = [Scene((("white", "zero"),), "middle")] * 3
    first, second = (draw(scene, "train", np.random.default_rng(5)).images for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert min(apart(image, "train") for image in first) > 0.1
    plain = draw(scene, "calibration", np.random.default_rng(5)).images
    assert max(apart(image, "calibration") for image in plain) <= 0.06      # of the ground's noise
