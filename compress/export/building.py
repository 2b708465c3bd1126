"""What every builder does before its backend's own step: check the ONNX file, the precision and the folder."""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import CompressError
from compress.export.onnxdata import light_model
from compress.targets import Target
from runtimes.backends import find_backend, import_package
from runtimes.engine import Precision
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, file_digest
from runtimes.onnxfile import refuse_external_data
from runtimes.spec import TensorSpec

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

DATA = "model.onnx"     # what a light model calls the file its constants are in
_QUANTIZING = {"QuantizeLinear", "DequantizeLinear"}


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """A checked ONNX file; what a backend gets of it is checked to be what ``digest`` was made of.

    ``light`` is the model with its large constants named as places in a file ``DATA`` beside it, of the same content.
    """

    path: Path
    digest: str
    opset: int
    light: ModelProto

    def read(self) -> bytes:
        """The file.

        Raises:
            CompressError: if it is no longer the one that was checked.
        """
        data = self.path.read_bytes()
        self._check(bytes_digest(data))
        return data

    @contextmanager
    def laid_out(self, into: Path) -> Iterator[Path]:
        """The light model as a file, beside its data, both in a new folder in ``into`` that is removed in the end.

        Raises:
            CompressError: if the data are no longer those that were checked, after the block as well.
        """
        with tempfile.TemporaryDirectory(dir=into, prefix=".onnx-") as folder:
            data = Path(folder) / DATA
            try:
                os.link(self.path, data)
            except OSError:  # another disk, or one without hard links
                shutil.copyfile(self.path, data)
            light = Path(folder) / "light.onnx"
            light.write_bytes(self.light.SerializeToString(deterministic=True))
            self._check(file_digest(data))
            yield light
            self._check(file_digest(data))

    def copy_to(self, path: Path) -> None:
        """Write the file again as ``path``.

        Raises:
            CompressError: if it is no longer the one that was checked.
        """
        shutil.copyfile(self.path, path)
        self._check(file_digest(path))

    def _check(self, digest: str) -> None:
        if digest != self.digest:
            raise CompressError(f"{self.path} was changed while an engine was built from it: export it again")


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
        CompressError: if ``target`` has no kernels of ``precision``; if the file is missing, damaged, or keeps data in
            another file; if its inputs or outputs are not the ones given; or if it is quantized for a float engine,
            or float for an int8 one.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    _check_precision(target, precision)
    try:
        with _mapped(path) as content:
            digest = bytes_digest(content)
            refuse_external_data(content, str(path))
            model = light_model(content, DATA)
    except OSError as error:
        raise CompressError(f"ONNX file {path} cannot be read ({error.strerror}): export the model first") from error
    except RuntimesError as error:
        raise CompressError(str(error)) from error
    except DecodeError as error:
        raise CompressError(f"{path} is not an ONNX model ({error}): it is damaged, export it again") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    constants = {tensor.name for tensor in model.graph.initializer}
    for kind, values, specs in (("input", model.graph.input, inputs), ("output", model.graph.output, outputs)):
        found = {value.name: value.type.tensor_type for value in values if value.name not in constants}
        _check_interface(path, kind, found, specs)
    quantized = any(node.op_type in _QUANTIZING for graph in _graphs(model) for node in graph.node)
    if quantized != (precision == "int8"):
        has = "QuantizeLinear/DequantizeLinear nodes" if quantized else "no QuantizeLinear or DequantizeLinear node"
        raise CompressError(f"{path} has {has}, so it cannot become {precision}: give the ONNX file exported for it")
    return OnnxFile(path=path, digest=digest, opset=opset, light=model)


@contextmanager
def _mapped(path: Path) -> Iterator[bytes | mmap.mmap]:
    """The content of a file, without reading it into memory."""
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:     # nothing to map
            yield b""
            return
        yield mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped with the last view of it


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


def import_backend(name: str, target: Target) -> Any:
    """The vendor's package, or the command that installs it."""
    try:
        return import_package(find_backend(name))
    except ImportError as error:
        raise CompressError(
            f'target {target.name!r} needs {name} ({error}): pip install "compress-edge[{target.install}]"'
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


def _graphs(model: ModelProto) -> Iterator[GraphProto]:
    """The graph and the bodies of its If, Loop and Scan nodes."""
    waiting = [model.graph]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
