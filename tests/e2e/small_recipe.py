"""A model of two inputs, its data and a recipe of every stage: all of it in seconds, and importable by a recipe."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

import calibration
import compress

FACTORY = "small_recipe:Tiny"
BENCH = {"restarts": 1, "warmup_s": 0.0, "duration_s": 0.01, "min_runs": 3, "threads": 1, "peaks": False}
STAGES: list[dict[str, dict[str, Any]]] = [
    {"prune": {"macs": 0.6, "samples": 32}},
    {"distill": {"epochs": 2, "batch_size": 32}},
    {"quantize": {"samples": 64}},
    {"distill": {"epochs": 1, "batch_size": 32}},
    {"export": {}},
    {"bench": BENCH},
]
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path(__file__).parent}:{Path(__file__).parents[2]}"}


class Tiny(nn.Module):
    """Which of three areas of a point and a word is the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16))
        self.heard = nn.Embedding(10, 16)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, picture: Tensor, word: Tensor) -> Tensor:
        return self.head(torch.cat([self.seen(picture), self.heard(word).mean(1)], dim=1))


def samples(count: int, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Feeds, and the labels: the sign of the picture's sum, or 2 where the first word is above 6."""
    rng = np.random.default_rng(seed)
    feed = {"picture": rng.normal(size=(count, 6)).astype(np.float32), "word": rng.integers(0, 10, (count, 3))}
    return feed, np.where(feed["word"][:, 0] > 6, 2, feed["picture"].sum(1) > 0).astype(np.int64)


def trained() -> Tiny:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net, (feed, label) = Tiny(), samples(512, 0)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    inputs = {name: torch.from_numpy(array) for name, array in feed.items()}
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(**inputs), torch.from_numpy(label)).backward()
        optimizer.step()
    return net


def write_all(folder: Path) -> Path:
    """Model, data and recipe in ``folder``; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate({"train": 256, "calibration": 96, "validation": 128}.items(), 1):
        feed, label = samples(count, seed)
        calibration.write(folder / name, feed, target=label, shard_size=64)
    compress.save(
        trained(), folder / "model.pt", example=samples(2, 9)[0], factory=FACTORY, name="tiny",
        labels={"output": ["down", "up", "word"]},
    )  # fmt: skip
    return write_recipe(folder)


def write_recipe(folder: Path, name: str = "recipe.yaml", **changes: Any) -> Path:
    """The recipe with some of its keys changed; a value of None leaves the key out."""
    recipe = {
        "version": 1, "model": "model.pt", "factory": FACTORY, "metric": "accuracy", "max_drop": 0.05,
        "data": {"calibration": "calibration/", "train": "train/", "validation": "validation/"},
        "target": ["openvino-cpu", "onnxruntime-cpu"], "stages": STAGES, **changes,
    }  # fmt: skip
    path = folder / name
    path.write_text(yaml.safe_dump({key: value for key, value in recipe.items() if value is not None}))
    return path


def stages(output: Path) -> dict[str, dict[str, Any]]:
    """The records of all finished stages in a run's store, by key."""
    return {path.stem: json.loads(path.read_text()) for path in (output / "store" / "stages").glob("*.json")}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
