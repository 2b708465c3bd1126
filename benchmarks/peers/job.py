"""What a quantizer is given, and what it is to write: one process for each, of which time and memory are measured.

A job is a JSON file: ``graphs`` maps a graph's name to its fp32 ``onnx`` file and the folder of its ``feeds``, which
hold what the graph sees of the calibration samples, of which the first ``samples`` are wanted; ``backend`` is whose
format is, ``into`` where each graph gets a folder with ``model.xml`` or ``model.onnx``; ``settings`` are the peer's.
Needs numpy alone: a peer may live in another Python than this project.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np


class Feeds(Sequence[Mapping[str, np.ndarray]]):
    """Feeds of batch 1 in a folder of files ``SAMPLE-NUMBER.npz``, read when they are asked for."""

    def __init__(self, folder: Path, samples: int) -> None:
        self.files = [file for file in sorted(folder.glob("*.npz")) if int(file.stem.partition("-")[0]) < samples]

    def __len__(self) -> int:
        return len(self.files)

    @overload
    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, np.ndarray]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        with np.load(self.files[index]) as arrays:
            return dict(arrays)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[index] for index in range(len(self)))


class Reader:
    """Feeds as ONNX Runtime's quantizer and those built on it take them."""

    def __init__(self, feeds: Feeds) -> None:
        self.feeds = feeds
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.rest, None)

    def rewind(self) -> None:
        self.rest = iter(self.feeds)

    def get_first(self) -> dict[str, np.ndarray]:
        return self.feeds[0]

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.feeds)

    def __len__(self) -> int:
        return len(self.feeds)


@dataclass(frozen=True, kw_only=True)
class GraphJob:
    """One graph: ``onnx`` in, ``into/model.xml`` or ``into/model.onnx`` out."""

    name: str
    onnx: Path
    feeds: Feeds
    into: Path
    backend: str
    settings: Mapping[str, Any]
    case: Mapping[str, Any]         # the whole job, with the model file, its validation set and its metric


def read_job() -> dict[str, Any]:
    """The job that is named on the command line."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    return job


def run(quantize: Callable[[GraphJob], None]) -> None:
    """Call ``quantize`` for each graph of the job."""
    job = read_job()
    for name, graph in job["graphs"].items():
        into = Path(job["into"]) / name
        into.mkdir(parents=True)
        feeds = Feeds(Path(graph["feeds"]), job["samples"])
        quantize(GraphJob(name=name, onnx=Path(graph["onnx"]), feeds=feeds, into=into, backend=job["backend"],
                          settings=job["settings"], case=job))  # fmt: skip
