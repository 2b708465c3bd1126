"""The score of anything that maps a feed to outputs: a torch program and an engine are judged by the same code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import CompressError
from compress.intervals import Estimate, mean_interval
from compress.metrics import Metric, Outputs
from runtimes.hashing import bytes_digest
from runtimes.spec import Feed

if TYPE_CHECKING:
    from calibration.dataset import CalibrationSet


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The value of ``metric`` over data set ``data`` with its interval; ``per_sample`` has shape ``(samples,)``."""

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

    Args:
        run: input name -> array in, output name -> array out, the outputs with a leading sample axis.
        data: the validation set, with targets.
        metric: one score per sample; batches are scored one by one, so a score may not depend on its neighbours.
        batch: the largest number of samples in one call.
        progress: called with the samples done and their total.

    Raises:
        CompressError: if the set has no targets, or as the metric does.
    """
    target, first = targets_of(data), data.inputs[0]
    scores: list[np.ndarray] = []
    done = 0
    for feed in data.batches(batch):
        count = feed[first.name].shape[first.batch_axis or 0]
        try:
            scores.append(metric.per_sample(run(feed), target[done:done + count]))
        except CompressError as error:
            raise CompressError(f"data set {data.name!r}, samples {done} to {done + count - 1}: {error}") from error
        done += count
        if progress:
            progress(done, len(target))
    per_sample = np.concatenate(scores)
    estimate = mean_interval(per_sample, groups_of(data))
    return Evaluation(metric=metric.name, data=data.digest, estimate=estimate, per_sample=per_sample)


def targets_of(data: CalibrationSet) -> np.ndarray:
    """The targets of ``data``, or a CompressError that says it has none."""
    target = data.targets()
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
