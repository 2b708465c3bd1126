"""Sensitivity: what each part of a quantized model costs, alone in int8, and what it gives back, alone in float.

Nothing is exported: the fake quantizers of one prepared program are switched, layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from compress.errors import CompressError

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.metrics import Metric
    from compress.model import Model
    from compress.quantize.parts import Kind, Layer, Part
    from compress.quantize.probe import Effect

By = Literal["component", "modality", "block", "layer"]
FORMAT, VERSION = "compress.sensitivity", 1


@dataclass(frozen=True, kw_only=True)
class SensitivityConfig:
    """Which parts are looked at, and on how many samples."""

    by: tuple[str, ...] = field(
        default=(), metadata={"help": "component, modality, block or layer; may be given several times. Default: "
                                      "component, modality, and layer, or block where there are more than 40 layers."}
    )  # fmt: skip
    samples: int = field(default=256, metadata={"help": "Use at most this many samples, spread over the set."})

    def __post_init__(self) -> None:
        for kind in self.by:
            if kind not in get_args(By):
                raise CompressError(f"by is {kind!r}: expected one of {', '.join(get_args(By))}")
        if self.samples < 2:
            raise CompressError(f"samples is {self.samples}: at least two are needed")


@dataclass(frozen=True, kw_only=True)
class PartSensitivity:
    """The part alone in int8 with all else in float, and alone in float with all else in int8; None if not measured.

    Both are told against the float model.
    """

    part: Part
    in_int8: Effect | None = None
    in_float: Effect | None = None

    @property
    def reached(self) -> bool:
        """Whether the part in int8 changes any output at all: else no sample reaches it, or nothing reads it."""
        return self.in_int8 is None or self.in_int8.noise > 0

    def to_json(self) -> dict[str, Any]:
        part = self.part
        return {
            "kind": part.kind, "name": part.name, "layers": len(part.paths), "components": list(part.components),
            "modality": part.modality, "reached": self.reached,
            "int8": None if self.in_int8 is None else self.in_int8.to_json(),
            "float": None if self.in_float is None else self.in_float.to_json(),
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SensitivityResult:
    """``parts`` in the order the model runs them, kind by kind; ``everything`` is all of the model in int8.

    ``metric`` is None where only the outputs are compared. ``complete`` is False where the work was interrupted: parts
    that were not looked at have no effects.
    """

    parts: tuple[PartSensitivity, ...]
    everything: Effect | None
    metric: str | None
    in_float: float | None      # the metric's value in float
    samples: int
    data: str
    scheme: str
    complete: bool = True

    def of(self, kind: Kind) -> tuple[PartSensitivity, ...]:
        return tuple(one for one in self.parts if one.part.kind == kind)

    def to_json(self) -> dict[str, Any]:
        """The record: JSON values only."""
        return {
            "format": FORMAT, "version": VERSION, "metric": self.metric, "scheme": self.scheme, "data": self.data,
            "samples": self.samples, "complete": self.complete, "in_float": self.in_float,
            "everything": None if self.everything is None else self.everything.to_json(),
            "parts": [one.to_json() for one in self.parts],
        }  # fmt: skip


def sensitivity(
    model: Model,
    data: CalibrationSet,
    *,
    metric: Metric | None = None,
    config: SensitivityConfig = SensitivityConfig(),
    scratch: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> SensitivityResult:
    """Measure what int8 in each part of ``model`` alone costs, and what float in each part alone gives back.

    An interruption (Ctrl-C) ends it with what was found so far.

    Args:
        model: a quantized model.
        data: samples of its inputs, with targets where there is a metric.
        metric: whose drop is told; without one only the outputs' signal over noise is.
        config: see :class:`SensitivityConfig`.
        scratch: folder for what was measured, from which a run with the same inputs and settings continues.
        progress: called with (measurements done, measurements in all, what comes).

    Raises:
        CompressError: if the model is not quantized, nothing in it runs in int8, it is not known how its graphs feed
            each other, or the metric fails on the float model.
    """
    from compress.metrics import value_of
    from compress.quantize.parts import fine, parts_of
    from compress.quantize.probe import Probe
    from compress.quantize.scratch import Measurements, run_key

    layers = check(model)
    samples = spread(data, config.samples)
    kinds: tuple[Any, ...] = config.by or ("component", "modality", fine(layers))
    parts = [part for kind in dict.fromkeys(kinds) for part in parts_of(layers, kind)]
    key = "" if scratch is None else run_key(model, samples, metric, config)
    kept = Measurements(None if scratch is None else scratch / "sensitivity.json", key)
    effects: dict[tuple[str, ...], Effect] = {}
    complete, in_float = True, None
    try:
        probe = Probe(model, layers, samples, metric)
        if metric is not None and probe.in_float is not None:
            in_float = value_of(metric, probe.in_float).value
        wanted = _wanted(layers, parts)
        for done, (paths, what) in enumerate(wanted.items()):
            if progress:
                progress(done, len(wanted), what)
            effects[paths] = kept.get(paths) or kept.keep(paths, probe.effect(paths))
        if progress:
            progress(len(wanted), len(wanted), "done")
    except KeyboardInterrupt:
        complete = False
    every = tuple(layer.path for layer in layers)
    assert model.quantization is not None
    return SensitivityResult(
        parts=tuple(PartSensitivity(part=part, in_int8=effects.get(part.paths),
                                    in_float=effects.get(_others(every, part))) for part in parts),
        everything=effects.get(every), metric=None if metric is None else metric.name, in_float=in_float,
        samples=len(samples), data=samples.digest, scheme=model.quantization.scheme, complete=complete,
    )  # fmt: skip


def check(model: Model) -> tuple[Layer, ...]:
    """The layers of ``model`` that run in int8; CompressError where it has none, or cannot be run as a whole."""
    from compress.onnxmodel import needs_module
    from compress.quantize.parts import layers_of

    needs_module(model, "what looks at its parts", "they are switched between int8 and float")
    if model.quantization is None:
        raise CompressError(f"model {model.name!r} is not quantized: run compress quantize first")
    if model.wiring is None:
        raise CompressError(
            f"model {model.name!r} has the graphs {list(model.graphs)}, of which one takes what another gives: save it "
            "with chain=, which says how"
        )
    layers = layers_of(model)
    if not layers:
        raise CompressError(
            f"no layer of model {model.name!r} runs in int8: there is nothing to put into float; quantize it with less "
            "in keep_float"
        )
    return layers


def spread(data: CalibrationSet, count: int) -> CalibrationSet:
    """``count`` samples spread evenly over ``data``, all of them where there are no more."""
    if count >= len(data):
        return data
    return data.pick([place * len(data) // count for place in range(count)])


def _wanted(layers: tuple[Layer, ...], parts: list[Part]) -> dict[tuple[str, ...], str]:
    """Every set of layers in int8 that is measured, each once, and what it is called: all first, then part by part."""
    every = tuple(layer.path for layer in layers)
    wanted = {every: "all in int8"}
    for part in parts:
        wanted.setdefault(part.paths, f"{part.name} in int8")
        wanted.setdefault(_others(every, part), f"{part.name} in float")
    return wanted


def _others(every: tuple[str, ...], part: Part) -> tuple[str, ...]:
    own = set(part.paths)
    return tuple(path for path in every if path not in own)
