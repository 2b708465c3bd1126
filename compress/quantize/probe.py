"""What int8 in some layers does to a model: to its outputs, and to the metric, beside the same model in float."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration import CalibrationSet
from compress.distill.forcing import teacher_tokens
from compress.errors import CompressError
from compress.evaluate import groups_of, targets_of
from compress.intervals import Estimate
from compress.metrics import Metric, Outputs, drop_of, statistics_of
from compress.model import Model
from compress.quantize.parts import Layer
from compress.quantize.switches import Switches
from runtimes.spec import Feed, largest_batch

BATCH = 32
KEPT_BYTES = 64_000_000     # of float outputs that others are compared with; of what exceeds it no noise is measured


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What a change does.

    ``drop`` is how much worse the metric is, in its own unit, above 0 where it is; None without a metric. ``noise`` is
    the power of the outputs' difference over that of the outputs, of the output where it is largest. ``failure`` says
    why the metric has no value.
    """

    noise: float
    drop: Estimate | None = None
    failure: str | None = None

    @property
    def sqnr_db(self) -> float | None:
        """Signal over noise in decibels; None where there is no noise at all, or no signal."""
        return -10 * math.log10(self.noise) if 0 < self.noise < math.inf else None

    def to_json(self) -> dict[str, Any]:
        drop = None if self.drop is None else {"points": 100 * self.drop.value, "n": self.drop.n,
                                               "interval": [100 * self.drop.low, 100 * self.drop.high]}
        noise = self.noise if math.isfinite(self.noise) else None
        return {"noise": noise, "sqnr_db": self.sqnr_db, "drop": drop, "failure": self.failure}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Effect:
        drop = record["drop"]
        told = None if drop is None else Estimate(
            value=drop["points"] / 100, low=drop["interval"][0] / 100, high=drop["interval"][1] / 100, n=drop["n"],
            method="")  # fmt: skip
        noise = math.inf if record["noise"] is None else record["noise"]
        return cls(noise=noise, drop=told, failure=record["failure"])


class Probe:
    """The samples and the float model's answers to them, prepared once; :meth:`effect` is asked of any layers.

    Attributes:
        reference: the statistics of the metric that drops are counted from; None without a metric.
    """

    def __init__(
        self, model: Model, layers: tuple[Layer, ...], data: CalibrationSet, metric: Metric | None,
        reference: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """``reference`` are the metric's statistics of another model on ``data``; by default those in float.

        Raises:
            CompressError: if the set has no targets for the metric, or the metric fails on the float model.
        """
        self.switches = Switches(model, layers)
        self.data, self.metric = data, metric
        self._size = largest_batch(model.inputs, BATCH)
        self._first = data.inputs[0]
        self._targets = None if metric is None else targets_of(data, metric.output)
        self._groups = None if metric is None else groups_of(data)
        plain = dataclasses.replace(model, quantization=None)
        self.switches.only(())
        kept = self._kept_feeds(teacher_tokens(plain, data.take(_few(self.switches)), _silent))
        self._kept: list[tuple[Feed, Outputs]] = list(kept)
        self.in_float = None if metric is None else self._scores()
        self.reference = self.in_float if reference is None else reference

    def effect(self, paths: Collection[str]) -> Effect:
        """The layers at ``paths`` in int8, all others in float."""
        self.switches.only(paths)
        noise = self._noise()
        if self.metric is None or self.reference is None:
            return Effect(noise=noise)
        try:
            scores = self._scores()
            return Effect(noise=noise, drop=drop_of(self.metric, self.reference, scores, self._groups))
        except CompressError as error:
            return Effect(noise=noise, failure=str(error))

    def drop(self, scores: np.ndarray) -> Estimate:
        """How much worse ``scores``, statistics on the same samples, are than the reference."""
        assert self.metric is not None
        assert self.reference is not None
        return drop_of(self.metric, self.reference, scores, self._groups)

    def _scores(self) -> np.ndarray:
        assert self.metric is not None
        assert self._targets is not None

        def batches() -> Iterator[tuple[int, Outputs]]:
            for feed in self.data.batches(self._size):
                yield self._count(feed), self.switches.run(feed)

        try:
            return statistics_of(self.metric, batches(), self._targets)
        except CompressError as error:
            raise CompressError(f"data set {self.data.name!r}, {error}") from error

    def _noise(self) -> float:
        """Power of the difference over power of the float outputs, of the output where that is largest."""
        power: dict[str, list[float]] = {}
        for feed, expected in self._kept:
            for name, value in self.switches.outputs_of(feed).items():
                if value.dtype.kind == "f":
                    wanted = expected[name].astype(np.float64)
                    sums = power.setdefault(name, [0.0, 0.0])
                    sums[0] += float(np.square(value.astype(np.float64) - wanted).sum())
                    sums[1] += float(np.square(wanted).sum())
        ratios = [_ratio(noise, signal) for noise, signal in power.values()]
        return max(ratios, default=0.0)

    def _kept_feeds(self, tokens: dict[str, np.ndarray]) -> Iterator[tuple[Feed, Outputs]]:
        """Batches with the float model's outputs, as many as memory is given for; at least one."""
        done, held, limit = 0, 0, _few(self.switches)
        for feed in self.data.take(limit).batches(self._size):
            count = self._count(feed)
            forced = {**feed, **{name: rows[done : done + count] for name, rows in tokens.items()}}
            outputs = self.switches.outputs_of(forced)
            held += sum(value.nbytes for value in outputs.values())
            done += count
            yield forced, outputs
            if held >= KEPT_BYTES:
                return

    def _count(self, feed: Feed) -> int:
        return int(feed[self._first.name].shape[self._first.batch_axis or 0])


def _few(switches: Switches) -> int:
    """How many samples the noise is measured on: a decoder's answers take a run for each token."""
    return 16 if switches.loops else 256


def _ratio(noise: float, signal: float) -> float:
    if noise == 0:
        return 0.0
    return noise / signal if signal > 0 and math.isfinite(noise) else math.inf


def _silent(text: str) -> None:
    """Nobody watches."""
