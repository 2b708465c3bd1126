"""From a module to a model: trace its graphs, infer the specs, check what the file will promise, and write it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from compress.bounds import bounded
from compress.errors import CompressError
from compress.factory import check_factory, factory_reference
from compress.model import Factory, Graph, Input, Model, ModelProcessing, ProgramGraph
from compress.modelfile import check_finite, write_model
from compress.processing import read_processing, section_of
from compress.program import named_outputs, trace
from compress.prune.absent import absent
from compress.prune.branches import without
from runtimes.errors import RuntimesError
from runtimes.spec import Dim, Feed, Modality, TensorSpec, check_feed

BATCH = Dim("batch", 1, 1, 64)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    example: Mapping[str, Any],
    inputs: Mapping[str, Input] | None = None,
    components: Mapping[str, str] | None = None,
    factory: str | Callable[..., nn.Module] | None = None,
    factory_kwargs: Mapping[str, Any] | None = None,
    graphs: Mapping[str, Graph] | None = None,
    chain: Mapping[str, Any] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    processing: Path | str | Mapping[str, Any] | None = None,
    name: str | None = None,
) -> Model:
    """Write a trained module as a model file, and return what was written.

    Args:
        model: the module, in any mode; it is exported in evaluation mode.
        path: the file to write; it appears complete or not at all.
        example: one feed that reaches every branch, by the names of ``forward``'s parameters; arrays or tensors.
        inputs: modality and dynamic dimensions per input; what is left out is inferred from the example.
        components: component name -> module path; by default the top-level children.
        factory: ``package.module:function`` (or the function) that rebuilds the module, needed by prune.
        factory_kwargs: its keyword arguments, JSON only.
        graphs: what is exported as one engine each; by default one graph, ``forward``.
        chain: how the graphs feed each other, the loop of a decoder above all, as ``docs/embedding.md`` has it; the
            inputs and outputs of the model are then the chain's. Left out where no graph takes what another gives.
        labels: output name -> what each index of its last axis means, for outputs whose argmax is the answer.
        processing: how pictures, strings, sounds and measurements become inputs, and outputs answers: a record as
            ``docs/processing.md`` has it, or the path of a JSON file of one. Every bundle of the model carries it.
        name: what reports call the model; by default the module's class.

    Raises:
        CompressError: if the module cannot be exported, a weight is not finite, a component does not exist, or the
            factory does not reproduce the example's outputs; if the chain does not fit the graphs.
    """
    reference = factory_reference(factory, factory_kwargs or {})
    exported = export_model(
        model, name=name or type(model).__name__, example=example, inputs=inputs, components=components,
        factory=reference, graphs=graphs, chain=chain, labels=labels,
        processing=None if processing is None else read_processing(processing),
    )  # fmt: skip
    if reference is not None:
        check_factory(exported, model, graphs or {})
    write_model(exported, Path(path))
    return exported


def export_model(
    module: nn.Module,
    *,
    name: str,
    example: Mapping[str, Any],
    inputs: Mapping[str, Input] | None = None,
    components: Mapping[str, str] | None = None,
    factory: Factory | None = None,
    graphs: Mapping[str, Graph] | None = None,
    chain: Mapping[str, Any] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    channels: Mapping[str, Any] | None = None,
    processing: ModelProcessing | None = None,
) -> Model:
    """Trace ``module`` into a :class:`Model`; the arguments are :func:`save`'s."""
    feed = {key: _to_numpy(key, value) for key, value in example.items()}
    check_finite(module.state_dict(keep_vars=True))
    named_components = _check_components(module, components)
    graphs = graphs or {"forward": Graph("forward", tuple(feed))}
    unknown = [key for key in (inputs or {}) if key not in feed]
    if unknown:
        raise CompressError(f"inputs names {unknown[0]!r}, which the example lacks: it has {list(feed)}")
    dims = {d.name: d for i in (inputs or {}).values() for d in i.dims or () if isinstance(d, Dim)}
    specs = {key: _input_spec(key, value, (inputs or {}).get(key, Input()), dims) for key, value in feed.items()}
    try:
        check_feed(specs.values(), feed, source="the example")
    except RuntimesError as error:
        raise CompressError(str(error)) from error
    programs = {key: _trace_graph(module, graph, feed, specs) for key, graph in graphs.items()}
    _check_names(feed, programs)
    if len(programs) > 1:
        for key, traced in programs.items():
            _rename_constants(key, traced.program)
    named = _check_labels(labels or {}, programs)
    weights: dict[str, torch.Tensor] = {}
    for graph in programs.values():
        weights.update({key: value.detach() for key, value in graph.program.state_dict.items()})
        weights.update({k: v for k, v in graph.program.constants.items() if isinstance(v, torch.Tensor)})
    made = Model(
        name=name, graphs=programs, chain=chain, weights=weights, components=named_components, example=feed,
        factory=factory, channels=channels or {}, labels=named, processing=processing, module=module,
    )  # fmt: skip
    try:
        made.wiring  # noqa: B018 - parsed, to be told of now
    except RuntimesError as error:
        raise CompressError(str(error)) from error
    if processing is not None:
        section_of(made)
    return made


def _trace_graph(module: nn.Module, graph: Graph, feed: Feed, specs: Mapping[str, TensorSpec]) -> ProgramGraph:
    if not hasattr(module, graph.method):
        raise CompressError(f"{type(module).__name__} has no method {graph.method!r} to export as a graph")
    names = graph.inputs or tuple(feed)
    missing = [name for name in names if name not in feed]
    if missing:
        raise CompressError(
            f"graph {graph.method!r} takes {missing[0]!r}, which the example lacks: it has {list(feed)}"
        )
    example = {name: feed[name] for name in names}
    parameters = inspect.signature(getattr(module, graph.method)).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    strange = [name for name in names if name not in parameters and not takes_any]
    if strange:
        raise CompressError(
            f"the example has an input {strange[0]!r}, but {graph.method}() takes {list(parameters)}: "
            "use the names of its parameters"
        )
    inputs = tuple(specs[name] for name in names)
    training = module.training
    try:
        outputs = named_outputs(module.eval(), example, graph.method)
        program = trace(module, example, inputs, graph.method)
        if gone := absent(module):
            without(program, frozenset(gone))
            _check_left_out(program, example, outputs)
    finally:
        module.train(training)
    inputs = bounded(program, inputs)
    specified = _output_specs(program, inputs, list(outputs))
    _check_outputs(program, specified, names)
    return ProgramGraph(program=program, inputs=inputs, outputs=specified, method=graph.method)


def _check_left_out(program: ExportedProgram, example: Feed, outputs: Mapping[str, torch.Tensor]) -> None:
    """The program, from which branches were left out, computes what the module does in which they are zero."""
    with torch.no_grad():
        feed = {name: torch.from_numpy(np.array(value)) for name, value in example.items()}
        found = program.module(check_guards=False)(**feed)
    for (name, expected), value in zip(outputs.items(), found, strict=False):
        if value.shape != expected.shape or not torch.allclose(value, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
            raise CompressError(f"output {name!r} is another once the branches that were removed are left out of the "
                                "exported program: protect them when the model is pruned")


def _check_outputs(program: ExportedProgram, outputs: Sequence[TensorSpec], inputs: Sequence[str]) -> None:
    """Refuse an output that engines could not give: one called as an input is, or one that no input has a part in."""
    for spec in outputs:
        if spec.name in inputs:
            raise CompressError(f"output {spec.name!r} is called as an input is: return it under another name")
    reached = set(program.graph_signature.user_inputs)
    for node in program.graph.nodes:
        if any(source.name in reached for source in node.all_input_nodes):
            reached.add(node.name)
    (results,) = next(node for node in program.graph.nodes if node.op == "output").args
    for spec, node in zip(outputs, results[-len(outputs) :], strict=True):
        if node.name not in reached:
            raise CompressError(f"output {spec.name!r} is the same for all inputs: leave it out of what forward() "
                                "returns, and keep it beside the model")


def _rename_constants(graph: str, program: ExportedProgram) -> None:
    """Every program calls the constants in its code ``lifted_tensor_0`` and on: keep those of two graphs apart."""
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.CONSTANT_TENSOR and spec.target is not None:
            program.constants[f"{graph}_{spec.target}"] = program.constants.pop(spec.target)
            spec.target = f"{graph}_{spec.target}"


def _output_specs(program: Any, inputs: tuple[TensorSpec, ...], names: list[str]) -> tuple[TensorSpec, ...]:
    dims: dict[Any, Dim] = {}
    placeholders = {n.name: n for n in program.graph.nodes if n.op == "placeholder"}
    for spec, name in zip(inputs, program.graph_signature.user_inputs, strict=True):
        for size, dim in zip(placeholders[name].meta["val"].shape, spec.shape, strict=True):
            if isinstance(dim, Dim) and not isinstance(size, int):
                dims[size.node.expr] = dim
    batch = {spec.shape[spec.batch_axis] for spec in inputs if spec.batch_axis is not None}
    results = next(n for n in program.graph.nodes if n.op == "output").args[0]
    specs = []
    for name, node in zip(names, results[-len(names) :], strict=True):
        value = node.meta["val"]
        shape = tuple(_output_dim(size, dims, f"{name}_axis{axis}") for axis, size in enumerate(value.shape))
        axis = next((i for i, size in enumerate(shape) if size in batch and isinstance(size, Dim)), None)
        dtype = str(value.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name=name, dtype=dtype, shape=shape, batch_axis=axis, modality="embedding"))
    return tuple(specs)


def _output_dim(size: Any, dims: Mapping[Any, Dim], name: str) -> int | Dim:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression in dims:
        return dims[expression]
    known = [symbol for symbol in expression.free_symbols if symbol in dims]
    if len(known) < len(expression.free_symbols):
        raise CompressError(f"output {name.rpartition('_axis')[0]!r} has a size that depends on values (axis "
                            f"{name.rpartition('_axis')[2]}): return all of them, with a mask, in place of those found")
    at = {which: int(expression.subs({s: getattr(dims[s], which) for s in known})) for which in ("min", "opt", "max")}
    return Dim(name, **at) if at["min"] < at["max"] else at["opt"]


def _input_spec(name: str, value: np.ndarray, given: Input, dims: Mapping[str, Dim]) -> TensorSpec:
    axes = given.dims if given.dims is not None else ("batch",)
    if len(axes) > value.ndim:
        raise CompressError(f"input {name!r} has {value.ndim} axes in the example, but {len(axes)} dims are given")
    shape: list[int | Dim] = list(value.shape)
    for axis, dim in enumerate(axes):
        if isinstance(dim, str):
            dim = dims.get(dim) or (BATCH if dim == "batch" else Dim(dim, 1, value.shape[axis], 4 * value.shape[axis]))
        if dim is not None:
            shape[axis] = dim
    batch = next((axis for axis, dim in enumerate(shape) if isinstance(dim, Dim) and dim.name == "batch"), None)
    return TensorSpec(
        name=name, dtype=value.dtype.name, shape=tuple(shape), batch_axis=batch,
        modality=given.modality or _guess_modality(value),
    )  # fmt: skip


def _guess_modality(value: np.ndarray) -> Modality:
    if value.dtype.kind in "iu" and value.ndim == 2:
        return "text"
    by_rank: dict[int, Modality] = {4: "image", 5: "video"}
    return by_rank.get(value.ndim, "sensor")


def _to_numpy(name: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16:
        raise CompressError(f"example input {name!r} is bfloat16, which numpy lacks: give the model float32 inputs")
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise CompressError(f"example input {name!r} has dtype {array.dtype}: give an array or tensor of numbers")
    if array.ndim == 0:
        raise CompressError(f"example input {name!r} is a single number: give it at least a batch axis")
    return array


def _check_components(module: nn.Module, components: Mapping[str, str] | None) -> dict[str, str]:
    if components is None:
        return {name: name for name, child in module.named_children() if any(True for _ in child.parameters())}
    paths = {path for path, _ in module.named_modules()}
    for name, path in components.items():
        if path not in paths:
            raise CompressError(
                f"component {name!r} is at {path!r}, but {type(module).__name__} has no such sub-module"
            )
    return dict(components)


def _check_names(feed: Feed, programs: Mapping[str, ProgramGraph]) -> None:
    """Names stand in ONNX files, data sets and file names: letters, digits, '_', '.', '-' and '/'."""
    for name in [*feed, *(spec.name for graph in programs.values() for spec in graph.outputs)]:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]*", name) or ".." in name:
            raise CompressError(f"input or output {name!r:.80} has a name files cannot carry: use letters, digits, '_'")
    if "target" in feed:
        raise CompressError("an input is called 'target', the name of the labels in a data set: rename the parameter")


def _check_labels(
    labels: Mapping[str, Sequence[str]], programs: Mapping[str, ProgramGraph]
) -> dict[str, tuple[str, ...]]:
    outputs = {spec.name: spec for graph in programs.values() for spec in graph.outputs}
    for name, words in labels.items():
        if name not in outputs:
            raise CompressError(f"labels names output {name!r}, but the model's outputs are {list(outputs)}")
        if outputs[name].shape[-1] != len(words):
            raise CompressError(
                f"output {name!r} is {outputs[name].describe()}, but {len(words)} labels are given for it"
            )
    return {name: tuple(words) for name, words in labels.items()}
