"""A target's machine with engines of a model's variants on it: built, timed part by part, and scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.bench.config import Candidate
from compress.bench.machines import Machine
from compress.bench.measured import Measured
from compress.bench.record import LayerRow
from compress.evaluate import targets_of
from compress.export import build_engine, export_onnx, has_int8, only
from compress.export.components import components_in
from compress.metrics import Metric
from compress.model import Model
from compress.quantize.parts import part_of_component
from compress.targets import Target
from runtimes.arrays import write_arrays
from runtimes.engine import Precision
from runtimes.engineset import EngineSet
from runtimes.spec import largest_batch

if TYPE_CHECKING:
    from calibration import CalibrationSet

TIMING: dict[str, Any] = {"warmup_s": 0.3, "duration_s": 0.7, "min_runs": 20, "scenario": "single_stream",
                          "samples_per_query": 1}  # fmt: skip
ACCURACY_BATCH = 32
TIMEOUT_S = 900.0


class Variant:
    """A model in some precisions, built for a target; what its processes measured so far.

    Attributes:
        rounds_ms: the median latency of each process.
        parts_us: of each process, the time of each part by its number, from the backend's profile, scaled
            so that the profile adds up to the latency.
    """

    def __init__(self, measured: Measured) -> None:
        self.measured = measured
        self.rounds_ms: list[float] = []
        self.parts_us: list[dict[int, float]] = []

    @property
    def latency_ms(self) -> float:
        return float(np.median(self.rounds_ms))

    def part_us(self, part: int) -> float | None:
        """The median time of a part over the processes; None where no layer tells of it."""
        told = [times[part] for times in self.parts_us if part in times]
        return float(np.median(told)) if told else None


class Rig:
    """Variants of one model on one target, whose layers tell their part: each is a component of what is built."""

    def __init__(
        self, target: Target, machine: Machine, components: Mapping[str, str], data: CalibrationSet,
        metric: Metric | None, folder: Path,
    ) -> None:  # fmt: skip
        """``components`` are those of :func:`compress.quantize.parts.as_components`; ``data`` has targets.

        Without a metric nothing can be scored, and ``data`` needs no targets.

        ``folder`` must outlive the rig, which leaves its engines there.
        """
        self.target, self.machine = target, machine
        self._components = components
        self._data, self._metric, self._folder = data, metric, folder / target.name
        self._targets = None if metric is None else targets_of(data, metric.output)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_arrays(self._folder / "feed.npz", data.first(1))
        self._count = 0

    def build(self, name: str, model: Model, precision: Precision | None = None) -> Variant:
        """The engines of ``model``; a graph in which nothing is int8 is built in fp32, or all of them in ``precision``.

        Raises:
            CompressError: if the target's backend refuses it.
        """
        self._count += 1
        folder = (self._folder / str(self._count)).resolve()
        folder.mkdir()
        marked = dataclasses.replace(model, components=self._components)
        engines = {}
        for graph in model.graphs:
            one = only(marked, graph)
            kind: Precision = precision or ("int8" if has_int8(one) else "fp32")
            onnx = export_onnx(one, self.target, folder / f"{graph}.onnx")
            engines[graph] = build_engine(onnx, one, self.target, folder / f"{graph}.engine", precision=kind)
        made = EngineSet(engines=engines, chain=model.chain)
        measured = Measured(Candidate(name=name, role="shipped", engines=made, target=self.target), emulated=False)
        if measured.engines is None and self.machine.build is not None:
            measured.engines = dataclasses.replace(
                made, engines={graph: self.machine.build(engine, folder / f"{graph}.built")
                               for graph, engine in made.engines.items()})  # fmt: skip
        return Variant(measured)

    def time(self, variants: Sequence[Variant], rounds: int, told: Callable[[], None] | None = None) -> None:
        """``rounds`` processes for each of the variants, in turn and backwards in turn, so that all drift alike.

        Raises:
            CompressError: if one does not run.
        """
        for number in range(rounds):
            for variant in variants if number % 2 == 0 else variants[::-1]:
                measured = variant.measured
                job = {**self._job(variant), "latency": {**TIMING, "feed": str((self._folder / "feed.npz").resolve())},
                       "outputs": None, "layers": True}  # fmt: skip
                result = self.machine.agent(job, self._folder / "round", TIMEOUT_S)
                measured.add_round(result)
                variant.rounds_ms.append(float(np.median(result["latencies_ns"])) / 1e6)
                variant.parts_us.append(_by_part(measured.layers, 1e3 * variant.rounds_ms[-1]))
                if told:
                    told()

    def score(self, variant: Variant) -> np.ndarray:
        """The metric's statistics of the engines' answers to all samples.

        Raises:
            CompressError: if an answer is NaN, or the metric fails on them.
        """
        into = (self._folder / "outputs.npz").resolve()
        batch = largest_batch(self._data.inputs, ACCURACY_BATCH)
        outputs = {"shards": [str(path.resolve()) for path in self._data.shards], "batch": batch, "into": str(into),
                   "inputs": [spec.name for spec in self._data.inputs]}  # fmt: skip
        job = {**self._job(variant), "latency": None, "outputs": outputs, "layers": False}
        result = self.machine.agent(job, self._folder / "score", TIMEOUT_S)
        assert self._metric is not None
        assert self._targets is not None
        variant.measured.add_outputs(result, into, self._metric, self._targets)
        assert variant.measured.scores is not None
        return variant.measured.scores

    def _job(self, variant: Variant) -> dict[str, object]:
        assert variant.measured.engines is not None
        return {**variant.measured.engines.job(), "threads": self.machine.threads}


def _by_part(layers: Sequence[LayerRow], latency_us: float) -> dict[int, float]:
    profile = sum(layer.time_us or 0.0 for layer in layers)
    times: dict[int, float] = {}
    for layer in layers:
        part = _part_of(layer)
        if part is not None and layer.time_us is not None and profile > 0:
            times[part] = times.get(part, 0.0) + layer.time_us * latency_us / profile
    return times


def _part_of(layer: LayerRow) -> int | None:
    """The part whose operator a layer is called after: what it is fused with may be of the next part."""
    told = [part_of_component(name) for name in (*components_in(layer.name), layer.component)]
    return next((part for part in told if part is not None), None)
