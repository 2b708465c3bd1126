"""Driving in small: a camera image, the last locations and the state of the road; brake or not, and how to steer.

Every drive is generated; nothing here is fit for a road. The image shows the road ahead as a bird sees it, its bend and
perhaps something that stands on it; the locations of the last 4 to 12 moments say how fast the car is; rain, ice and
slope say how far it takes to stop. It has to brake where that is farther than what stands there, and to steer as the
bend and the speed ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from compress.metrics import Outputs
from compress.model import Input
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Rows, Splits, by_shape
from compress.zoo.tasks import Task
from runtimes.spec import Dim

SIZE, PIXEL_M = 24, 2.5         # pixels a side, metres a pixel; the car is below the middle of the lower edge
TICK_S, SCALE_M = 0.2, 10.0     # between two locations; what locations are divided by
ROAD = {"rain": (0.5, 0.3), "ice": (0.3, 0.5), "slope": (0.0, 0.05), "temperature": (10.0, 10.0), "hour": (12.0, 7.0),
        "load": (0.5, 0.3)}     # measurement -> its mean and standard deviation; the last three do not matter
SPLIT = {"train": 4000, "calibration": 200, "validation": 1000}
TOLERANCE_DEG = 2.0


def build(*, channels: int = 16, width: int = 64, hidden: int = 128) -> Driving:
    """Return the network with fresh weights.

    Args:
        channels: of the first convolution; twice and four times as many of the others. width: of each input.
        hidden: of the layers that both tasks share.
    """
    return Driving(channels, width, hidden)


class Driving(nn.Module):
    """An encoder for each input, concatenation, layers that both tasks share, and a head for each."""

    def __init__(self, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(channels, width)
        self.track_encoder = TrackEncoder(width)
        self.road_encoder = nn.Sequential(nn.Linear(len(ROAD), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fusion = nn.Sequential(nn.Linear(3 * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
        self.brake = nn.Linear(hidden, 1)
        self.steering = nn.Linear(hidden, 1)

    def forward(self, image: Tensor, track: Tensor, moments: Tensor, road: Tensor) -> dict[str, Tensor]:
        """``brake``, the probability that it has to, and ``steering`` in degrees to the right, each ``(batch, 1)``.

        Args:
            image: f32 ``(batch, 1, 24, 24)`` in [0, 1]. track: f32 ``(batch, length, 2)``, to the right and ahead of
                the car in units of 10 m, the last one where it is. moments: i64 ``(batch, length)``, 1 where ``track``
                has a location, 0 behind its end. road: f32 ``(batch, 6)``, standardised.
        """
        seen = [self.image_encoder(image), self.track_encoder(track, moments), self.road_encoder(road)]
        shared = self.fusion(torch.cat(seen, dim=1))
        return {"brake": torch.sigmoid(self.brake(shared)), "steering": self.steering(shared)}


class ImageEncoder(nn.Module):
    """Three convolutions with a stride of 2 and a layer over all places."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * channels, 4 * channels, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Linear(4 * channels * 9, width)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.out(self.convolutions(image).flatten(1)))


class TrackEncoder(nn.Module):
    """An LSTM over the locations; its state at the last of them, whatever stands behind."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, width, batch_first=True)

    def forward(self, track: Tensor, moments: Tensor) -> Tensor:
        states: Tensor = self.lstm(track)[0]
        last = moments.sum(dim=1)[:, None, None] - 1
        return states.gather(1, last.expand(-1, 1, states.shape[2])).squeeze(1)


def drives_right(outputs: Outputs, target: np.ndarray) -> np.ndarray:
    """1 where the decision to brake is right and the steering within 2 degrees of the target, ``(samples, 2)``.

    The metric ``compress.zoo.driving:drives_right`` of the recipe.
    """
    decided = (outputs["brake"][:, 0] >= 0.5) == (target[:, 0] == 1)
    return np.asarray(decided & (np.abs(outputs["steering"][:, 0] - target[:, 1]) <= TOLERANCE_DEG))


@cache
def samples() -> Splits:
    """Drives of three splits, the same on every call."""
    rng = np.random.default_rng(0)
    return {name: by_shape(_drives(count, rng)) for name, count in SPLIT.items()}


def _drives(count: int, rng: np.random.Generator) -> Iterator[tuple[Rows, np.ndarray]]:
    for _ in range(count):
        speed, bend = rng.uniform(3, 22), rng.uniform(-0.02, 0.02)         # m/s; 1/m, to the right
        length = int(rng.integers(4, 13))
        distance = rng.uniform(5, SIZE * PIXEL_M) if rng.random() < 0.9 else np.inf
        measured = {"rain": rng.random(), "ice": float(rng.random() < 0.3), "slope": rng.uniform(-0.08, 0.08),
                    "temperature": rng.normal(10, 10), "hour": rng.uniform(0, 24), "load": rng.random()}  # fmt: skip
        road = np.array([(measured[name] - mean) / std for name, (mean, std) in ROAD.items()], np.float32)
        row = {"image": _picture(bend, distance, rng), "track": _track(speed, length, rng),
               "moments": np.ones(length, np.int64), "road": road}  # fmt: skip
        brake = stopping_distance_m(speed, measured["rain"], measured["ice"], measured["slope"]) > distance
        yield row, np.array([brake, steering_deg(speed, bend)], np.float32)


def stopping_distance_m(speed: float, rain: float, ice: float, slope: float) -> float:
    """Half a second to react, then as friction and slope allow; ``speed`` in m/s, ``slope`` above 0 is uphill."""
    return 0.5 * speed + speed**2 / (2 * 9.81 * (0.8 - 0.25 * rain - 0.3 * ice + slope))


def steering_deg(speed: float, bend: float) -> float:
    """(wheelbase + understeer · speed²) · bend, the bicycle model's, for a wheelbase of 2.7 m."""
    return float(np.degrees((2.7 + 0.02 * speed**2) * bend))


def _track(speed: float, length: int, rng: np.random.Generator) -> np.ndarray:
    """Locations f32 ``(length, 2)`` of a car that came along another bend, measured to within 10 cm."""
    back = speed * TICK_S * np.arange(length - 1, -1, -1.0)
    bend = rng.uniform(-0.02, 0.02)
    located = np.stack([bend * back**2 / 2, -back], axis=1) + rng.normal(size=(length, 2)) * 0.1
    return np.asarray(located / SCALE_M, np.float32)


def _picture(bend: float, distance: float, rng: np.random.Generator) -> np.ndarray:
    """f32 ``(1, 24, 24)``: a bright road of 7.5 m, and a dark spot at ``distance`` on it, on a noisy ground."""
    ahead = (SIZE - np.arange(SIZE)[:, None] - 0.5) * PIXEL_M
    across = (np.arange(SIZE)[None] - (SIZE - 1) / 2) * PIXEL_M
    middle = bend * ahead**2 / 2
    road = 1 / (1 + np.exp(np.abs(across - middle) - 4.0))
    spot = np.exp(-(((across - middle) / 2.5) ** 2) - ((ahead - distance) / 2.5) ** 2)
    seen = 0.3 + 0.5 * road - 0.8 * spot + rng.normal(size=(SIZE, SIZE)) * 0.05
    return np.asarray(np.clip(seen, 0, 1), np.float32)[None]


DRIVING = Reference(
    name="driving", factory="compress.zoo.driving:build", samples=samples, metric="compress.zoo.driving:drives_right",
    tasks={"brake": Task(loss="binary cross-entropy", labels=("go on", "brake")),
           "steering": Task(loss="mean squared error", weight=0.05)},
    fit=FitConfig(epochs=20, batch=64, rate=3e-3), macs=0.6,
    inputs={"image": Input(modality="image", dims=("batch",)),
            "track": Input(modality="sensor", dims=("batch", Dim("length", 1, 8, 32))),
            "moments": Input(modality="sensor", dims=("batch", "length")),
            "road": Input(modality="sensor", dims=("batch",))},
    processing={
        "inputs": {
            "image": {"kind": "image", "from": "image", "mode": "L", "steps": [
                {"op": "resize", "size": [SIZE, SIZE], "resample": "box"}, {"op": "rescale", "scale": 1 / 255}]},
            "track": {"kind": "features", "from": "track", "std": SCALE_M, "pad_value": 0},
            "moments": {"kind": "mask", "of": "track"},
            "road": {"kind": "features", "from": "road", "names": list(ROAD),
                     "mean": [mean for mean, _ in ROAD.values()], "std": [std for _, std in ROAD.values()]},
        },
        "outputs": {
            "brake": {"kind": "decision", "labels": ["go on", "brake"], "activation": "none"},
            "steering": {"kind": "values", "names": ["degrees"]},
        },
    },
)  # fmt: skip
