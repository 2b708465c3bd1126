"""Medical-like fusion of three inputs: an image, a record of categories, and numeric markers; one decision.

Every patient is generated; nothing here is medicine. The scan shows a bright spot whose radius is the first of three
facts. The record says of which group the patient is (the second fact) and other things of no use. The third fact is a
marker among six correlated ones. In one group a large spot with a high marker is a risk, in the other a large spot with
a low one, so the markers say nothing without the record, nor the record without them.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Input
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Splits
from compress.zoo.tasks import Task

SIZE = 16                       # pixels a side
RECORD = (("female", "male"), ("under-40", "40-to-59", "60-to-79", "80-or-more"), ("north", "east", "south", "west"),
          ("never-smoked", "smokes"))  # fmt: skip
CATEGORIES = tuple(category for field in RECORD for category in field)
MARKERS = ("marker a", "marker b", "marker c", "marker d", "marker e", "marker f")
SPLIT = {"train": 3000, "calibration": 200, "validation": 800}


def build(*, channels: int = 32, width: int = 64, hidden: int = 128) -> Patient:
    """Return the network with fresh weights: ``channels`` of the convolutions, ``width`` of each input, ``hidden``."""
    return Patient(channels, width, hidden)


class Patient(nn.Module):
    """An encoder for each input, concatenation, and a head with a sigmoid."""

    def __init__(self, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.scan_encoder = ScanEncoder(channels, width)
        self.record_encoder = RecordEncoder(width)
        self.marker_encoder = nn.Sequential(
            nn.Linear(len(MARKERS), width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(3 * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                                  nn.Linear(hidden, 1))  # fmt: skip

    def forward(self, scan: Tensor, record: Tensor, markers: Tensor) -> Tensor:
        """Risk in [0, 1], ``(batch, 1)``.

        Args:
            scan: f32 ``(batch, 1, 16, 16)`` in [0, 1]. record: i64 ``(batch, 4)``, of each field the place of its
                category in :data:`CATEGORIES`. markers: f32 ``(batch, 6)``, standardised.
        """
        seen = [self.scan_encoder(scan), self.record_encoder(record), self.marker_encoder(markers)]
        return torch.sigmoid(self.head(torch.cat(seen, dim=1)))


class ScanEncoder(nn.Module):
    """Two convolutions with a stride of 2, the mean over all places, a layer."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Linear(channels, width)

    def forward(self, scan: Tensor) -> Tensor:
        return torch.relu(self.out(self.convolutions(scan).mean(dim=(2, 3))))


class RecordEncoder(nn.Module):
    """One table of embeddings for the categories of all fields, side by side, and a layer."""

    def __init__(self, width: int, dim: int = 16) -> None:
        super().__init__()
        self.table = nn.Embedding(len(CATEGORIES), dim)
        self.out = nn.Linear(len(RECORD) * dim, width)

    def forward(self, record: Tensor) -> Tensor:
        return torch.relu(self.out(self.table(record).flatten(1)))


@cache
def samples() -> Splits:
    """Patients of three splits, the same on every call; about half of them at risk."""
    rng = np.random.default_rng(0)
    return {name: [_patients(count, rng)] for name, count in SPLIT.items()}


def _patients(count: int, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray]:
    fields = np.stack([rng.integers(0, len(field), count) for field in RECORD], axis=1)
    radius = rng.uniform(1.0, 5.0, count)
    common = rng.normal(size=(count, 1))
    markers = 0.6 * common + 0.8 * rng.normal(size=(count, len(MARKERS)))
    group = np.where(fields[:, 3] == 1, 1.0, -1.0)
    risk = (radius - 3.0) / 1.15 + 1.5 * group * markers[:, 2] + 0.2 * rng.normal(size=count)
    starts = np.cumsum([0, *(len(field) for field in RECORD[:-1])])
    rows = {"scan": _scans(radius, rng), "record": (fields + starts).astype(np.int64),
            "markers": markers.astype(np.float32)}  # fmt: skip
    return rows, (risk > 0).astype(np.int64)


def _scans(radius: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """f32 ``(samples, 1, 16, 16)`` in [0, 1]: a soft round spot of ``radius`` pixels somewhere, on a noisy ground."""
    places = np.arange(SIZE)
    down, across = rng.uniform(5, SIZE - 6, (2, len(radius), 1, 1))
    distance = np.hypot(places[:, None] - down, places[None, :] - across)
    spot = 1 / (1 + np.exp(2 * (distance - radius[:, None, None])))
    seen = np.clip(0.15 + 0.7 * spot + rng.normal(size=spot.shape) * 0.08, 0, 1)
    return np.asarray(seen, np.float32)[:, None]


PATIENT = Reference(
    name="patient", factory="compress.zoo.patient:build", samples=samples,
    tasks={"output": Task(loss="binary cross-entropy", labels=("no risk", "risk"))},
    metric="accuracy", fit=FitConfig(epochs=15, rate=2e-3),
    inputs={"scan": Input(modality="image", dims=("batch",)), "record": Input(modality="text", dims=("batch",)),
            "markers": Input(modality="sensor", dims=("batch",))},
    processing={
        "inputs": {
            "scan": {"kind": "image", "from": "scan", "mode": "L", "steps": [
                {"op": "resize", "size": [SIZE, SIZE], "resample": "box"}, {"op": "rescale", "scale": 1 / 255}]},
            "record": {"kind": "text", "from": "record", "pad_id": 0, "vocabulary": {"words": list(CATEGORIES)}},
            "markers": {"kind": "features", "from": "markers", "names": list(MARKERS)},
        },
        "outputs": {"output": {"kind": "decision", "labels": ["no risk", "risk"], "activation": "none"}},
    },
)  # fmt: skip
