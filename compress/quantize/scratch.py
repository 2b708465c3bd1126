"""What a long search has measured so far, in a file that a run with the same inputs and settings goes on from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from calibration import CalibrationSet
from compress.distill.checkpoint import model_digest
from compress.metrics import Metric
from compress.model import Model
from compress.quantize.probe import Effect
from compress.store import atomic_write
from runtimes.hashing import json_digest


class Measurements:
    """Effects by the layers that are in int8; a file that is damaged, or of another key, is ignored."""

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self._held: dict[str, dict[str, Any]] = {}
        if path is not None and path.is_file():
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                if record["key"] == key:
                    self._held = dict(record["effects"])
            except (ValueError, KeyError, TypeError):     # a damaged file costs time, nothing else
                pass

    def get(self, paths: tuple[str, ...]) -> Effect | None:
        held = self._held.get("\n".join(paths))
        return None if held is None else Effect.from_json(held)

    def keep(self, paths: tuple[str, ...], effect: Effect) -> Effect:
        self._held["\n".join(paths)] = effect.to_json()
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(self._path, json.dumps({"key": self._key, "effects": self._held}))
        return effect


def run_key(model: Model, data: CalibrationSet, metric: Metric | None, config: Any) -> str:
    """Digest of all that decides the measurements, but for the machine."""
    return json_digest({
        "model": model_digest(model),
        "data": data.digest,
        "metric": None if metric is None else metric.name,
        "config": dataclasses.asdict(config),
        "torch": torch.__version__,
    })  # fmt: skip
