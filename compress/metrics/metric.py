"""What a metric is: statistics of each sample, and the value of their sum."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from compress.errors import CompressError

Outputs: TypeAlias = Mapping[str, np.ndarray]
"""Output name -> array with a leading sample axis; a lone output is called ``output``."""

Predictions: TypeAlias = "Outputs | Sequence[str]"
"""What a metric reads: outputs, or one text per sample."""

Texts: TypeAlias = Callable[[Outputs], Sequence[str]]
"""The text of each sample, from outputs."""

Statistics: TypeAlias = Callable[[Any, np.ndarray], Any]
"""``statistics(predictions, target)``: numbers of shape ``(samples,)``, or ``(samples, k)`` with a ``value``."""

Value: TypeAlias = Callable[[np.ndarray], np.ndarray]
"""From sums of statistics, shape ``(..., k)``, to values, shape ``(...)``; sums may be of any part of the samples."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric as data; one of the user's own that is more than a mean of scores is one of these too.

    Attributes:
        name: as recipes and records have it.
        statistics: of the samples given: a score each, or ``k`` numbers each where there is a ``value``.
        value: what the sum of the statistics means; by default the value is the mean of the scores.
        reads: ``outputs``, or ``texts`` as the model's processing reads them.
        whole: whether ``statistics`` must see all samples in one call, as a ranking does.
        lower_is_better: as of an error.
        is_share: whether it is told in per cent and points; then it lies in [0, 1], or little above.
        output: the only output it looks at, of a model with several; its targets are that output's own.
        texts: what reads the texts, of a metric that is bound to a model.
    """

    name: str
    statistics: Statistics
    value: Value | None = None
    reads: Literal["outputs", "texts"] = "outputs"
    whole: bool = False
    lower_is_better: bool = False
    is_share: bool = False
    output: str | None = None
    texts: Texts | None = None

    def read(self, outputs: Outputs) -> Predictions:
        """What :meth:`per_sample` takes of ``outputs``.

        Raises:
            CompressError: if there is no such output, or it has no text.
        """
        if self.reads == "texts":
            if self.texts is None:
                raise CompressError(f"metric {self.name!r} compares texts, and it is not known how the outputs become "
                                    "such: give the model a processing with an output of kind 'text'")
            return self.texts(outputs)
        if self.output is None:
            return outputs
        if self.output not in outputs:
            raise CompressError(f"metric {self.name!r} is of an output that is not there: the outputs are "
                                f"{sorted(outputs)}")
        return {self.output: outputs[self.output]}

    def per_sample(self, predictions: Predictions, target: np.ndarray) -> np.ndarray:
        """The statistics of each sample, float64: ``(samples,)``, or ``(samples, k)`` where there is a ``value``.

        Raises:
            CompressError: if the function raises, returns another shape or a number that is not finite; names the
                metric.
        """
        # The function may be the user's own: whatever it raises is told under its name, with the cause attached.
        samples = len(target)
        try:
            found = np.asarray(self.statistics(predictions, target), dtype=np.float64)
        except Exception as error:
            kind = "" if isinstance(error, CompressError) else f"{type(error).__name__}: "
            raise CompressError(f"metric {self.name!r} failed on {samples} samples: {kind}{error}") from error
        if self.value is None and found.shape != (samples,):
            raise CompressError(f"metric {self.name!r} returned shape {found.shape} for {samples} samples, "
                                f"expected ({samples},): one score per sample")
        if self.value is not None and (found.ndim != 2 or len(found) != samples):
            raise CompressError(f"metric {self.name!r} returned shape {found.shape} for {samples} samples, "
                                f"expected ({samples}, k): equally many numbers for each sample")
        bad = np.argwhere(~np.isfinite(found))
        if bad.size:
            raise CompressError(f"metric {self.name!r} gave {found[tuple(bad[0])]} for sample {bad[0][0]}: "
                                "a score must be finite")
        return found

    def is_no_worse(self, value: float, than: float) -> bool:
        return value <= than if self.lower_is_better else value >= than

    def named(self, name: str, output: str | None = None) -> Metric:
        return dataclasses.replace(self, name=name, output=output)
