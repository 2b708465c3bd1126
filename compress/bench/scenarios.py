"""What one query is in each of MLPerf's scenarios, and the feed that holds it.

- single stream: one sample; the next query when it is done. Its latency is what an app feels.
- multi stream: eight samples, as of eight cameras; the next query when all are done.
- offline: as many samples as the engine takes at once; its throughput is what a batch job gets.

Source: MLPerf Inference rules, "Scenarios". LoadGen's offline scenario hands over all samples as one query and leaves
the batching to the system under test; here the batches follow each other without a pause, which is the same work.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.bench.record import Scenario
from compress.errors import CompressError
from runtimes.spec import Feed, TensorSpec, largest_batch

MULTI_STREAM_SAMPLES = 8
OFFLINE_SAMPLES = 64  # at most: beyond it a CPU gains nothing, and the memory of small devices ends


def query_samples(scenario: Scenario, inputs: Sequence[TensorSpec]) -> int:
    """How many samples one query has, for an engine with these ``inputs``."""
    if scenario == "offline":
        return largest_batch(inputs, OFFLINE_SAMPLES)
    return MULTI_STREAM_SAMPLES if scenario == "multi_stream" else 1


def query_feed(samples: Feed, inputs: Sequence[TensorSpec], count: int) -> dict[str, np.ndarray]:
    """``count`` samples along each input's batch axis: the first of ``samples``, from the start again if too few.

    Args:
        samples: input name -> array, of one sample or more.
        inputs: the engine's; one without a batch axis is left as it is.
        count: samples of a query.

    Raises:
        CompressError: if ``samples`` has no sample, or unequally many.
    """
    axes = {spec.name: spec.batch_axis for spec in inputs if spec.batch_axis is not None}
    there = {name: samples[name].shape[axis] for name, axis in axes.items()}
    if len(set(there.values())) > 1 or 0 in there.values():
        raise CompressError(f"a feed to be timed needs a sample, and equally many of each input: got {there}")
    order = {name: np.arange(count) % size for name, size in there.items()}
    return {name: np.take(value, order[name], axis=axes[name]) if name in axes else np.asarray(value)
            for name, value in samples.items()}
