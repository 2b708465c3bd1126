"""The value of a metric for anything that maps a feed to outputs: a torch program, an engine, a chain of engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import CompressError
from compress.intervals import Estimate
from compress.metrics import Metric, Outputs, statistics_of, value_of
from runtimes.hashing import bytes_digest
from runtimes.spec import Dim, Feed, largest_batch

if TYPE_CHECKING:
    from calibration.dataset import CalibrationSet


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The value of ``metric`` over data set ``data`` with its interval.

    ``per_sample`` are the scores ``(samples,)`` whose mean it is, or the statistics ``(samples, k)`` of another metric.
    """

    metric: str
    data: str                          # digest of the data set
    estimate: Estimate
    per_sample: np.ndarray

    @property
    def value(self) -> float:
        return self.estimate.value

    def to_json(self) -> dict[str, Any]:
        return {"metric": self.metric, "data": self.data, "value": self.value, "n": self.estimate.n,
                "interval": [self.estimate.low, self.estimate.high]}


def evaluate(
    run: Callable[[Feed], Outputs],
    data: CalibrationSet,
    metric: Metric,
    batch: int = 32,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Score ``run`` on every sample of ``data``, ``batch`` at a time; at most one shard is in memory.

    Outputs are dropped once they are scored; a metric of the whole set keeps what it reads of them.

    Args:
        run: input name -> array in, output name -> array out, the outputs with a leading sample axis.
        data: the validation set, with targets.
        metric: bound to the model where it reads texts, as :func:`compress.metrics.get_metric` does. Batches are
            scored one by one unless it is of the whole set, so a score may not depend on its neighbours.
        batch: the largest number of samples in one call, which inputs that take fewer make smaller.
        progress: called with the samples done and their total.

    Raises:
        CompressError: if the set has no targets, or as the metric does.
    """
    target, first = targets_of(data, metric.output), data.inputs[0]

    def batches() -> Iterator[tuple[int, Outputs]]:
        done = 0
        for feed in data.batches(largest_batch(data.inputs, batch)):
            count = feed[first.name].shape[first.batch_axis or 0]
            yield count, run(feed)
            done += count
            if progress:
                progress(done, len(target))

    try:
        per_sample = statistics_of(metric, batches(), target)
    except CompressError as error:
        raise CompressError(f"data set {data.name!r}, {error}") from error
    estimate = value_of(metric, per_sample, groups_of(data))
    return Evaluation(metric=metric.name, data=data.digest, estimate=estimate, per_sample=per_sample)


def try_metric(run: Callable[[Feed], Outputs], data: CalibrationSet, metric: Metric) -> None:
    """Refuse what cannot be scored: a metric that does not read such outputs, or such targets.

    Tried on the first sample, or as many as inputs of a fixed batch take.

    Raises:
        CompressError: as :func:`evaluate` does.
    """
    sizes = [spec.shape[spec.batch_axis] for spec in data.inputs if spec.batch_axis is not None]
    count = max([1, *(size.min if isinstance(size, Dim) else size for size in sizes)])
    target, outputs = targets_of(data, metric.output)[:count], run(data.first(count))
    try:
        if metric.whole:        # its value may need more samples
            metric.read(outputs)
        else:
            statistics_of(metric, [(count, outputs)], target)
    except CompressError as error:
        raise CompressError(f"data set {data.name!r}, {error}") from error


def targets_of(data: CalibrationSet, output: str | None = None) -> np.ndarray:
    """The targets of ``data``, of ``output`` where it is one of several, or a CompressError that says it has none."""
    target = data.targets(output)
    if target is None and data.labels:
        own = [name.partition(".")[2] for name in data.labels]
        raise CompressError(f"data set {data.name!r} has targets of the outputs {', '.join(own)}"
                            f"{'' if output is None else f', and none of {output!r}'}: say whose the metric is of, as "
                            f"METRIC/{own[0]}")
    if target is None:
        raise CompressError(f"data set {data.name!r} has no targets: add an array `target` to each of its files")
    return target


def groups_of(data: CalibrationSet) -> np.ndarray | None:
    """Which samples of ``data`` ask about the same thing: shape ``(samples,)``, equal where the recording is equal.

    Several questions about one image are not independent trials, and an interval that took them for such would be too
    narrow. Samples belong together where every image, audio and video input of theirs is the same to the bit. ``None``
    where the set has no such input, or no two samples share one.
    """
    recorded = [spec for spec in data.inputs if spec.modality in ("image", "audio", "video")]
    if not recorded:
        return None
    digests = [
        bytes_digest(b"".join(np.take(feed[spec.name], i, axis=spec.batch_axis or 0).tobytes() for spec in recorded))
        for feed in data.batches(256)
        for i in range(feed[recorded[0].name].shape[recorded[0].batch_axis or 0])
    ]
    groups = np.unique(digests, return_inverse=True)[1]
    return groups if groups.max() + 1 < len(groups) else None
