"""A short video summarised to a label: convolutions see each frame, a GRU reads them in order.

One of scikit-learn's real handwritten digits, drawn at any size anywhere, moves, turns, grows, fades or stays for 6 to
16 frames amid noise. It begins the same way, but for one that appears: what happens is in the order of the frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Input
from compress.zoo.digits_questions import splits
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Rows, Splits, by_shape
from compress.zoo.tasks import Task
from runtimes.spec import Dim

SIZE = 24                       # pixels a side of a frame
SHOWN = {"train": 2, "calibration": 2, "validation": 1}     # videos of each image
LABELS = ("stays", "moves left", "moves right", "moves up", "moves down", "turns left", "turns right", "grows",
          "shrinks", "appears", "fades")  # fmt: skip


def build(*, channels: int = 16, width: int = 96, hidden: int = 128) -> Video:
    """Return the network with fresh weights.

    Args:
        channels: of the first convolution; twice and four times as many of the others. width: of what is seen in a
            frame, and of the GRU. hidden: of the head.
    """
    return Video(channels, width, hidden)


class Video(nn.Module):
    """An encoder of frames, a GRU over them, and a head."""

    def __init__(self, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.frame_encoder = FrameEncoder(channels, width)
        self.time_encoder = nn.GRU(width, width, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, len(LABELS)))

    def forward(self, video: Tensor, frames: Tensor) -> Tensor:
        """Scores ``(batch, 11)``.

        Args:
            video: f32 ``(batch, length, 24, 24)``, grey levels in [0, 1]. frames: i64 ``(batch, length)``, 1 where
                ``video`` has a frame, 0 behind its end.
        """
        seen = self.frame_encoder(video.reshape(-1, 1, SIZE, SIZE))
        states, _ = self.time_encoder(seen.reshape(video.shape[0], video.shape[1], seen.shape[1]))
        last = frames.sum(dim=1)[:, None, None] - 1
        scores: Tensor = self.head(states.gather(1, last.expand(-1, 1, states.shape[2])).squeeze(1))
        return scores


class FrameEncoder(nn.Module):
    """Three convolutions with a stride of 2 and a layer over all places: ``(frames, width)``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * channels, 4 * channels, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Linear(4 * channels * 9, width)

    def forward(self, frame: Tensor) -> Tensor:
        return torch.relu(self.out(self.convolutions(frame).flatten(1)))


@cache
def samples() -> Splits:
    """Videos of three splits, the same on every call; no digit is in two."""
    rng = np.random.default_rng(0)
    return {name: by_shape(_videos(np.repeat(images, SHOWN[name], axis=0), rng))
            for name, (images, _) in splits().items()}  # fmt: skip


def _videos(images: np.ndarray, rng: np.random.Generator) -> Iterator[tuple[Rows, np.ndarray]]:
    for image in images[:, 0]:
        length, label = int(rng.integers(6, 17)), int(rng.integers(len(LABELS)))
        seen = filmed(image, LABELS[label], length, rng)
        yield {"video": seen, "frames": np.ones(length, np.int64)}, np.array(label)


def filmed(image: np.ndarray, label: str, length: int, rng: np.random.Generator) -> np.ndarray:
    """``image`` f32 ``(8, 8)`` as a video f32 ``(length, 24, 24)`` in which happens what ``label`` says."""
    time = np.linspace(0, 1, length)[:, None, None]
    start = {"down": rng.uniform(-3, 3), "across": rng.uniform(-3, 3), "size": rng.uniform(8, 12),
             "turn": rng.uniform(-20, 20), "ink": 0.9}  # fmt: skip
    way = rng.uniform(6, 9) * time
    changed = {
        "moves left": {"across": -way}, "moves right": {"across": way}, "moves up": {"down": -way},
        "moves down": {"down": way}, "turns left": {"turn": -60 * time}, "turns right": {"turn": 60 * time},
        "grows": {"size": 6 * time}, "shrinks": {"size": -5 * time},
        "appears": {"ink": time - 1}, "fades": {"ink": -time},
    }.get(label, {})  # fmt: skip
    down, across, size, turn, ink = (value + changed.get(name, np.zeros_like(time)) for name, value in start.items())
    places = np.arange(SIZE) - (SIZE - 1) / 2
    y, x = (places[:, None] - down) * 8 / size, (places - across) * 8 / size
    cos, sin = np.cos(np.radians(turn)), np.sin(np.radians(turn))
    drawn = _sampled(image, cos * y - sin * x + 3.5, sin * y + cos * x + 3.5) * np.clip(ink, 0, 1)
    return np.asarray(np.clip(drawn + rng.normal(size=drawn.shape) * 0.05, 0, 1), np.float32)


def _sampled(image: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """``image`` at fractional places, bilinearly; 0 outside."""
    padded = np.pad(image, 2)
    row, column = np.clip(row + 2, 0, 10.999), np.clip(column + 2, 0, 10.999)
    r, c = row.astype(int), column.astype(int)
    down, across = row - r, column - c
    upper = padded[r, c] * (1 - across) + padded[r, c + 1] * across
    lower = padded[r + 1, c] * (1 - across) + padded[r + 1, c + 1] * across
    return np.asarray(upper * (1 - down) + lower * down)


def first_frame_alone(rows: Rows) -> Rows:
    """Videos that show their first frame all the time."""
    video = rows["video"]
    return {**rows, "video": np.repeat(video[:, :1], video.shape[1], axis=1)}


VIDEO = Reference(
    name="video", factory="compress.zoo.video:build", samples=samples, metric="accuracy",
    tasks={"output": Task(loss="cross-entropy", labels=LABELS)}, blinded={"first frame alone": first_frame_alone},
    fit=FitConfig(epochs=12, batch=32, rate=2e-3),
    inputs={"video": Input(modality="video", dims=("batch", Dim("length", 1, 12, 32))),
            "frames": Input(modality="video", dims=("batch", "length"))},
    processing={"inputs": {
        "video": {"kind": "features", "from": "video", "std": 255, "pad_value": 0},
        "frames": {"kind": "mask", "of": "video"},
    }},
)  # fmt: skip
