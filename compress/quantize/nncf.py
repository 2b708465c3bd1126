"""Quantize an ONNX model with NNCF's ONNX backend: the same calibration set, scheme and record as of a PyTorch model.

NNCF decides where it quantizes; which integers and which ranges are the scheme's and the settings' as far as it has
them. What it has not is refused, never left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import CompressError
from compress.model import Quantization
from compress.onnxmodel import GRAPH, OnnxModel, arithmetic, quantized
from compress.quantize import QuantizeConfig, QuantizeResult
from compress.quantize.samples import samples_of
from compress.quantize.schemes import Integers, Scheme
from runtimes.backends import BACKENDS, without

if TYPE_CHECKING:
    from onnx import ModelProto

    from calibration import CalibrationSet

SUPPORTED = {"ranges", "percentile", "samples", "keep_float"}       # of the settings


def quantize_onnx(
    model: OnnxModel, data: CalibrationSet | Mapping[str, CalibrationSet], scheme: Scheme, config: QuantizeConfig,
    progress: Callable[[int, int], None] | None = None,
) -> QuantizeResult:  # fmt: skip
    """What :func:`compress.quantize` does for an ONNX model.

    Raises:
        CompressError: if NNCF is not installed, has no such setting, or fails; if the model is quantized already,
            nothing in it can be, or ``keep_float`` names no operator of it.
    """
    if model.quantization is not None:
        raise CompressError(f"model {model.name!r} is quantized already: quantize the float ONNX it was made from")
    nncf = _nncf()
    parameters = _parameters(nncf, scheme, config)
    used = samples_of(model, data, config.samples)[GRAPH].used
    proto = model.read()
    kept = _kept(proto, config)
    with _quiet(nncf):
        try:
            made = nncf.quantize(
                proto, nncf.Dataset(_Feeds(used, progress)), subset_size=len(used),
                ignored_scope=nncf.IgnoredScope(names=kept, validate=False), advanced_parameters=parameters,
            )  # fmt: skip
        except Exception as error:      # NNCF's exceptions and ONNX Runtime's have no base but this
            reason = next(iter(str(error).splitlines()), "")
            raise CompressError(f"NNCF cannot quantize {model.name!r}: {type(error).__name__}: {reason[:300]}; check "
                                "that the file runs in ONNX Runtime and has opset 13 or newer") from error
    use_integers(made, scheme.activations)
    table = [
        {"graph": GRAPH, "path": name, "op": op, "component": "other", "precision": "int8" if int8 else "float",
         "reason": None if int8 else f"kept float by {_glob(name, config)!r}" if name in kept else
                   "NNCF left it in float"}
        for name, op, int8 in arithmetic(made)
    ]  # fmt: skip
    if not any(row["precision"] == "int8" for row in table):
        raise CompressError(f"nothing in model {model.name!r} can run in int8: NNCF quantized none of its "
                            f"{len(table)} convolutions and products of matrices")
    digest = {name: own.digest for name, own in data.items()} if isinstance(data, Mapping) else data.digest
    settings = {"ranges": config.ranges, "percentile": config.percentile, "samples": len(used), "data": digest,
                "by": f"nncf {nncf.__version__}"}  # fmt: skip
    quantization = Quantization(scheme=scheme.name, ranges={}, settings=settings, keep_float=config.keep_float)
    return QuantizeResult(model=quantized(model, made, quantization), operators=tuple(table), samples=len(used))


class _Feeds:
    """Samples one by one, as often as NNCF goes through them; ``told`` is called while it does so the first time."""

    def __init__(self, data: CalibrationSet, told: Callable[[int, int], None] | None) -> None:
        self.data, self.told, self.done = data, told, 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for feed in self.data.batches(1):
            if self.told is not None and self.done < len(self.data):
                self.done += 1
                self.told(self.done, len(self.data))
            yield feed


def _nncf() -> Any:
    try:
        with without(BACKENDS["openvino"].reporter), contextlib.redirect_stderr(io.StringIO()):
            import nncf
    except ImportError as error:
        raise CompressError(
            f'an ONNX file is quantized by NNCF, which is not installed ({error}): pip install "compress-edge[nncf]"'
        ) from error
    return nncf


@contextlib.contextmanager
def _quiet(nncf: Any) -> Iterator[None]:
    """It draws bars of its own and logs each step; its failures are exceptions all the same."""
    nncf.common.logging.logger.disable_logging()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _parameters(nncf: Any, scheme: Scheme, config: QuantizeConfig) -> Any:
    """The scheme and the settings in NNCF's words."""
    defaults = QuantizeConfig()
    changed = [field.name for field in dataclasses.fields(config)
               if field.name not in SUPPORTED and getattr(config, field.name) != getattr(defaults, field.name)]
    if changed:
        raise CompressError(f"the setting {changed[0]!r} is for PyTorch models: an ONNX file is quantized by NNCF, "
                            f"which takes {', '.join(sorted(SUPPORTED))}; to use it, save the PyTorch module with "
                            "compress.save")
    advanced = nncf.quantization.advanced_parameters
    mode = nncf.common.quantization.structs.QuantizationScheme
    return advanced.AdvancedQuantizationParameters(
        overflow_fix=advanced.OverflowFix.ENABLE if scheme.weights.high < 127 else advanced.OverflowFix.DISABLE,
        activations_quantization_params=advanced.QuantizationParameters(
            num_bits=8, mode=mode.SYMMETRIC if scheme.activations.symmetric else mode.ASYMMETRIC, per_channel=False),
        weights_quantization_params=advanced.QuantizationParameters(
            num_bits=8, mode=mode.SYMMETRIC, per_channel=True),
        activations_range_estimator_params=_ranges(nncf, config),
    )  # fmt: skip


def _ranges(nncf: Any, config: QuantizeConfig) -> Any:
    """``mse`` is NNCF's histogram; its percentiles are each sample's own, of which it takes the mean."""
    estimator = nncf.quantization.range_estimator
    kinds = estimator.RangeEstimatorParametersSet
    if config.ranges == "entropy":
        raise CompressError("NNCF quantizes an ONNX file, and has no 'entropy' ranges: use minmax, percentile or mse")
    if config.ranges != "percentile":
        return {"minmax": kinds.MINMAX, "mse": kinds.HISTOGRAM}[config.ranges]
    end = estimator.StatisticsCollectorParameters(
        statistics_type=estimator.StatisticsType.QUANTILE, aggregator_type=estimator.AggregatorType.MEAN,
        quantile_outlier_prob=(100 - config.percentile) / 100,
    )  # fmt: skip
    return estimator.RangeEstimatorParameters(min=end, max=end)


def use_integers(proto: ModelProto, integers: Integers) -> None:
    """Write the activations' QuantizeLinear and DequantizeLinear with the integers of a scheme.

    NNCF makes signed integers with any zero point, and unsigned ones of what is never negative. Signed to unsigned is
    the same function, 128 higher; unsigned to signed with 0 in the middle covers the same range with half the steps.

    Raises:
        CompressError: if a zero point is elsewhere than the scheme allows.
    """
    from onnx.helper import np_dtype_to_tensor_dtype
    from onnx.numpy_helper import from_array, to_array

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    written = {node.output[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    for value in proto.graph.value_info:
        if value.name in written:
            value.type.tensor_type.elem_type = np_dtype_to_tensor_dtype(np.dtype(integers.dtype))
    steps = {(node.input[1], node.input[2]) for node in proto.graph.node
             if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] not in constants}
    wanted = np.dtype(integers.dtype)
    for scale_name, zero_name in sorted(steps):
        zero = to_array(constants[zero_name])
        if zero.dtype != wanted and wanted == np.uint8:
            shifted = (zero.astype(np.int16) + 128).astype(np.uint8)
            constants[zero_name].CopyFrom(from_array(shifted, zero_name))
        elif zero.dtype != wanted:
            scale = to_array(constants[scale_name]) * np.float32(255 / integers.high)
            constants[scale_name].CopyFrom(from_array(scale, scale_name))
            constants[zero_name].CopyFrom(from_array(zero.astype(wanted), zero_name))
        if integers.symmetric and np.any(to_array(constants[zero_name])):
            raise CompressError(f"NNCF put the zero of {zero_name!r} beside the middle, which this scheme has no "
                                "integers for: keep the operator that reads it in float")


def _kept(proto: ModelProto, config: QuantizeConfig) -> list[str]:
    names = [node.name for node in proto.graph.node]
    for glob in config.keep_float:
        if not any(fnmatchcase(name, glob) for name in names):
            raise CompressError(f"keep_float {glob!r} matches no operator of the ONNX file: they are called as "
                                f"{', '.join(name for name, _, _ in list(arithmetic(proto))[:5])}")
    return [name for name in names if _glob(name, config) is not None]


def _glob(name: str, config: QuantizeConfig) -> str | None:
    return next((glob for glob in config.keep_float if fnmatchcase(name, glob)), None)
