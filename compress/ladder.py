"""The parity ladder of a run: torch, ONNX and every engine that runs here, each beside the step it was made from."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.bench.record import Role
from compress.model import Model
from compress.parity import ParityResult, ParityStep, parity
from compress.targets import Target
from runtimes.backends import open_engine
from runtimes.spec import Feed, largest_batch

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.stages.engines import Build

REFERENCE = "torch fp32"


def ladder(builds: Sequence[Build], shipped: Model, quantized: Mapping[str, Model]) -> list[ParityStep]:
    """The steps for what ships and its float controls; the original's engines belong to another network.

    Args:
        builds: the engines of a run.
        shipped: the float model that ships or was quantized.
        quantized: scheme -> the quantized model.
    """
    from compress.program import program_runner
    from compress.quantize.prepare import convert

    steps = [ParityStep(name=REFERENCE, kind="torch", precision="fp32", run=program_runner(shipped.graph))]
    named: dict[Path, str] = {}
    for scheme, model in quantized.items():
        converted = convert(model)
        steps.append(
            ParityStep(
                name=f"torch int8 {scheme}", kind="torch", precision="int8", run=program_runner(converted.graph),
                after=REFERENCE,
            )
        )  # fmt: skip
    wanted = [b for b in builds if b.role in ("control", "shipped") or not _is_pruned(builds)]
    for build in wanted:
        if build.onnx not in named:
            int8 = build.precision == "int8"
            named[build.onnx] = f"onnx int8 {build.target.scheme}" if int8 else "onnx fp32"
            steps.append(
                ParityStep(
                    name=named[build.onnx], kind="onnx", precision="int8" if int8 else "fp32",
                    run=_onnx_runner(build.onnx),
                    after=f"torch int8 {build.target.scheme}" if int8 else REFERENCE,
                )
            )  # fmt: skip
        if build.engine is not None and build.engine.state == "runnable":
            steps.append(
                ParityStep(
                    name=build.name, kind=build.engine.backend, precision=build.precision,
                    run=open_engine(build.engine).run, after=named[build.onnx],
                )
            )  # fmt: skip
    return steps


def _is_pruned(builds: Sequence[Build]) -> bool:
    """Whether what ships is another network than the original; if not, the original's engines are its controls."""
    return any(build.role == "control" for build in builds)


def _onnx_runner(path: Path) -> Callable[[Feed], dict[str, np.ndarray]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feed) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    return run


def torch_runner(model: Model) -> Callable[[Feed], dict[str, np.ndarray]]:
    """Run ``model`` in torch, all graphs of it, in int8 where it is quantized."""
    from compress.program import model_runner

    if model.quantization is not None:
        from compress.quantize.prepare import convert

        model = convert(model)
    return model_runner(model)


def check(model: Model, target: Target, data: CalibrationSet) -> ParityResult:
    """The ladder of one graph and one target: torch, ONNX and the engine, in float and, if it is quantized, in int8.

    ``data`` may hold inputs of other graphs as well.
    """
    from compress.export import build_engine, export_onnx, has_int8
    from compress.stages.engines import Build

    plain = dataclasses.replace(model, quantization=None)
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        builds = []
        forms: tuple[tuple[Role, Model, str], ...] = (("control", plain, "fp32"), ("shipped", model, "int8"))
        for role, form, precision in forms:
            if precision == "int8" and not has_int8(model):
                continue
            onnx = export_onnx(form, target, Path(folder) / f"{precision}.onnx")
            engine = build_engine(onnx, form, target, Path(folder) / precision)
            name = f"{target.name} {precision}"
            builds.append(
                Build(name=name, role=role, target=target, precision=engine.precision, onnx=onnx, engine=engine)
            )
        quantized: dict[str, Model] = {target.scheme: model} if has_int8(model) else {}
        batches = data.batches(largest_batch(model.inputs, 32))
        feeds = ({spec.name: feed[spec.name] for spec in model.inputs} for feed in batches)
        return parity(ladder(builds, plain, quantized), feeds)
