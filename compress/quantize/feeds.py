"""What each graph of a model is run on, from its calibration sets: as given, or as its chain gives it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from compress.program import told_as
from compress.quantize.collect import shortened
from compress.quantize.lockstep import peak_bytes
from compress.quantize.samples import CHAIN, Samples
from compress.steps import graph_feeds
from runtimes.spec import Feed, largest_batch

if TYPE_CHECKING:
    from compress.model import Model

MEMORY = 512 << 20      # bytes of the values that a graph is kept in memory with, at most
BATCH = 8               # samples of a feed that is kept: a part of the program is run on one at a time


def feeds_of(
    model: Model, sets: Mapping[str, Samples], batch: int
) -> Iterator[tuple[int, int, Mapping[str, list[Feed]]]]:
    """For each ``batch`` samples: their place, the number of such places, and graph -> what it is run on.

    Of a decoder these are the first, a middle and the last of its steps, after the float chain's own tokens.

    Args:
        model: run in float where its graphs feed each other.
        sets: graph, or the chain -> its samples.
        batch: samples at a time, or fewer where the inputs allow no more.

    Raises:
        CompressError: if a sample does not suit the model.
    """
    short = shortened(model)
    for name, samples in sets.items():
        data = samples.used
        inputs = model.inputs if name == CHAIN else model.graphs[name].inputs
        size = largest_batch(inputs, batch)
        for place, feed in enumerate(data.batches(size)):
            with told_as(f"the model fails on calibration set {data.name!r}, from sample {place * size} on"):
                found: dict[str, list[Feed]] = graph_feeds(short, feed) if name == CHAIN else {
                    name: [{spec.name: feed[spec.name] for spec in inputs}]}  # fmt: skip
            yield place, math.ceil(len(data) / size), found


def kept_feeds(model: Model, sets: Mapping[str, Samples]) -> dict[str, list[Feed]]:
    """Feeds of each graph, from all over its set: as many as it can be run on side by side within :data:`MEMORY`."""
    kept: dict[str, list[Feed]] = {}
    every: dict[str, int] = {}
    for place, places, found in feeds_of(model, sets, BATCH):
        for name, feeds in found.items():
            if name not in kept:
                kept[name] = []
                needed = 2 * sum(peak_bytes(model.graphs[name], feed) for feed in feeds) * places
                every[name] = max(1, math.ceil(needed / MEMORY))
            if place % every[name] == 0:
                kept[name] += feeds
    return kept
