"""Spoken commands and the state of the house into one action, and what was said, word for word.

The commands are spoken by espeak-ng in many voices at several speeds, with noise: "turn it off", "fan on please". The
state is a text, as the house writes it: "last fan on lamp radio", which devices are on and which was spoken of last.
The action needs both: "it" is the device spoken of last, "toggle" depends on whether it is on, and what is as it should
be needs no action. The transcript comes from the sound alone, by connectionist temporal classification.

Source: Graves et al. 2006, doi:10.1145/1143844.1143891.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Input
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Rows, Splits, by_shape
from compress.zoo.speech import Utterance, spoken
from compress.zoo.tasks import Task
from runtimes.processing.audio import AudioInput
from runtimes.processing.record import parse_processing
from runtimes.spec import Dim

DEVICES = ("lamp", "fan", "heater", "radio")
PHRASES: Mapping[str, str] = {          # what is said of the device {d} -> what is wanted
    "turn on {d}": "on", "turn {d} on": "on", "switch on {d}": "on", "{d} on please": "on",
    "turn off {d}": "off", "turn {d} off": "off", "switch off {d}": "off", "{d} off please": "off",
    "toggle {d}": "toggle", "change {d} please": "toggle",
}  # fmt: skip
NAMES = ("it", *(f"the {device}" for device in DEVICES))
WORDS = ("", *dict.fromkeys(" ".join([*PHRASES, *NAMES]).replace("{d}", "").split()))      # the first is the blank
STATE = ("[padding]", "last", "on", "nothing", *DEVICES)
ACTIONS = ("nothing", *(f"{device} {state}" for device in DEVICES for state in ("on", "off")))
VOICES = {
    "train": ("en-us", "en-us+f1", "en-us+f2", "en-us+m1", "en-us+m3", "en-us+m7", "en-gb", "en-gb+f3", "en-gb+f5",
              "en-gb+m2", "en-gb+m5", "en-gb-scotland"),
    "validation": ("en-us+f4", "en-us+m4", "en-gb+m6", "en-gb-x-rp"),
}  # fmt: skip
SPOKEN = {"train": 1000, "calibration": 100, "validation": 300}    # commands of each split
STATES = {"train": 3, "calibration": 1, "validation": 2}           # the house is in when one is given
RATE, TICK = 8000, 1600         # Hz; a recording ends at a multiple of TICK samples, 0.2 s
MELS, HOP = 32, 128


def build(*, channels: int = 96, width: int = 64, hidden: int = 256) -> Commands:
    """Return the network with fresh weights: ``channels`` of the sound, ``width`` of the text, ``hidden``."""
    return Commands(channels, width, hidden)


class Commands(nn.Module):
    """An encoder for each input; words from the sound's frames; an action from both."""

    def __init__(self, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.audio_encoder = AudioEncoder(channels)
        self.text_encoder = TextEncoder(width)
        self.transcript = nn.Conv1d(channels, len(WORDS), 1)
        self.action = nn.Sequential(nn.Linear(len(WORDS) + width, hidden), nn.ReLU(), nn.Linear(hidden, hidden),
                                    nn.ReLU(), nn.Linear(hidden, len(ACTIONS)))  # fmt: skip

    def forward(self, audio: Tensor, state: Tensor) -> dict[str, Tensor]:
        """Scores ``action (batch, 9)``, and of the blank and each word ``transcript (batch, frames / 2, 14)``.

        Args:
            audio: log-mel f32 ``(batch, 32, frames)``. state: words i64 ``(batch, length)``, padded with zeros.
        """
        words = self.transcript(self.audio_encoder(audio))
        heard = torch.softmax(words, dim=1).amax(dim=2)         # how surely each word was said at all
        both = torch.cat([heard, self.text_encoder(state)], dim=1)
        return {"action": self.action(both), "transcript": words.transpose(1, 2)}


class AudioEncoder(nn.Module):
    """Convolutions over time, the first with a stride of 2: ``(batch, channels, frames / 2)``."""

    def __init__(self, channels: int, blocks: int = 4) -> None:
        super().__init__()
        self.stem = _convolution(MELS, channels, stride=2)
        self.blocks = nn.ModuleList(_convolution(channels, channels, dilation=2**at) for at in range(blocks))

    def forward(self, audio: Tensor) -> Tensor:
        heard: Tensor = self.stem(audio)
        for block in self.blocks:
            heard = heard + block(heard)
        return heard


def _convolution(given: int, made: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(given, made, 5, stride=stride, padding=2 * dilation, dilation=dilation, bias=False),
        nn.BatchNorm1d(made), nn.ReLU(),
    )  # fmt: skip


class TextEncoder(nn.Module):
    """Embeddings, a convolution that sees each word's neighbours, and the largest value of each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(STATE), width, padding_idx=0)
        self.neighbours = nn.Conv1d(width, width, 3, padding=1)
        self.out = nn.Linear(width, width)

    def forward(self, state: Tensor) -> Tensor:
        words = (state != 0)[:, None, :]
        seen = torch.relu(self.neighbours(self.table(state).transpose(1, 2))) * words      # nothing is below 0
        return torch.relu(self.out(seen.amax(dim=2)))


def action_of(wanted: str, device: str, on: Sequence[str]) -> str:
    """What has to be done to ``device``, of which ``on`` are on."""
    state = ("off" if device in on else "on") if wanted == "toggle" else wanted
    return "nothing" if (state == "on") == (device in on) else f"{device} {state}"


def state_of(last: str, on: Sequence[str]) -> str:
    """The house's state as a text."""
    return f"last {last} on {' '.join(on) or 'nothing'}"


@cache
def samples() -> Splits:
    """Commands spoken by espeak-ng, the same on every call.

    Raises:
        CompressError: if espeak-ng cannot be had here.
    """
    return commands(SPOKEN, spoken)


def commands(count: Mapping[str, int], say: Callable[[Sequence[Utterance], int], list[np.ndarray]]) -> Splits:
    """Commands in several states of the house; the voices of validation are in no other split.

    Args:
        count: split -> commands. say: gives the sound of each utterance at a rate, as :func:`spoken` does.
    """
    rng = np.random.default_rng(0)
    asked = {name: [_utterance(VOICES.get(name, VOICES["train"]), rng) for _ in range(number)]
             for name, number in count.items()}  # fmt: skip
    sounds = iter(say([utterance for utterances in asked.values() for _, _, utterance in utterances], RATE))
    return {name: by_shape(_commands([(phrase, device, one.text, next(sounds)) for phrase, device, one in utterances],
                                     STATES[name], rng)) for name, utterances in asked.items()}  # fmt: skip


def _utterance(voices: Sequence[str], rng: np.random.Generator) -> tuple[str, str, Utterance]:
    """A phrase, what it is said of, and how it is said."""
    phrase, name = list(PHRASES)[rng.integers(len(PHRASES))], NAMES[rng.integers(len(NAMES))]
    return phrase, name, Utterance(text=phrase.format(d=name), voice=voices[int(rng.integers(len(voices)))],
                                   speed=int(rng.integers(130, 211)), pitch=int(rng.integers(30, 71)))


def _commands(
    said: Sequence[tuple[str, str, str, np.ndarray]], states: int, rng: np.random.Generator
) -> Iterator[tuple[Rows, Mapping[str, np.ndarray]]]:
    for phrase, name, text, sound in said:
        audio = _features(_recorded(sound, rng))
        for _ in range(states):
            last = DEVICES[rng.integers(len(DEVICES))]
            on = [device for device in DEVICES if rng.random() < 0.5]
            device = last if name == "it" else name.removeprefix("the ")
            state = np.array([STATE.index(word) for word in state_of(last, on).split()], np.int64)
            action = ACTIONS.index(action_of(PHRASES[phrase], device, on))
            yield {"audio": audio, "state": state}, {"action": np.array(action), "transcript": np.array(text)}


def _features(sound: np.ndarray) -> np.ndarray:
    """Log-mel ``(32, frames)`` as a device makes it."""
    assert isinstance(_AUDIO, AudioInput)
    return _AUDIO.prepare(sound).array


def _recorded(sound: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``sound`` as a microphone in the room has it: louder or softer, begun early or late, in noise of 5 to 30 dB."""
    before = int(rng.integers(0, TICK))
    length = -(-(before + len(sound) + TICK // 2) // TICK) * TICK
    loud = float(np.sqrt(np.square(sound).mean()))
    noise = np.cumsum(rng.normal(size=length)) * 0.05 if rng.random() < 0.5 else rng.normal(size=length)
    noise -= noise.mean()
    room = noise * loud / (noise.std() * 10 ** (rng.uniform(5, 30) / 20))
    room[before : before + len(sound)] += sound
    return np.asarray(np.clip(room * rng.uniform(0.3, 1.0), -1, 1), np.float32)


_PROCESSING: dict[str, Any] = {
    "inputs": {
        "audio": {"kind": "audio", "from": "audio", "rate": RATE, "steps": [
            {"op": "spectrogram", "n_fft": 256, "hop": HOP, "log": "ln", "floor": 1e-6, "drop_last": True,
             "mel": {"count": MELS, "low_hz": 60.0, "high_hz": 3800.0}}]},
        "state": {"kind": "text", "from": "state", "pad_id": 0, "vocabulary": {"words": list(STATE)}},
    },
    "outputs": {"transcript": {"kind": "text", "scores": True, "vocabulary": {"words": list(WORDS)}, "collapse": True,
                               "blank": 0}},
}  # fmt: skip
_AUDIO = parse_processing(_PROCESSING, "spoken-command").inputs["audio"]
COMMANDS = Reference(
    name="spoken-command", factory="compress.zoo.commands:build", samples=samples, metric="accuracy/action",
    tasks={"action": Task(loss="cross-entropy", labels=ACTIONS), "transcript": Task(loss="ctc", labels=WORDS)},
    fit=FitConfig(epochs=10, batch=32, rate=2e-3, noise=0.1), processing=_PROCESSING,
    inputs={"audio": Input(modality="audio", dims=("batch", None, Dim("frames", 25, 100, 400))),
            "state": Input(modality="text", dims=("batch", Dim("length", 4, 6, 8)))},
)  # fmt: skip
