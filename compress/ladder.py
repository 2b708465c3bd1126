"""The parity ladder of a run: torch, ONNX and every engine that runs here, each beside the form it was made from.

Each graph is compared on the feeds that the chain gives it, so that a difference is that graph's own; then the chain of
each form is, from end to end.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compress.bench.record import Role
from compress.model import Model
from compress.parity import ParityResult, ParityStep, joined, parity
from compress.steps import graph_feeds
from compress.targets import Target
from runtimes.backends import open_engine
from runtimes.engine import Precision
from runtimes.engineset import EngineSet
from runtimes.spec import Feed, largest_batch

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.stages.engines import Build

REFERENCE = "torch fp32"
SAMPLES = 64            # of a run
LOOP_SAMPLES = 8        # of a run whose model answers token by token
BATCH = 32

Run = Callable[[Feed], dict[str, np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class Form:
    """A form of the model: what runs each of its graphs, and the form it was made from."""

    name: str
    kind: str
    precision: Precision
    runs: Mapping[str, Run]
    after: str | None = None


def samples_for(model: Model) -> int:
    """How many samples a run compares."""
    wiring = None if model.chain is None else model.wiring
    loops = wiring is not None and any(step.loop is not None for step in wiring.steps)
    return LOOP_SAMPLES if loops else SAMPLES


def ladder(builds: Sequence[Build], shipped: Model, quantized: Mapping[str, Model]) -> list[Form]:
    """The forms of what ships and its float controls; the original's engines belong to another network.

    Args:
        builds: the engines of a run.
        shipped: the float model that ships or was quantized.
        quantized: scheme -> the quantized model.
    """
    from compress.quantize.prepare import convert

    forms = [Form(name=REFERENCE, kind="torch", precision="fp32", runs=_torch_runs(shipped))]
    for scheme, model in quantized.items():
        forms.append(Form(name=f"torch int8 {scheme}", kind="torch", precision="int8", runs=_torch_runs(convert(model)),
                          after=REFERENCE))
    named: dict[tuple[Path, ...], str] = {}
    for build in builds:
        if build.role not in ("control", "shipped") and _is_pruned(builds):
            continue
        files, int8 = tuple(build.onnx.values()), build.precision == "int8"
        if files not in named:
            name = f"onnx int8 {build.target.scheme}" if int8 else "onnx fp32"
            named[files] = f"{name}, opset {build.target.opset}" if name in named.values() else name
            forms.append(Form(
                name=named[files], kind="onnx", precision="int8" if int8 else "fp32",
                runs={graph: _onnx_run(path) for graph, path in build.onnx.items()},
                after=f"torch int8 {build.target.scheme}" if int8 else REFERENCE))
        if build.engines is not None and build.engines.state == "runnable":
            runs: dict[str, Run] = {
                graph: open_engine(engine).run for graph, engine in build.engines.engines.items()}
            forms.append(Form(name=build.name, kind=build.engines.backend, precision=build.precision, runs=runs,
                              after=named[files]))
    return forms


def climb(
    forms: Sequence[Form], model: Model, data: CalibrationSet, *, graph: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ParityResult:
    """Compare the forms on every sample of ``data``, which holds the inputs of ``model``.

    Args:
        forms: of :func:`ladder`.
        model: the float model, the first of them, whose chain says what each graph is run on.
        data: the samples.
        graph: compare this graph alone; else all, and what their chains answer too, if they have one.
        progress: called with the batches compared and how many there are.

    Raises:
        CompressError: as :func:`compress.parity.parity`.
    """
    batches = list(data.batches(largest_batch(data.inputs, BATCH)))
    parts = [graph] if graph is not None else [*model.graphs, *([] if model.chain is None else [None])]
    results, done = [], 0
    answers = None if model.wiring is None else _answers(model)

    def step(_: int) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(min(done, total), total)

    total = len(batches) * len(parts)
    for part in parts:
        if part is None:
            results.append(parity([_chained(form, model) for form in forms], batches, answers=answers, progress=step))
        else:
            steps = [_alone(form, part, prefixed=len(parts) > 1) for form in forms]
            results.append(parity(steps, _given(model, part, batches), answers=answers, progress=step))
    return joined(results, feeds=len(batches), samples=len(data))


def _answers(model: Model) -> set[str]:
    """The outputs that are scores of classes, by each name that they have: in the chain, in their graph, with it.

    The largest value of an embedding, of a map or of several numbers is no answer.
    """
    from compress.distill.graphs import compared_sources, wiring_of
    from compress.distill.kinds import outputs_of

    wiring = wiring_of(model)
    sources, graphs = compared_sources(wiring), {step.name: step.graph for step in wiring.steps}
    found = [one.spec.name for one in outputs_of(model) if one.kind in ("scores", "shares")]
    return {name for output in found for source in [sources[output]]
            for name in (output, source.name, f"{graphs[str(source.step)]}.{source.name}")}  # fmt: skip


def _given(model: Model, graph: str, batches: Sequence[Feed]) -> Iterator[Feed]:
    for feed in batches:
        yield from graph_feeds(model, feed)[graph]


def _alone(form: Form, graph: str, *, prefixed: bool) -> ParityStep:
    """A form of one graph; the name of an output tells the graph where there are several."""
    run = form.runs[graph]

    def named(feed: Feed) -> dict[str, np.ndarray]:
        return {f"{graph}.{name}": value for name, value in run(feed).items()}

    return ParityStep(name=form.name, kind=form.kind, precision=form.precision, after=form.after,
                      run=named if prefixed else run)


def _chained(form: Form, model: Model) -> ParityStep:
    """The chain of a form, its answers padded to one length."""
    from compress.program import chain_of

    chain = chain_of(model, form.runs)
    loops = {step.name: step.loop for step in chain.wiring.steps if step.loop is not None}

    def run(feed: Feed) -> dict[str, np.ndarray]:
        outputs = chain.run(feed)
        for name, source in chain.wiring.sources.items():
            if (loop := loops.get(str(source.step))) is not None:
                missing = loop.max_steps - outputs[name].shape[1]
                outputs[name] = np.pad(outputs[name], ((0, 0), (0, missing)), constant_values=loop.pad)
        return outputs

    return ParityStep(name=form.name, kind=form.kind, precision=form.precision, after=form.after, run=run)


def _torch_runs(model: Model) -> dict[str, Run]:
    from compress.program import program_runner

    return {name: program_runner(graph) for name, graph in model.graphs.items()}


def _is_pruned(builds: Sequence[Build]) -> bool:
    """Whether what ships is another network than the original; if not, the original's engines are its controls."""
    return any(build.role == "control" for build in builds)


def _onnx_run(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def run(feed: Feed) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    return run


def torch_runner(model: Model) -> Run:
    """Run ``model`` in torch, all graphs of it, in int8 where it is quantized."""
    from compress.program import model_runner

    if model.quantization is not None:
        from compress.quantize.prepare import convert

        model = convert(model)
    return model_runner(model)


def check(model: Model, target: Target, data: CalibrationSet, *, graph: str | None = None) -> ParityResult:
    """The ladder of one target: torch, ONNX and the engines, in float and, if the model is quantized, in int8.

    Args:
        model: of one graph or several.
        target: whose engines.
        data: samples of the model's inputs.
        graph: as :func:`climb` takes it.
    """
    from compress.export import build_engine, export_onnx, has_int8, only
    from compress.stages.engines import Build

    plain = dataclasses.replace(model, quantization=None)
    asked = model if graph is None else only(model, graph)
    with tempfile.TemporaryDirectory(prefix="compress-") as folder:
        builds = []
        forms: tuple[tuple[Role, Model, Precision], ...] = (("control", plain, "fp32"), ("shipped", model, "int8"))
        for role, form, precision in forms:
            if precision == "int8" and not has_int8(asked):
                continue
            place = Path(folder) / precision
            place.mkdir()
            parts = {name: only(form, name) for name in asked.graphs}
            onnx = {name: export_onnx(part, target, place / f"{name}.onnx") for name, part in parts.items()}
            engines = {name: build_engine(onnx[name], part, target, place / name) for name, part in parts.items()}
            builds.append(Build(name=f"{target.name} {precision}", role=role, target=target, precision=precision,
                                onnx=onnx, engines=EngineSet(engines=engines, chain=model.chain)))
        quantized: dict[str, Model] = {target.scheme: model} if has_int8(asked) else {}
        return climb(ladder(builds, plain, quantized), plain, data, graph=graph)
