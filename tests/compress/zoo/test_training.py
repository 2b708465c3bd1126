"""Training: deterministic, honest about what a blind network sees, and able to learn."""

import math

import numpy as np
import pytest
import torch

from compress.errors import CompressError
from compress.zoo import training
from compress.zoo.digits_questions import ask, splits
from compress.zoo.digits_vqa import build
from compress.zoo.training import TrainConfig, accuracy, deform, steps_of, train

TINY = {
    "width": 16, "head_dim": 8, "image_heads": [1], "image_hidden": [16], "text_heads": [1], "text_hidden": [16],
    "fusion_heads": [1], "fusion_hidden": [16],
}  # fmt: skip


@pytest.fixture(scope="module")
def few():
    images, digits = splits()["train"]
    return images[:40], digits[:40]


def _trained(few, **settings):
    torch.manual_seed(0)
    network = build(**TINY)
    steps = train(network, *few, TrainConfig(**settings))
    return network, steps


def test_same_seed_same_weights(few):
    first, steps = _trained(few, epochs=1, seed=3)
    second, _ = _trained(few, epochs=1, seed=3)
    other, _ = _trained(few, epochs=1, seed=4)
    assert steps == 4 == steps_of(TrainConfig(epochs=1), 40)
    assert not first.training
    weights = [network.head.answer.weight for network in (first, second, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_image_encoder_of_another_width(few):
    network = build(**TINY, image_width=8)
    before = network.image_encoder.position.detach().clone()
    assert train(network, *few, TrainConfig(epochs=1)) == 4
    assert before.shape == (1, 64, 8)
    assert not torch.equal(network.image_encoder.position, before)


def test_it_learns_to_name_the_digit(few):
    """On 40 images, the loss of a network that saw them 30 times is far below that of one that did not."""
    losses = []
    torch.manual_seed(0)
    train(build(**TINY), *few, TrainConfig(epochs=30, rate=5e-3), lambda done, total, text: losses.append(text))
    first, last = (np.mean([float(text.split()[1]) for text in part]) for part in (losses[:5], losses[-5:]))
    assert last < 0.7 * first


def test_a_time_budget_ends_it(few):
    _, steps = _trained(few, seconds=0.2)
    assert steps >= 1


@pytest.mark.parametrize("blind", ["image", "question"])
def test_the_blind_see_a_constant(few, blind):
    network, _ = _trained(few, epochs=0.3, blind=blind)
    images = torch.from_numpy(few[0][:2])
    words = torch.from_numpy(ask(few[1][:2], 2, np.random.default_rng(0))[0])
    with torch.no_grad():
        logits = training._ask(network, images, words, blind)
        other = training._ask(network, images.flip(0), words.flip(1), blind)
        if blind == "image":
            blank = network(torch.zeros_like(images[:1]), words[1, :1])
            torch.testing.assert_close(logits[1, 0], blank[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(logits, other.flip(1), rtol=0, atol=1e-5)
        else:
            torch.testing.assert_close(logits[:, 0], logits[:, 1], rtol=0, atol=0)
            torch.testing.assert_close(logits, other.flip(0), rtol=0, atol=1e-5)


def test_accuracy_counts_right_answers(few):
    class Says(torch.nn.Module):
        """Answers 1 ("no") to everything."""

        def image_encoder(self, images):
            return images

        def ask(self, seen, words):
            return torch.nn.functional.one_hot(torch.ones(words.shape[:2], dtype=torch.int64), 12).float()

    answers = np.array([[1, 0], [1, 1]])
    assert accuracy(Says(), few[0][:2], np.ones((2, 2, 12), np.int64), answers) == 0.75


def test_deform_moves_little(few):
    torch.manual_seed(0)
    images = torch.from_numpy(few[0])
    moved = deform(images)
    assert moved.shape == images.shape
    assert moved.dtype == torch.float32
    assert 0 <= moved.min() <= moved.max() <= 1
    same = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(images.numpy(), moved.numpy(), strict=True)]
    assert 0.6 < np.mean(same) < 0.99


def test_deform_by_nothing_is_the_identity(few, monkeypatch):
    for name in ("TURN_DEGREES", "SCALE", "SHEAR", "SHIFT_PIXELS", "NOISE"):
        monkeypatch.setattr(training, name, 0.0)
    images = torch.from_numpy(few[0])
    torch.testing.assert_close(deform(images), images, rtol=0, atol=1e-5)


def test_schedule_rises_then_falls():
    assert training._schedule(0.1, 0.1) == pytest.approx(1)
    assert training._schedule(0.55, 0.1) == pytest.approx(0.5)
    assert training._schedule(1.0, 0.1) == pytest.approx(0, abs=1e-9)
    assert 0 < training._schedule(0.0, 0.1) < 0.02
    assert training._schedule(0.325, 0.1) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("name", ["epochs", "batch", "asked", "rate", "seconds"])
def test_settings_that_make_no_sense(name):
    with pytest.raises(CompressError, match=f"{name} must be above 0, got -1"):
        TrainConfig(**{name: -1})


def test_blind_is_one_of_the_inputs():
    with pytest.raises(CompressError, match="blind must be 'image', 'question' or None, got 'deaf'"):
        TrainConfig(blind="deaf")
