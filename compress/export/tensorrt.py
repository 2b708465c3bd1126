"""Build for TensorRT: an engine ahead of time with TensorRT for RTX, a build recipe for a Jetson.

A TensorRT engine is tied to the GPU and to the TensorRT version, so a Jetson gets the ONNX file and the recipe, and
builds the engine itself (:mod:`runtimes.built`). TensorRT for RTX builds here, without a GPU; the engine can then be
neither run nor inspected here. Both use one builder, :mod:`runtimes.tensorrt_builder`.

From TensorRT 10 on networks are strongly typed: what is int8, float16 and float32 is what the ONNX file says, so for a
half-precision engine the file itself is written in float16, its norms and softmaxes left in float32. TensorRT 8.6 gets
the float32 file and the flags of the precisions it may choose from.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.export.building import OnnxFile, new_folder, read_onnx
from compress.export.rtx_libraries import RtxLibraries, ensure_rtx_libraries
from compress.export.sparsity import sparse_weights
from compress.targets import Target
from runtimes.built import RECIPE_FORMAT, RECIPE_VERSION, run_builder
from runtimes.engine import Engine, Precision, write_engine
from runtimes.errors import RuntimesError
from runtimes.records import write_json
from runtimes.spec import TensorSpec

BUILD_TIMEOUT_S = 1800
SPARSE = "SPARSE_WEIGHTS"                  # the builder's flag: weights in the 2:4 pattern may go to sparse kernels
FIRST_STRONG = (10, 0)                     # the TensorRT release whose networks can be strongly typed

# Highest opset -> TensorRT release: docs/operators.md of onnx/onnx-tensorrt; that of 10.0 lists INT4, new in opset 21
_OLDEST_PARSER = {17: "8.6", 20: "10.0", 21: "10.0"}
_MIB_PER_GIB = 1024

Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]
Made = dict[str, Any]  # what a builder adds to engine.json


def build(
    onnx: Path,
    target: Target,
    into: Path,
    *,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    precision: Precision,
) -> Engine:
    """Write the engine folder ``into`` from the file ``onnx``; nothing is left of it after a failure.

    For ``tensorrt_rtx`` it holds ``model.engine`` and ``build.log``, and its notes count the layers and tensors of the
    network that was parsed; for ``tensorrt`` it holds ``model.onnx`` and ``build.json``, the recipe.

    Raises:
        CompressError: if the file, its inputs or the precision do not fit (``read_onnx``), TensorRT refuses it, its
            libraries cannot be had, or it takes longer than ``BUILD_TIMEOUT_S``.
    """
    source = read_onnx(onnx, target, inputs=inputs, outputs=outputs, precision=precision)
    write = _BUILDERS[target.backend]
    with new_folder(into):
        made = write(source, target, into, _profile(inputs), precision)
        return write_engine(
            into,
            backend=target.backend,
            device=target.device,
            precision=precision,
            inputs=inputs,
            outputs=outputs,
            options={},
            source=source.digest,
            **made,
        )


def _build_rtx(source: OnnxFile, target: Target, into: Path, profile: Profile, precision: Precision) -> Made:
    libraries = ensure_rtx_libraries()
    data = _typed(source, target, precision)
    sparse, of = sparse_weights(data)
    job: dict[str, Any] = {
        "module": libraries.module,
        "python_path": None if libraries.python_path is None else str(libraries.python_path),
        "typing": "strong",
        "flags": [SPARSE] if sparse else [],
        "workspace_mib": None,
        "profile": profile,
        "inspect": False,
    }
    result = _run_builder(data, job, libraries, source, into)
    varying = "" if result["fixed_addresses"] else "; at random addresses: a second build may differ in tensors' names"
    return {
        "entry": "model.engine",
        "built_with": {"tensorrt_rtx": libraries.version, libraries.module: result["version"]},
        "state": "built, not run",
        "notes": [
            "built ahead of time, without a GPU: never run or inspected, so the layers' real precision is unverified"
            + varying,
            *([_told(sparse, of)] if sparse else []),
            f"layers of the parsed network: {_counts(result['layers'])}",
            f"tensors of the parsed network: {_counts(result['tensors'])}",
            *(f"warning of the builder: {text}" for text in dict.fromkeys(result["warnings"])),
        ],
    }


def _write_recipe(source: OnnxFile, target: Target, into: Path, profile: Profile, precision: Precision) -> Made:
    sparse, of = sparse_weights(source.read())
    how = recipe(source.path, source.opset, target, profile, precision, sparse=bool(sparse))
    data = _typed(source, target, precision) if how["typing"] == "strong" else source.read()
    (into / "model.onnx").write_bytes(data)
    write_json(into / "build.json", how)
    return {
        "entry": "model.onnx",
        "built_with": {},
        "state": "build on the device",
        "notes": ["the engine is built from model.onnx on the device, as build.json says; written, never run",
                  *([_told(sparse, of)] if sparse else [])],
    }


def recipe(
    onnx: Path, opset: int, target: Target, profile: Profile, precision: Precision, *, sparse: bool = False
) -> dict[str, Any]:
    """How the engine is built on the device (format ``compress.build``), read by :mod:`runtimes.built`.

    ``sparse`` says that weights are in the 2:4 pattern. ``typing`` follows the release of TensorRT in the target's row;
    ``releases`` are those the file can be built with, ``trtexec`` the same build by hand.
    """
    oldest = next((version for highest, version in sorted(_OLDEST_PARSER.items()) if opset <= highest), None)
    if oldest is None:
        raise CompressError(
            f"{onnx} has opset {opset}, which the TensorRT of {target.name!r} may not know: "
            f"export it with opset {max(_OLDEST_PARSER)}"
        )
    strong = target.tensorrt is None or _release(target.tensorrt) >= FIRST_STRONG
    if not strong and _release(oldest) > _release(target.tensorrt or ""):
        remedy = "quantize it without int4 weights" if opset > 20 else "write `opset = 17` into the target's row"
        raise CompressError(
            f"{onnx} has opset {opset}, which TensorRT {target.tensorrt} of {target.name!r} does not "
            f"know: {remedy} and export it again"
        )
    workspace_mib = target.memory_gib * _MIB_PER_GIB // 4 if target.memory_gib else None  # the GPU shares the memory
    allowed = {"INT8": precision == "int8", "FP16": _half(target, precision)}
    flags = [] if strong else [flag for flag, wanted in allowed.items() if wanted]
    flags += [SPARSE] if sparse else []
    return {
        "format": RECIPE_FORMAT,
        "version": RECIPE_VERSION,
        "onnx": "model.onnx",
        "precision": precision,
        "expected": {"tensorrt": target.tensorrt, "jetpack": target.jetpack},
        "typing": "strong" if strong else "weak",
        "releases": f">={'10.0' if strong else oldest}" + ("" if strong else ",<11"),
        "flags": flags,
        "workspace_mib": workspace_mib,
        "profile": {name: dict(zip(("min", "opt", "max"), shapes, strict=True)) for name, shapes in profile.items()},
        "trtexec": _trtexec(strong, flags, profile, workspace_mib),
    }


def _trtexec(strong: bool, flags: list[str], profile: Profile, workspace_mib: int | None) -> str:
    command = ["trtexec", "--onnx=model.onnx", "--saveEngine=model.engine", "--skipInference"]
    command += ["--stronglyTyped"] if strong else [f"--{flag.lower()}" for flag in flags if flag != SPARSE]
    command += ["--sparsity=enable"] if SPARSE in flags else []
    if workspace_mib:
        command.append(f"--memPoolSize=workspace:{workspace_mib}M")
    if any(low != high for low, _, high in profile.values()):  # trtexec refuses shapes for a static model
        for index, kind in enumerate(("min", "opt", "max")):
            shapes = (f"{name}:{'x'.join(map(str, sizes[index]))}" for name, sizes in profile.items())
            command.append(f"--{kind}Shapes={','.join(shapes)}")
    return shlex.join(command)


def _told(sparse: int, of: int) -> str:
    return f"{sparse} of {of} weights are 2:4 sparse: TensorRT may use its sparse kernels, where it finds them faster"


def _half(target: Target, precision: Precision) -> bool:
    """Whether what is not int8 is float16."""
    return precision == "fp16" or (precision == "int8" and target.float == "fp16")


def _typed(source: OnnxFile, target: Target, precision: Precision) -> bytes:
    """The file in the types its engine computes in."""
    if not _half(target, precision):
        return source.read()
    import onnx_ir as ir
    from onnx import load_model_from_string

    from compress.export.half import to_half

    model = ir.from_proto(load_model_from_string(source.read()))
    to_half(model)
    return bytes(ir.to_proto(model).SerializeToString(deterministic=True))


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _profile(inputs: Sequence[TensorSpec]) -> Profile:
    """Smallest, usual and largest shape of each input."""
    return {
        spec.name: (
            spec.sized(**{dim.name: dim.min for dim in spec.dims}),
            spec.sized(),
            spec.sized(**{dim.name: dim.max for dim in spec.dims}),
        )
        for spec in inputs
    }


def _run_builder(
    onnx: bytes, job: dict[str, Any], libraries: RtxLibraries, source: OnnxFile, into: Path
) -> dict[str, Any]:
    paths = (str(libraries.library_path or ""), os.environ.get("LD_LIBRARY_PATH", ""))
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}  # nothing else: see fix_addresses
    with tempfile.TemporaryDirectory(prefix="compress-tensorrt-") as name:
        try:
            result = run_builder(onnx, job, Path(name), str(source.path), environment, BUILD_TIMEOUT_S)
        except RuntimesError as error:
            raise CompressError(str(error)) from error
        for file in ("model.engine", "build.log"):
            shutil.move(Path(name) / file, into / file)
    return result


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


_BUILDERS = {"tensorrt_rtx": _build_rtx, "tensorrt": _write_recipe}
