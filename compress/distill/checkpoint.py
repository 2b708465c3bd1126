"""Checkpoints: what a killed run needs to continue to the very same weights, keyed by everything they depend on."""

from __future__ import annotations

import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import torch

from calibration import CalibrationSet
from compress.distill.config import DistillConfig
from compress.metrics import Metric
from compress.model import Model
from compress.program import program_to_json
from compress.store import atomic_file
from runtimes.hashing import bytes_digest, json_digest


class Checkpoint:
    """The file ``distill.checkpoint`` below ``folder``; one that was written under another key is ignored.

    It begins with a line of the SHA-256 of what follows: ``torch.load`` does not see that a weight is another.

    Of several processes that share it all read, and one is ``writing``.
    """

    def __init__(self, folder: Path, key: str, *, writing: bool = True) -> None:
        self.path = folder / "distill.checkpoint"
        self.key = key
        self._writing = writing

    @property
    def written(self) -> bool:
        return self.path.is_file()

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file; ``state`` holds tensors, numbers, strings, lists and dicts only."""
        if not self._writing:
            return
        buffer = io.BytesIO()
        torch.save({"key": self.key, "state": state}, buffer)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as file:
            file.write(f"{bytes_digest(buffer.getbuffer())}\n".encode())
            file.write(buffer.getbuffer())

    def read(self) -> dict[str, Any] | None:
        """The state last written under this key; ``None`` where there is none to continue from, or it is damaged."""
        if not self.path.is_file():
            return None
        digest, _, held = self.path.read_bytes().partition(b"\n")
        if digest != bytes_digest(held).encode():           # that costs time, nothing else
            return None
        try:
            record = torch.load(io.BytesIO(held), map_location="cpu", weights_only=True)
        except (RuntimeError, pickle.UnpicklingError):      # not of this project's making
            return None
        if not isinstance(record, dict) or record.get("key") != self.key:
            return None
        state: dict[str, Any] = record["state"]
        return state


def run_key(
    student: Model, teacher: Model, data: CalibrationSet, validation: CalibrationSet | None, metric: Metric | None,
    config: DistillConfig, processes: int = 1,
) -> str:  # fmt: skip
    """Digest of all that decides the weights of a run, but for the machine and its number of threads."""
    return json_digest({
        "student": model_digest(student),
        "teacher": model_digest(teacher),
        "data": data.digest,
        "validation": None if validation is None else validation.digest,
        "metric": None if metric is None else metric.name,
        "config": dataclasses.asdict(config),
        "processes": processes,
        "torch": torch.__version__,
    })  # fmt: skip


def model_digest(model: Model) -> str:
    """Digest of what a model computes, and of how it is quantized."""
    return json_digest({
        "programs": {name: bytes_digest(program_to_json(g.program).encode()) for name, g in model.graphs.items()},
        "weights": {name: [str(value.dtype), list(value.shape), _tensor_digest(value)]
                    for name, value in model.weights.items()},
        "components": dict(model.components),
        "quantization": None if model.quantization is None else dataclasses.asdict(model.quantization),
    })  # fmt: skip


def _tensor_digest(value: torch.Tensor) -> str:
    flat = value.detach().cpu().contiguous().reshape(-1)
    return bytes_digest(flat.view(torch.uint8).numpy().data)
