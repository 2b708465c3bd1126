"""The statistics of a metric over a whole set, from outputs that come batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from compress.errors import CompressError
from compress.metrics.metric import Metric, Outputs, Predictions


def statistics_of(metric: Metric, batches: Iterable[tuple[int, Outputs]], target: np.ndarray) -> np.ndarray:
    """What ``metric`` finds in each sample, float64: scores ``(samples,)``, or ``(samples, k)`` where it has a value.

    Batches are scored one by one, whatever their shapes, or joined where the metric needs all at once.

    Args:
        batches: of each batch, in order, the number of its samples and the outputs.
        target: of all samples.

    Raises:
        CompressError: as the metric does, naming the samples of the batch; if targets and samples differ in number.
    """
    done, found, held = 0, [], []
    for count, outputs in batches:
        where = f"samples {done} to {done + count - 1}"
        try:
            predictions = metric.read(outputs)
            if metric.whole:
                held.append(predictions)
            else:
                found.append(metric.per_sample(predictions, target[done:done + count]))
        except CompressError as error:
            alone = None if metric.whole else _failing(metric, outputs, target[done:done + count])
            hint = "" if alone is None else f" (sample {done + alone} fails by itself)"
            raise CompressError(f"{where}: {error}{hint}") from error
        done += count
    if done != len(target):
        raise CompressError(f"there are outputs of {done} samples and targets of {len(target)}: these must agree")
    if metric.whole:
        return np.asarray(metric.per_sample(_joined(held, metric), target))
    try:
        return np.concatenate(found)
    except ValueError as error:
        raise CompressError(f"metric {metric.name!r} gave different numbers of statistics for different batches "
                            f"({error})") from error


def _failing(metric: Metric, outputs: Outputs, target: np.ndarray) -> int | None:
    """The first sample of a batch that cannot be scored alone either; None where each can."""
    for at in range(len(target)):
        try:
            metric.per_sample(metric.read({name: value[at:at + 1] for name, value in outputs.items()}),
                              target[at:at + 1])  # fmt: skip
        except CompressError:
            return at
    return None


def _joined(parts: Sequence[Predictions], metric: Metric) -> Any:
    if metric.reads == "texts":
        return [text for part in parts for text in part]
    outputs: list[Any] = list(parts)
    try:
        return {name: np.concatenate([part[name] for part in outputs]) for name in outputs[0]}
    except ValueError as error:
        raise CompressError(f"metric {metric.name!r} needs the outputs of all samples at once, and they differ in "
                            f"shape ({error}): give it outputs of one shape") from error
