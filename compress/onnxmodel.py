"""A model that is there as an ONNX file alone: it can be quantized (by NNCF), exported, bundled and benched.

What prunes or trains needs the PyTorch module behind it, and refuses it (:func:`needs_module`). A quantized one is an
ONNX file again, with QuantizeLinear and DequantizeLinear, and in its metadata under :data:`KEY` a JSON record of the
format, the scheme, the settings and the SHA-256 of the float file it was made from.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import numpy as np

from compress.errors import CompressError
from compress.model import Input, Model, ProgramGraph, Quantization
from compress.store import atomic_file
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest
from runtimes.onnxfile import refuse_external_data
from runtimes.spec import Dim, Feed, Modality, TensorSpec

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

KEY, VERSION = "compress.quantization", 1
GRAPH = "forward"       # what its only graph is called
BATCH = Dim("batch", 1, 1, 64)
LONGEST = 4096          # of a dynamic size that is not told
_QUANTIZING = {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True, kw_only=True)
class OnnxModel(Model):
    """A model whose only graph is the ONNX of ``content``."""

    content: bytes

    def read(self) -> ModelProto:
        """The graph, for a caller of its own."""
        import onnx

        return onnx.load_from_string(self.content)


class NoProgram:
    """In place of the PyTorch program of a graph: whatever asks for that is told that there is none."""

    def __init__(self, model: str) -> None:
        self._model = model

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise CompressError(f"model {self._model!r} is an ONNX file, without the PyTorch program that this needs: it "
                            "can be quantized, exported and put in a bundle as it is; for more, save its PyTorch "
                            "module with compress.save")


def needs_module(model: Model, stage: str, why: str) -> None:
    """Refuse an ONNX model where ``stage`` cannot work on one.

    Raises:
        CompressError: saying ``why``, and what to do.
    """
    if isinstance(model, OnnxModel):
        raise CompressError(f"model {model.name!r} is an ONNX file, and {stage} needs the PyTorch module it was made "
                            f"from: {why}. Save the module with compress.save; an ONNX file can be quantized, exported "
                            "and put in a bundle")


def read_onnx_model(
    path: Path, inputs: Mapping[str, Input] | None = None, example: Feed | None = None
) -> OnnxModel:  # fmt: skip
    """Read an ``.onnx`` file; nothing in it is run.

    Args:
        path: the file, which holds all of its weights.
        inputs: modalities and dynamic dimensions where the file's own do not tell.
        example: a feed, whose sizes are those an engine is tuned for where the file leaves them open. Without it they
            are 1, and at most 64 samples and :data:`LONGEST` of anything else are taken.

    Raises:
        CompressError: if it is damaged, keeps data in another file, was quantized by something else, or has an input
            without a batch axis or a name that files cannot carry.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    content = path.read_bytes()
    try:
        refuse_external_data(content, str(path))
        proto = onnx.load_from_string(content)
        onnx.checker.check_model(proto)
    except RuntimesError as error:
        raise CompressError(str(error)) from error
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise CompressError(f"{path} is not an ONNX model ({_first_line(error)}): export it again") from error
    constants = {tensor.name for tensor in proto.graph.initializer}
    given = [value for value in proto.graph.input if value.name not in constants]
    dims: dict[str, Dim] = {}
    specs = tuple(_input(value, (inputs or {}).get(value.name, Input()), (example or {}).get(value.name), dims, path)
                  for value in given)  # fmt: skip
    unknown = sorted((inputs or {}).keys() - {spec.name for spec in specs})
    if unknown:
        raise CompressError(f"{path} has no input {unknown[0]!r}: its inputs are {[spec.name for spec in specs]}")
    graph = ProgramGraph(program=cast(Any, NoProgram(path.stem)), inputs=specs,
                         outputs=tuple(_output(value, dims, path) for value in proto.graph.output))  # fmt: skip
    return OnnxModel(
        name=path.stem, graphs={GRAPH: graph}, weights={}, components={}, example=dict(example or {}), content=content,
        quantization=_quantization(proto, path),
    )  # fmt: skip


def write_onnx_model(model: OnnxModel, path: Path) -> Path:
    """Write ``model`` to ``path``; the same model gives the same bytes."""
    with atomic_file(path) as file:
        file.write(model.content)
    return path


def quantized(model: OnnxModel, proto: ModelProto, quantization: Quantization) -> OnnxModel:
    """``model`` with the Q/DQ graph ``proto``, which gets the record of ``quantization``, and its ranges."""
    record = {"format": KEY, "version": VERSION, "source": bytes_digest(model.content), "scheme": quantization.scheme,
              "settings": dict(quantization.settings), "keep_float": list(quantization.keep_float)}  # fmt: skip
    del proto.metadata_props[:]
    proto.metadata_props.add(key=KEY, value=json.dumps(record, sort_keys=True))
    content = proto.SerializeToString(deterministic=True)
    return dataclasses.replace(model, content=content,
                               quantization=dataclasses.replace(quantization, ranges={GRAPH: ranges_of(proto)}))


def ranges_of(proto: ModelProto) -> dict[str, tuple[float, float]]:
    """Tensor -> the range that its QuantizeLinear maps onto the integers."""
    from onnx.numpy_helper import to_array

    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants and node.input[1] in constants:
            scale = float(to_array(constants[node.input[1]]).reshape(-1)[0])
            zero = to_array(constants[node.input[2]]).reshape(-1)[0] if len(node.input) > 2 else np.uint8(0)
            ends = np.iinfo(zero.dtype)
            found[node.input[0]] = (scale * (ends.min - int(zero)), scale * (ends.max - int(zero)))
    return found


def _quantization(proto: ModelProto, path: Path) -> Quantization | None:
    if not any(node.op_type in _QUANTIZING for node in proto.graph.node):
        return None
    text = next((entry.value for entry in proto.metadata_props if entry.key == KEY), None)
    if text is None:
        raise CompressError(f"{path} is quantized already, by something else: give the float ONNX it was made from")
    try:
        record = json.loads(text)
        if (record["format"], record["version"]) != (KEY, VERSION):
            raise CompressError(f"{path} was quantized by another version of compress: quantize the float ONNX again")
        return Quantization(scheme=str(record["scheme"]), ranges={GRAPH: ranges_of(proto)},
                            settings=dict(record["settings"]), keep_float=tuple(record["keep_float"]))  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CompressError(f"{path} is damaged: the record of its quantization cannot be read ({error})") from error


# --- specs ------------------------------------------------------------------------------------------------------------


def _input(
    value: ValueInfoProto, given: Input, example: np.ndarray | None, dims: dict[str, Dim], path: Path
) -> TensorSpec:  # fmt: skip
    dtype, sizes = _tensor(value, "input", path)
    if not sizes:
        raise CompressError(f"{path}: input {value.name!r} is a single number: export it with a batch axis in front")
    if example is not None and example.ndim != len(sizes):
        raise CompressError(f"{path}: input {value.name!r} has {len(sizes)} axes, the example {example.ndim}")
    told = given.dims or ()
    shape: list[int | Dim] = []
    for axis, size in enumerate(sizes):
        own = told[axis] if axis < len(told) else None
        usual = None if example is None else int(example.shape[axis])
        shape.append(size if isinstance(size, int) else _dim(own, size, f"{value.name}_axis{axis}", axis, usual, dims))
    return TensorSpec(name=value.name, dtype=dtype, shape=tuple(shape), batch_axis=0,
                      modality=given.modality or _modality(dtype, len(shape)))  # fmt: skip


def _dim(own: str | Dim | None, symbol: str, place: str, axis: int, usual: int | None, dims: dict[str, Dim]) -> Dim:
    """The dimension that the file calls ``symbol``, the same wherever it does; the first axis is the batch."""
    key = symbol or ("batch" if axis == 0 else place)
    if key not in dims:
        name = re.sub(r"\W", "_", own if isinstance(own, str) else key)
        longest = LONGEST if usual is None else 4 * usual
        made = BATCH if axis == 0 else Dim(name if name.isidentifier() else f"d_{name}", 1, usual or 1, longest)
        dims[key] = own if isinstance(own, Dim) else made
    return dims[key]


def _output(value: ValueInfoProto, dims: Mapping[str, Dim], path: Path) -> TensorSpec:
    dtype, sizes = _tensor(value, "output", path)
    shape = tuple(
        size if isinstance(size, int) else dims.get(size or ("batch" if axis == 0 else ""))
        or Dim(re.sub(r"\W", "_", f"{value.name}_axis{axis}"), 1, 1, LONGEST)
        for axis, size in enumerate(sizes)
    )  # fmt: skip
    batch = 0 if shape and (isinstance(shape[0], Dim) or shape[0] == 1) else None
    return TensorSpec(name=value.name, dtype=dtype, shape=shape, batch_axis=batch, modality="embedding")


def _tensor(value: ValueInfoProto, kind: str, path: Path) -> tuple[str, list[int | str]]:
    """numpy's name of the type, and the sizes; one that is open is its symbol, or an empty text."""
    import onnx

    where = f"{path}: {kind} {value.name!r:.80}"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", value.name) or ".." in value.name or value.name == "target":
        raise CompressError(f"{where} has a name files cannot carry: use letters, digits, '_', and not 'target'")
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        raise CompressError(f"{where} is no tensor of a known number of axes: export it with its shape")
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if dtype.kind not in "fiub":
        raise CompressError(f"{where} has the type {dtype}: give an array of numbers")
    return dtype.name, [dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim]


def _modality(dtype: str, axes: int) -> Modality:
    """As of a PyTorch module's inputs that nobody tells of."""
    if np.dtype(dtype).kind in "iu" and axes == 2:
        return "text"
    by_axes: dict[int, Modality] = {4: "image", 5: "video"}
    return by_axes.get(axes, "sensor")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:200]


def arithmetic(proto: ModelProto) -> Iterator[tuple[str, str, bool]]:
    """``(name, operator, whether both operands are dequantized)`` of each convolution and product of matrices."""
    made = {output: node.op_type for node in proto.graph.node for output in node.output}
    for node in proto.graph.node:
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            yield node.name, node.op_type, all(made.get(name) == "DequantizeLinear" for name in node.input[:2])
