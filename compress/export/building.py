"""What every builder does before its backend's own step: check the ONNX file, the precision and the folder."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError
from compress.targets import Target
from runtimes.engine import Precision
from runtimes.hashing import file_digest, json_digest
from runtimes.spec import TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

_QUANTIZING = {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A checked ONNX file: ``data`` are its external-data files relative to its folder, ``digest`` covers them all."""

    path: Path
    data: tuple[str, ...]
    digest: str
    opset: int

    def copy(self, folder: Path, name: str = "model.onnx") -> Path:
        """Copy the file, as ``name``, and its external data into ``folder``."""
        for file in self.data:
            if file == name:
                raise CompressError(f"{self.path} keeps external data in {name!r}, the name of the copy: rename it")
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.path.parent / file, folder / file)
        shutil.copyfile(self.path, folder / name)
        return folder / name


def read_onnx(
    path: Path,
    target: Target,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    precision: Precision,
) -> OnnxFile:
    """Check that ``path`` is an ONNX file with these inputs and outputs, that can become an engine of ``precision``.

    Raises:
        CompressError: if ``target`` has no kernels of ``precision``; if the file is missing, damaged, or keeps external
            data anywhere but in regular files of its own folder; if its inputs or outputs are not the ones given; or
            if it is quantized for a float engine, or float for an int8 one.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    _check_precision(target, precision)
    if not path.is_file():
        raise CompressError(f"ONNX file {path} does not exist: export the model first")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise CompressError(f"{path} is not an ONNX file, or is cut short ({error}): export it again") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    constants = {tensor.name for tensor in model.graph.initializer}
    for kind, values, specs in (("input", model.graph.input, inputs), ("output", model.graph.output, outputs)):
        found = {value.name: value.type.tensor_type for value in values if value.name not in constants}
        _check_interface(path, kind, found, specs)
    quantized = any(node.op_type in _QUANTIZING for graph in _graphs(model) for node in graph.node)
    if quantized != (precision == "int8"):
        has = "QuantizeLinear/DequantizeLinear nodes" if quantized else "no QuantizeLinear or DequantizeLinear node"
        raise CompressError(f"{path} has {has}, so it cannot become {precision}: give the ONNX file exported for it")
    data = _external_data(path, model)
    digest = file_digest(path)
    if data:
        digest = json_digest([digest, [(file, file_digest(path.parent / file)) for file in data]])
    return OnnxFile(path=path, data=data, digest=digest, opset=opset)


@contextmanager
def new_folder(into: Path) -> Iterator[Path]:
    """Create the folder ``into``; a failure removes it, so that no half of an engine is left."""
    try:
        into.mkdir(parents=True)
    except FileExistsError as error:
        raise CompressError(f"{into} exists already: give the folder of a new engine") from error
    try:
        yield into
    except BaseException:
        shutil.rmtree(into, ignore_errors=True)
        raise


def import_backend(module: str, target: Target) -> Any:
    """The vendor's package, or the command that installs it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CompressError(
            f'target {target.name!r} needs {module} ({error}): pip install "compress-edge[{target.install}]"'
        ) from error


def _check_precision(target: Target, precision: Precision) -> None:
    if precision in ("int8", "fp32", target.half):
        return
    has = f"its half precision is {target.half}" if target.half else "no half kernels"
    raise CompressError(f"target {target.name!r} cannot run {precision}: {has}; ask for int8, fp32"
                        + (f" or {target.half}" if target.half else ""))


def _check_interface(path: Path, kind: str, found: dict[str, Any], specs: Sequence[TensorSpec]) -> None:
    import onnx

    names = [spec.name for spec in specs]
    if sorted(found) != sorted(names):
        raise CompressError(f"{path} has the {kind}s {sorted(found)}, the model's are {sorted(names)}: export it again")
    for spec in specs:
        tensor = found[spec.name]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim)
        fits = len(shape) == len(spec.shape) and all(
            size is None or size == expected for size, expected in zip(shape, spec.shape, strict=True)
        )
        if dtype != spec.dtype or not fits:
            said = ", ".join("?" if size is None else str(size) for size in shape)
            raise CompressError(
                f"{path}: {kind} {spec.name!r} is {dtype}[{said}], the model's is {spec.describe()}: export it again"
            )


def _external_data(path: Path, model: ModelProto) -> tuple[str, ...]:
    """The external-data files, each checked: some runtimes follow ``../``, absolute paths and links."""
    from onnx import TensorProto

    files = set()
    for tensor in _tensors(model):
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        parts = PurePosixPath(location).parts
        plain = bool(parts) and location.isprintable() and "\\" not in location
        inside = plain and ".." not in parts and not PurePosixPath(location).is_absolute()
        file = path.parent / location
        links = any(step.is_symlink() for step in (file, *file.parents[: len(parts) - 1])) if inside else False
        if not inside or links or not file.is_file():
            raise CompressError(
                f"{path}: tensor {tensor.name!r} keeps its data in {location!r}, which is not a regular file "
                "inside the model's folder: do not use this file"
            )
        files.add(PurePosixPath(location).as_posix())
    return tuple(sorted(files))


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The graph and the bodies of its If, Loop and Scan nodes."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    for graph in _graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _attribute_tensors(graph)
    for function in model.functions:
        yield from _attribute_tensors(function)


def _attribute_tensors(owner: Any) -> Iterator[TensorProto]:
    for node in owner.node:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
