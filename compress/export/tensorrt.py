"""Build for TensorRT: an engine ahead of time with TensorRT for RTX, a build recipe for a Jetson.

A TensorRT engine is tied to the GPU and to the TensorRT version, so a Jetson gets the ONNX file and the recipe, and
builds the engine itself. TensorRT for RTX builds here, without a GPU; the engine can then be neither run nor inspected
here. Its networks are strongly typed: what is int8 and what is float is what the ONNX file says.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.export.building import OnnxFile, new_folder, read_onnx
from compress.export.rtx_libraries import RtxLibraries, ensure_rtx_libraries
from compress.targets import Target
from runtimes.engine import Engine, Precision, write_engine
from runtimes.records import write_json
from runtimes.spec import TensorSpec

BUILD_TIMEOUT_S = 1800
RECIPE_FORMAT, RECIPE_VERSION = "compress.build", 1

_WORKER = Path(__file__).with_name("tensorrt_worker.py")
_OLDEST_PARSER = {17: "8.6", 20: "10.0"}  # highest opset -> TensorRT release: docs/operators.md of onnx/onnx-tensorrt
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
    if precision not in ("int8", "fp32"):
        raise CompressError(
            f"target {target.name!r}: a {precision} engine is strongly typed, so the ONNX file must be {precision} "
            "itself, and it is float32: ask for int8 or fp32"
        )
    libraries = ensure_rtx_libraries()
    job = {
        "module": libraries.module,
        "python_path": None if libraries.python_path is None else str(libraries.python_path),
        "profile": profile,
    }
    result = _run_worker(job, libraries, source, into)
    varying = "" if result["fixed_addresses"] else "; at random addresses: a second build may differ in tensors' names"
    return {
        "entry": "model.engine",
        "built_with": {"tensorrt_rtx": libraries.version, libraries.module: result["version"]},
        "state": "built, not run",
        "notes": [
            "built ahead of time, without a GPU: never run or inspected, so the layers' real precision is unverified"
            + varying,
            f"layers of the parsed network: {_counts(result['layers'])}",
            f"tensors of the parsed network: {_counts(result['tensors'])}",
            *(f"warning of the builder: {text}" for text in dict.fromkeys(result["warnings"])),
        ],
    }


def _write_recipe(source: OnnxFile, target: Target, into: Path, profile: Profile, precision: Precision) -> Made:
    (into / "model.onnx").write_bytes(source.data)
    write_json(into / "build.json", recipe(source, target, profile, precision))
    return {
        "entry": "model.onnx",
        "built_with": {},
        "state": "build on the device",
        "notes": ["the engine is built from model.onnx on the device, as build.json says; written, never run"],
    }


def recipe(source: OnnxFile, target: Target, profile: Profile, precision: Precision) -> dict[str, Any]:
    """How the engine is built on the device: one entry per range of TensorRT versions, the first that fits holds.

    Before 11 the builder is told which precisions it may use; from 11 on the types are those in the ONNX file.
    """
    oldest = next((version for opset, version in sorted(_OLDEST_PARSER.items()) if source.opset <= opset), None)
    if oldest is None:
        raise CompressError(
            f"{source.path} has opset {source.opset}, which the TensorRT of {target.name!r} may not know: "
            f"export it with opset {max(_OLDEST_PARSER)}"
        )
    workspace_mib = target.memory_gib * _MIB_PER_GIB // 4 if target.memory_gib else None  # the GPU shares the memory
    half = ["FP16"] if "fp16" in (precision, target.float if precision == "int8" else None) else []
    flags = ["INT8", *half] if precision == "int8" else half
    builds = [_entry(f">={oldest},<11", flags, profile, workspace_mib)]
    if precision in ("int8", "fp32"):
        builds.append(_entry(">=11", [], profile, workspace_mib))
    return {
        "format": RECIPE_FORMAT,
        "version": RECIPE_VERSION,
        "onnx": "model.onnx",
        "engine": "model.engine",
        "precision": precision,
        "expected": {"tensorrt": target.tensorrt, "jetpack": target.jetpack},
        "workspace_mib": workspace_mib,
        "profile": {name: dict(zip(("min", "opt", "max"), shapes, strict=True)) for name, shapes in profile.items()},
        "builds": builds,
    }


def _entry(versions: str, flags: list[str], profile: Profile, workspace_mib: int | None) -> dict[str, Any]:
    command = ["trtexec", "--onnx=model.onnx", "--saveEngine=model.engine", "--skipInference"]
    command += [f"--{flag.lower()}" for flag in flags]
    if workspace_mib:
        command.append(f"--memPoolSize=workspace:{workspace_mib}M")
    if any(low != high for low, _, high in profile.values()):  # trtexec refuses shapes for a static model
        for index, kind in enumerate(("min", "opt", "max")):
            shapes = (f"{name}:{'x'.join(map(str, sizes[index]))}" for name, sizes in profile.items())
            command.append(f"--{kind}Shapes={','.join(shapes)}")
    return {"tensorrt": versions, "flags": flags, "trtexec": shlex.join(command)}


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


def _run_worker(job: dict[str, Any], libraries: RtxLibraries, source: OnnxFile, into: Path) -> dict[str, Any]:
    """Build in a process of its own, which ends with this one, with an error, or when its time is over."""
    paths = (str(libraries.library_path or ""), os.environ.get("LD_LIBRARY_PATH", ""))
    environment = {"LD_LIBRARY_PATH": os.pathsep.join(filter(None, paths))}  # nothing else: see fix_addresses
    with tempfile.TemporaryDirectory(prefix="compress-tensorrt-") as name:
        folder = Path(name)
        (folder / "model.onnx").write_bytes(source.data)
        (folder / "job.json").write_text(json.dumps({**job, "parent": os.getpid()}), encoding="utf-8")
        with subprocess.Popen(
            [sys.executable, "-I", str(_WORKER)], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            try:
                said, _ = process.communicate(timeout=BUILD_TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                raise CompressError(
                    f"TensorRT did not finish building {source.path} within {BUILD_TIMEOUT_S} s: make the model or the "
                    "range of its dynamic dimensions smaller, or leave out this target"
                ) from error
            finally:
                process.kill()
        if not (folder / "result.json").is_file():
            last = (said.strip().splitlines() or ["it said nothing"])[-1]
            raise CompressError(f"the TensorRT builder died of {_ending(process.returncode)} on {source.path}: {last}")
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if result["error"] is not None:
            raise CompressError(f"TensorRT refuses {source.path}: {result['error']}")
        for file in ("model.engine", "build.log"):
            shutil.move(folder / file, into / file)
    return dict(result)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())


_BUILDERS = {"tensorrt_rtx": _build_rtx, "tensorrt": _write_recipe}
