"""Quantization: choose the range of every tensor that an int8 operator reads, from a calibration set."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from compress.errors import CompressError
from compress.model import WeightOnly

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.model import Model


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig:
    """How ranges are chosen. The integers themselves are the target's (:mod:`compress.quantize.schemes`)."""

    ranges: Literal["minmax", "percentile", "mse", "entropy"] = field(
        default="percentile", metadata={"help": "How a tensor's range is chosen from its statistics."}
    )
    percentile: float = field(
        default=99.99, metadata={"help": "Share of values kept by --ranges percentile, in percent."}
    )
    samples: int = field(default=300, metadata={"help": "Use at most this many calibration samples."})
    keep_float: tuple[str, ...] = field(
        default=(), metadata={"help": "Module-path glob left in float; may be given several times."}
    )
    int8_weights: tuple[str, ...] = field(
        default=(), metadata={"help": "Module-path glob of linear layers whose weights alone become int8, what they "
                                      "read stays float; may be given several times."}
    )  # fmt: skip
    int4_weights: tuple[str, ...] = field(
        default=(), metadata={"help": "The same in int4, in groups of inputs: for decoders, whose time goes into "
                                      "reading weights. '*' is all of them."}
    )  # fmt: skip
    group_size: int = field(
        default=64, metadata={"help": "Inputs that share a scale in --int4-weights, at most: a power of two."}
    )
    equalize: bool = field(
        default=True, metadata={"help": "Scale channels between layers to like sizes, where that saves a bit or more."}
    )
    smooth: float = field(
        default=0.0, metadata={"help": "How much of an activation's outliers goes to the weights behind it; 0 is none."}
    )
    rounding: Literal["nearest", "learned", "gptq"] = field(
        default="nearest", metadata={"help": "How weights are rounded: to nearest, as learned block by block, by GPTQ."}
    )
    correct_bias: bool = field(
        default=False, metadata={"help": "Take what quantization adds to each layer on average off its bias."}
    )

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise CompressError(f"percentile is {self.percentile}: it must be in (50, 100]")
        self.weight_only()
        if self.samples < 1:
            raise CompressError(f"samples is {self.samples}: at least one calibration sample is needed")
        if self.ranges not in get_args(get_type_hints(type(self))["ranges"]):
            raise CompressError(f"ranges is {self.ranges!r}: expected 'minmax', 'percentile', 'mse' or 'entropy'")
        if not 0 <= self.smooth <= 1:
            raise CompressError(f"smooth is {self.smooth}: it must be in [0, 1], 0 leaves activations as they are")
        if self.rounding not in get_args(get_type_hints(type(self))["rounding"]):
            raise CompressError(f"rounding is {self.rounding!r}: expected 'nearest', 'learned' or 'gptq'")

    def weight_only(self) -> WeightOnly:
        """The layers whose weights alone are quantized."""
        return WeightOnly(int8=self.int8_weights, int4=self.int4_weights, group=self.group_size)


@dataclass(frozen=True, kw_only=True)
class QuantizeResult:
    """``model`` is the float program with its ranges; ``operators`` says per operator int8, or float and why.

    ``coverage`` is what :func:`compress.quantize.coverage.cover` tells of the samples and the tensors.
    """

    model: Model
    operators: tuple[Mapping[str, Any], ...]
    samples: int
    recovery: Mapping[str, int] = field(default_factory=dict)       # what was asked for -> layers it was done for
    coverage: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The record of the stage, without the model."""
        counts = Counter(o["precision"] for o in self.operators)
        quantization = self.model.quantization
        assert quantization is not None
        return {
            "scheme": quantization.scheme,
            "ranges": quantization.settings["ranges"],
            "samples": self.samples,
            "int8": counts["int8"],
            "weights": counts["int8 weights"] + counts["int4 weights"],
            "float": counts["float"],
            "recovery": dict(self.recovery),
            "operators": [dict(o) for o in self.operators],
            "coverage": dict(self.coverage),
        }


def quantize(
    model: Model,
    data: CalibrationSet | Mapping[str, CalibrationSet],
    *,
    scheme: str,
    config: QuantizeConfig = QuantizeConfig(),
    statistics: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizeResult:
    """Return ``model`` with the range of each tensor that an int8 operator reads under ``scheme``.

    Batch normalisations behind a convolution are folded into it first, and weights that are computed from others are
    computed, which changes the float program, not its values; as does what ``equalize`` and ``smooth`` ask for. With
    ``rounding`` and ``correct_bias`` its weights lie on their integers' grids and its biases make good for them.

    Args:
        model: a float model; one that is an ONNX file is quantized by NNCF (:mod:`compress.quantize.nncf`).
        data: calibration samples for the inputs of its chain, which is run as a whole: a decoder is calibrated on the
            steps of its own answers, prompt and cached ones both. Or samples for the inputs of all its graphs, of which
            each takes those it names; or graph name -> a set of its own, where their samples do not belong together.
        scheme: a name of :data:`compress.quantize.schemes.SCHEMES`; a target's row names its own.
        config: see :class:`QuantizeConfig`.
        statistics: a folder that keeps what a pass over the samples finds: one that was killed goes on, and other
            ranges are chosen without another; see :mod:`compress.quantize.statistics`.
        progress: called with (samples done, samples in all); then, where rounding is learned, with layers.

    Raises:
        CompressError: if the model is quantized already, nothing in it can be, a graph has no samples, or an activation
            is not finite.
    """
    from compress.model import Quantization
    from compress.onnxmodel import OnnxModel
    from compress.quantize.annotate import check_globs, find_operators
    from compress.quantize.collect import Collector
    from compress.quantize.coverage import cover
    from compress.quantize.fold import fold
    from compress.quantize.prepare import int8_operators
    from compress.quantize.recovery import choose_integers, scale_channels
    from compress.quantize.samples import CHAIN, samples_of
    from compress.quantize.schemes import get_scheme
    from compress.quantize.statistics import gather

    integers = get_scheme(scheme)
    if isinstance(model, OnnxModel):
        from compress.quantize.nncf import quantize_onnx

        return quantize_onnx(model, data, integers, config, progress)
    if model.quantization is not None:
        raise CompressError(f"model {model.name!r} is quantized already: quantize the float model it was made from")
    sets = samples_of(model, data, config.samples)
    model, recovery = scale_channels(fold(model), sets, config)
    modules = {name: graph.program.module(check_guards=False) for name, graph in model.graphs.items()}
    alone = config.weight_only()
    operators = {name: find_operators(module, config.keep_float, integers, alone) for name, module in modules.items()}
    every = [operator for found in operators.values() for operator in found]
    for option in ("keep_float", "int8_weights", "int4_weights"):
        check_globs(every, option, getattr(config, option))
    if not int8_operators(every):
        raise CompressError(
            f"nothing in model {model.name!r} can run in int8: "
            + ("; ".join(f"{o.path}: {o.float_reason}" for o in every[:3]) or "it has no operator with weights")
        )
    collectors = {
        name: Collector(modules[name], int8_operators(operators[name]), graph, (sets.get(CHAIN) or sets[name]).of.name)
        for name, graph in model.graphs.items()
    }
    if any(collector.statistics for collector in collectors.values()):
        gather(model, collectors, sets, keep=statistics, progress=progress)
    ranges = {name: collector.ranges(config, integers) for name, collector in collectors.items()}
    low = {name: int8_operators(found) for name, found in operators.items()}
    coverage = cover(model, collectors, low, ranges, integers, sets)
    table = [
        {
            "graph": name, "path": o.path, "op": o.op, "component": model.component_of(o.path),
            "precision": o.precision, "reason": o.float_reason,
        }
        for name, found in operators.items() for o in found
    ]  # fmt: skip
    used = max(len(own) for own in sets.values())
    digest = {name: own.digest for name, own in data.items()} if isinstance(data, Mapping) else data.digest
    settings = {"ranges": config.ranges, "percentile": config.percentile, "samples": used, "data": digest}
    quantization = Quantization(scheme=scheme, ranges=ranges, settings=settings, keep_float=config.keep_float,
                                weight_only=alone)  # fmt: skip
    quantized, more = choose_integers(dataclasses.replace(model, quantization=quantization), sets, config, progress)
    return QuantizeResult(model=quantized, operators=tuple(table), samples=used, recovery={**recovery, **more},
                          coverage=coverage)  # fmt: skip
