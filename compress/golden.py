"""What a bundle of several graphs is made of beside engines: a golden feed for each, and how they chain."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import CompressError
from compress.model import Model
from runtimes.records import typed
from runtimes.spec import Feed, largest_batch

SAMPLES = 4


def golden_feeds(model: Model, data: Path) -> dict[str, dict[str, np.ndarray]]:
    """Graph name -> its feed: the first samples of ``data``, a calibration set on disk, or the model's own example.

    Of a model with a chain these are what its graphs are run on for the samples; of a decoder its first step with a
    cache. Without a chain a graph that ``data`` holds no samples for gets the example the model was saved with.

    Raises:
        CalibrationError: if ``data`` cannot be read, or does not fit a graph it has samples for.
    """
    from calibration import open_set

    if model.chain is not None:
        return chain_feeds(model, open_set(data, model.inputs).first(largest_batch(model.inputs, SAMPLES)))
    specs = {spec.name: spec for graph in model.graphs.values() for spec in graph.inputs}
    if len(model.graphs) > 1:
        specs = {name: spec for name, spec in specs.items() if name in _names(data)} or specs
    samples = open_set(data, tuple(specs.values())).first(largest_batch(specs.values(), SAMPLES))
    return {
        name: {
            spec.name: samples[spec.name] if all(s.name in samples for s in graph.inputs) else model.example[spec.name]
            for spec in graph.inputs
        }
        for name, graph in model.graphs.items()
    }


def feeds_of(model: Model, feed: Feed) -> dict[str, dict[str, np.ndarray]]:
    """Graph name -> what it is run on for ``feed``, one of the model."""
    from compress.steps import split

    if model.chain is not None:
        return chain_feeds(model, feed)
    return {name: dict(own[0]) for name, own in split(model, feed).items()}


def chain_feeds(model: Model, feed: Feed) -> dict[str, dict[str, np.ndarray]]:
    """Graph name -> what it is run on for ``feed``, one of the chain; the second time where it is run again."""
    from compress.steps import watch

    found: dict[str, dict[str, np.ndarray]] = {}

    def keep(graph: str, run: int, given: Feed) -> None:
        if run < 2:
            found[graph] = dict(given)

    watch(model, feed, keep)
    return found


def read_chain(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; whether it is a chain of a bundle's graphs is checked when the bundle is written."""
    try:
        return typed(json.loads(path.read_bytes()), dict, str(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CompressError(f"{path} is not a chain ({error}): write one as docs/embedding.md shows") from error


def _names(data: Path) -> set[str]:
    """The arrays that the first file of ``data`` holds; none where it is not one, which opening it says better."""
    first = data if data.is_file() else next(iter(sorted(data.glob("*.npz"))), None)
    if first is None or not zipfile.is_zipfile(first):
        return set()
    with zipfile.ZipFile(first) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}
