"""One pass over the calibration samples, and a file of what it found: a killed pass goes on, a finished one is reused.

The file ``KEY.json`` is written every ten seconds and at the end, in one step: ``key`` is the digest of the model, the
samples and all else that decides what is found; ``done`` says how many samples of each pass are in it; ``tensors`` has
the statistics of each tensor of each graph. One that is damaged, or lacks a tensor, costs a pass, nothing else.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from calibration import CalibrationError
from calibration.tensor import TensorStatistics
from compress.distill.checkpoint import model_digest
from compress.model import Model
from compress.quantize import collect
from compress.quantize.collect import Collector, collecting_chain
from compress.quantize.samples import CHAIN, Samples
from compress.store import atomic_write
from runtimes.hashing import json_digest

FORMAT = "compress.statistics"
VERSION = 1
CHECKPOINT_SECONDS = 10.0


def gather(
    model: Model, collectors: Mapping[str, Collector], sets: Mapping[str, Samples], *, keep: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:  # fmt: skip
    """Run every sample once and leave its statistics in ``collectors``.

    Args:
        model: the model that the collectors are of.
        collectors: graph -> what watches it; new ones.
        sets: graph, or :data:`CHAIN` -> its samples.
        keep: a folder for the file; what it holds of the same model and samples is not done again.
        progress: called with (samples done, samples in all).

    Raises:
        CompressError: if an activation is not finite, or the model fails on a sample.
    """
    passes = [name for name in sets if name == CHAIN or collectors[name].statistics]
    file = None if keep is None else _File(keep, _key(model, sets))
    done = dict.fromkeys(passes, 0) | (file.read(collectors) if file is not None else {})
    total = sum(len(sets[name]) for name in passes)
    written = time.monotonic()

    def told(name: str, count: int) -> None:
        nonlocal written
        done[name] = count
        if file is not None and (time.monotonic() - written >= CHECKPOINT_SECONDS or sum(done.values()) == total):
            file.write(done, collectors)
            written = time.monotonic()
        if progress is not None:
            progress(sum(done.values()), total)

    for name in passes:
        own, watching = sets[name], list(collectors.values()) if name == CHAIN else [collectors[name]]
        if done[name] == len(own):
            told(name, len(own))
            continue

        def place(start: int, end: int, own: Samples = own, watching: list[Collector] = watching) -> None:
            for collector in watching:
                collector.samples = own.places[start:end]

        run = collecting_chain(model, collectors) if name == CHAIN else collectors[name]
        inputs = model.inputs if name == CHAIN else model.graphs[name].inputs
        collect.collect(run, inputs, own.used, functools.partial(told, name), done=done[name], before=place,
                        at_once=min(collector.at_once for collector in watching))  # fmt: skip


def _key(model: Model, sets: Mapping[str, Samples]) -> str:
    """Digest of all that decides what is found, but for the machine and its number of threads."""
    return json_digest({
        "model": model_digest(model), "chain": model.chain,
        "sets": {name: [own.used.digest, json_digest(list(own.places))] for name, own in sets.items()},
        "batch": collect.BATCH, "steps": collect.STEPS, "torch": torch.__version__,
    })  # fmt: skip


class _File:
    def __init__(self, folder: Path, key: str) -> None:
        self._path = folder / f"{key}.json"
        self._key = key

    def write(self, done: Mapping[str, int], collectors: Mapping[str, Collector]) -> None:
        content = {"key": self._key, "done": dict(done), "tensors": {
            graph: {name: kept.to_json() for name, kept in collector.tensors.items()}
            for graph, collector in collectors.items()}}  # fmt: skip
        self._path.parent.mkdir(parents=True, exist_ok=True)
        record = {"format": FORMAT, "version": VERSION, "sha256": json_digest(content), "content": content}
        atomic_write(self._path, json.dumps(record))

    def read(self, collectors: Mapping[str, Collector]) -> dict[str, int]:
        """Add what the file holds to new ``collectors``; how many samples of each pass that was, if any."""
        if not self._path.is_file():
            return {}
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            content = record["content"]
            if (record["format"], record["version"], content["key"]) != (FORMAT, VERSION, self._key):
                return {}
            if json_digest(content) != record["sha256"]:
                return {}
            held = content["tensors"]
            found = [(kept, TensorStatistics.from_json(held[graph][name]))
                     for graph, collector in collectors.items() for name, kept in collector.tensors.items()]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, CalibrationError):
            return {}
        for kept, before in found:
            kept.merge(before)
        done: dict[str, Any] = content["done"]
        return {name: int(count) for name, count in done.items()}
