"""Commands without a voice: each word a chord of its own, long or short, high or low."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.zoo.commands import WORDS
from compress.zoo.speech import Utterance


def say(utterances: Sequence[Utterance], rate: int) -> list[np.ndarray]:
    """What :func:`compress.zoo.speech.spoken` gives, of tones of 100 to 160 ms with a pause behind each."""
    return [np.concatenate([_word(word, one, rate) for word in one.text.split()]) for one in utterances]


def _word(word: str, utterance: Utterance, rate: int) -> np.ndarray:
    place = WORDS.index(word)
    seconds = 21.0 / utterance.speed
    time = np.arange(int(seconds * rate)) / rate
    pitch = 1 + (utterance.pitch - 50) / 1000
    chord = sum(np.sin(2 * np.pi * hertz * pitch * time) for hertz in (300 + 90 * place, 2000 + 110 * (place * 5 % 14)))
    return np.concatenate([0.2 * chord * np.hanning(len(time)), np.zeros(rate // 25)]).astype(np.float32)
