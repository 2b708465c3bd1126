"""The model file: a zip of JSON and safetensors that holds a whole model, written by ``save`` and read by ``load``.

Members: ``model.json`` (format, specs, components, factory, channel map, quantization, and the SHA-256 of every other
member), ``graphs/<name>.json`` (the exported program in torch's schema, without tensors), ``weights.safetensors``
(parameters, buffers, constants) and ``example.safetensors`` (a feed). Nothing in it is a pickle, and reading it runs
no code from it.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from compress.errors import CompressError
from compress.model import Factory, Graph, Input, Model, ProgramGraph, Quantization
from compress.program import module_path, named_outputs, program_from_json, program_to_json, trace
from compress.store import atomic_write
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest
from runtimes.spec import Dim, Feed, Modality, TensorSpec, check_feed

FORMAT = "compress.model"
VERSION = 1
BATCH = Dim("batch", 1, 1, 64)
# What reading damaged JSON, tables and archives raises; all of it is turned into a CompressError that names the file.
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, RuntimeError)


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
    labels: Mapping[str, Sequence[str]] | None = None,
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
        labels: output name -> what each index of its last axis means, for outputs whose argmax is the answer.
        name: what reports call the model; by default the module's class.

    Raises:
        CompressError: if the module cannot be exported, a weight is not finite, a component does not exist, or the
            factory does not reproduce the example's outputs.
    """
    reference = _factory_reference(factory, factory_kwargs or {})
    exported = export_model(
        model, name=name or type(model).__name__, example=example, inputs=inputs, components=components,
        factory=reference, graphs=graphs, labels=labels,
    )  # fmt: skip
    if reference is not None:
        _check_factory(exported, model, graphs or {})
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
    labels: Mapping[str, Sequence[str]] | None = None,
    channels: Mapping[str, Any] | None = None,
) -> Model:
    """Trace ``module`` into a :class:`Model`; the arguments are :func:`save`'s."""
    feed = {key: _to_numpy(key, value) for key, value in example.items()}
    _check_finite(module.state_dict(keep_vars=True))
    named_components = _check_components(module, components)
    graphs = graphs or {"forward": Graph("forward", tuple(feed))}
    unknown = [key for key in (inputs or {}) if key not in feed]
    if unknown:
        raise CompressError(f"inputs names {unknown[0]!r}, which the example lacks: it has {list(feed)}")
    dims = {d.name: d for i in (inputs or {}).values() for d in i.dims or () if isinstance(d, Dim)}
    specs = {key: _input_spec(key, value, (inputs or {}).get(key, Input()), dims) for key, value in feed.items()}
    programs = {key: _trace_graph(module, graph, feed, specs) for key, graph in graphs.items()}
    if len(programs) > 1:
        for key, traced in programs.items():
            _rename_constants(key, traced.program)
    named = _check_labels(labels or {}, programs)
    weights: dict[str, torch.Tensor] = {}
    for graph in programs.values():
        weights.update({key: value.detach() for key, value in graph.program.state_dict.items()})
        weights.update({k: v for k, v in graph.program.constants.items() if isinstance(v, torch.Tensor)})
    return Model(
        name=name, graphs=programs, weights=weights, components=named_components, example=feed,
        factory=factory, channels=channels or {}, labels=named, module=module,
    )  # fmt: skip


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
    finally:
        module.train(training)
    return ProgramGraph(program=program, inputs=inputs, outputs=_output_specs(program, inputs, list(outputs)))


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


def _check_finite(tensors: Mapping[str, torch.Tensor], source: str = "") -> None:
    """Parameters are finite; a buffer may hold -inf, as attention masks do, and nothing else that is not finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        allowed = torch.isfinite(tensor) if isinstance(tensor, nn.Parameter) else tensor < torch.inf
        if not allowed.all():
            raise CompressError(
                f"{source}weight {name!r} has values that are not finite: the model did not train; "
                "save it from a good checkpoint"
            )


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


# --- factories --------------------------------------------------------------------------------------------------------


def _factory_reference(factory: str | Callable[..., nn.Module] | None, kwargs: Mapping[str, Any]) -> Factory | None:
    if factory is None:
        return None
    if callable(factory):
        module, name = factory.__module__, factory.__qualname__
        if module == "__main__" or "<" in name:
            raise CompressError(
                f"factory {name!r} of {module!r} cannot be found again by its name: define it at the top of a module "
                "that can be imported, not in a script, and not as a lambda or closure"
            )
        factory = f"{module}:{name}"
    if factory.count(":") != 1 or factory.startswith("__main__:"):
        raise CompressError(f"factory {factory!r} is not of the form 'package.module:function' (and not of __main__)")
    try:
        plain = json.loads(json.dumps(dict(kwargs), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CompressError(f"factory_kwargs must be JSON: {error}") from error
    return Factory(reference=factory, kwargs=plain)


def _check_factory(model: Model, module: nn.Module, graphs: Mapping[str, Graph]) -> None:
    rebuilt = build_module(model, model.factory.reference if model.factory else None)
    rebuilt_keys, keys = set(rebuilt.state_dict()), set(module.state_dict())
    if rebuilt_keys != keys:
        raise CompressError(
            f"the factory builds another network: its weights differ by {sorted(rebuilt_keys ^ keys)[:3]}"
        )
    training = module.training
    module.eval()
    try:
        for key, graph in model.graphs.items():
            feed = {spec.name: model.example[spec.name] for spec in graph.inputs}
            method = graphs[key].method if key in graphs else "forward"
            ours, theirs = named_outputs(module, feed, method), named_outputs(rebuilt, feed, method)
            for name in ours:
                if name not in theirs or not torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5):
                    raise CompressError(
                        f"the factory with these weights does not reproduce output {name!r} of the example"
                    )
    finally:
        module.train(training)


def build_module(model: Model, factory: str | None = None) -> nn.Module:
    """Rebuild the module from its factory, its channel map and its weights, in evaluation mode.

    Args:
        model: what to rebuild.
        factory: ``package.module:function`` that the user names; a factory that only the file names is called when it
            is one of ``compress.zoo``, never otherwise.
    """
    reference = _allowed_factory(model, factory)
    kwargs = model.factory.kwargs if model.factory is not None else {}
    try:
        module = resolve(reference, "factory")(**kwargs)
    except CompressError:
        raise
    except Exception as error:  # it is the user's code
        raise CompressError(
            f"factory {reference!r} failed with {dict(kwargs)}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(module, nn.Module):
        raise CompressError(f"factory {reference!r} returned {type(module).__name__}, not an nn.Module")
    if model.channels:
        from compress.prune.channels import apply_channels

        apply_channels(module, model.channels, model.weights)
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in model.weights]
    if missing:
        raise CompressError(f"factory {reference!r} builds a network with a weight {missing[0]!r} that the model lacks")
    wrong = [key for key in wanted if wanted[key].shape != model.weights[key].shape]
    if wrong:
        raise CompressError(
            f"factory {reference!r} builds {wrong[0]!r} of shape {tuple(wanted[wrong[0]].shape)}, the model has "
            f"{tuple(model.weights[wrong[0]].shape)}: check factory_kwargs"
        )
    module.load_state_dict({key: model.weights[key] for key in wanted})
    return module.eval()


def _allowed_factory(model: Model, factory: str | None) -> str:
    if factory is not None:
        return factory
    if model.factory is None:
        raise CompressError(
            f"model {model.name!r} has no factory, so its module cannot be rebuilt: save it with "
            "compress.save(..., factory='package.module:function'), or name one with --factory"
        )
    if re.fullmatch(r"compress\.zoo\.[a-z_]+:build", model.factory.reference) is None:
        raise CompressError(
            f"the model file asks to call {model.factory.reference!r}: if you trust that function, say so with "
            f"--factory {model.factory.reference}"
        )
    return model.factory.reference


def resolve(reference: str, what: str) -> Any:
    """The object a ``package.module:name`` that the *user* wrote refers to."""
    module, _, name = reference.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise CompressError(
            f"{what} {reference!r} cannot be imported ({error}): is its package on PYTHONPATH?"
        ) from error


# --- the file ---------------------------------------------------------------------------------------------------------


def write_model(model: Model, path: Path) -> None:
    """Write ``model`` to ``path``; the same model gives the same bytes."""
    names = _aliases(model.weights)
    tensors = _separated({key: value for key, value in model.weights.items() if key not in names})
    example = {key: np.ascontiguousarray(value) for key, value in model.example.items()}
    members: dict[str, bytes] = {
        f"graphs/{key}.json": program_to_json(graph.program).encode() for key, graph in model.graphs.items()
    }
    members["weights.safetensors"] = safetensors.torch.save(tensors)
    members["example.safetensors"] = safetensors.torch.save({k: torch.from_numpy(v) for k, v in example.items()})
    header = {
        "format": FORMAT,
        "version": VERSION,
        "name": model.name,
        "graphs": {
            key: {"inputs": [s.to_json() for s in graph.inputs], "outputs": [s.to_json() for s in graph.outputs]}
            for key, graph in model.graphs.items()
        },
        "components": dict(model.components),
        "factory": None if model.factory is None else dataclasses.asdict(model.factory),
        "channels": model.channels,
        "labels": {name: list(words) for name, words in model.labels.items()},
        "quantization": None if model.quantization is None else dataclasses.asdict(model.quantization),
        "aliases": names,
        "files": {name: bytes_digest(data) for name, data in sorted(members.items())},
    }
    members = {"model.json": json.dumps(header, indent=1, sort_keys=True, allow_nan=False).encode(), **members}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), data)
    atomic_write(path, buffer.getvalue())


def _aliases(weights: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of tied weights: name -> the first name of the same tensor."""
    owners: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    tied = {}
    for name, value in weights.items():
        key = (value.data_ptr(), tuple(value.shape), value.stride())
        if value.numel() and key in owners:
            tied[name] = owners[key]
        else:
            owners[key] = name
    return tied


def read_model(path: Path) -> Model:
    """Read a file of :func:`write_model`.

    Raises:
        CompressError: if the file is not one, is damaged, or was refused; nothing in it is ever run.
    """
    members = read_members(path)
    header = _read_header(path, members)
    try:
        stored = safetensors.torch.load(members["weights.safetensors"])
        example = {k: v.numpy() for k, v in safetensors.torch.load(members["example.safetensors"]).items()}
        weights = {**stored, **{name: stored[owner] for name, owner in header["aliases"].items()}}
        graphs = {
            key: ProgramGraph(
                program=program_from_json(members[f"graphs/{key}.json"].decode(), weights, str(path)),
                inputs=tuple(TensorSpec.from_json(s) for s in entry["inputs"]),
                outputs=tuple(TensorSpec.from_json(s) for s in entry["outputs"]),
            )
            for key, entry in header["graphs"].items()
        }
        for graph in graphs.values():
            _check_finite({**graph.program.state_dict, **graph.program.constants}, f"{path}: ")
            _check_specs(graph)
        model = Model(
            name=_text(header["name"]),
            graphs=graphs,
            weights=weights,
            components={_text(name): _text(at) for name, at in header["components"].items()},
            example=example,
            factory=None if header["factory"] is None else _read_factory(header["factory"]),
            channels=header["channels"],
            labels={name: tuple(map(_text, words)) for name, words in header["labels"].items()},
            quantization=None if header["quantization"] is None else _read_quantization(header["quantization"]),
        )
        for graph in graphs.values():
            check_feed(graph.inputs, {s.name: example[s.name] for s in graph.inputs}, source=f"{path}: example")
    except (*_DAMAGE, safetensors.SafetensorError, RuntimesError) as error:
        raise CompressError(
            f"{path} is damaged: {error}; copy it again, or write it anew with compress.save"
        ) from error
    return model


def _separated(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each tensor contiguous in memory of its own: safetensors refuses one that is a part of another."""
    separated: dict[str, torch.Tensor] = {}
    seen = set()
    for name, value in weights.items():
        plain = value.detach().cpu().contiguous()
        memory = plain.untyped_storage().data_ptr()
        separated[name] = plain.clone() if memory in seen else plain
        seen.add(memory)
    return separated


def read_members(path: Path) -> dict[str, bytes]:
    """Content of a zip archive whose members are each there once and not compressed, as those of torch and ours are.

    Raises:
        CompressError: if it is no such archive, is damaged, or would unpack to more than its own size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) != len(members):
                raise zipfile.BadZipFile("it holds a member twice")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise zipfile.BadZipFile("it would unpack to more than its own size")
            return {member.filename: archive.read(member) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, *_DAMAGE) as error:
        raise CompressError(
            f"{path} is damaged or not a model file ({error}): copy it again, or write it anew with compress.save"
        ) from error


def _check_specs(graph: ProgramGraph) -> None:
    """The specs of the file's header are those of its program."""
    called = graph.program.call_spec.in_spec
    names = [] if called is None else called.child(1).context
    if sorted(names) != sorted(spec.name for spec in graph.inputs):
        raise ValueError(f"its program takes {names}, its list of inputs is {[s.name for s in graph.inputs]}")
    made = len(graph.program.graph_signature.user_outputs)
    if made != len(graph.outputs):
        raise ValueError(f"its program has {made} outputs, its list {len(graph.outputs)}")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _read_factory(data: Mapping[str, Any]) -> Factory:
    return Factory(reference=_text(data["reference"]), kwargs={_text(k): v for k, v in data["kwargs"].items()})


def _read_header(path: Path, members: Mapping[str, bytes]) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(members["model.json"])
        if header["format"] != FORMAT:
            raise CompressError(f"{path} is not a model file: its format is {header['format']!r}, expected {FORMAT!r}")
        if header["version"] != VERSION:
            raise CompressError(
                f"{path} has version {header['version']} of the model format, this release reads version {VERSION}: "
                "use the release that wrote it, or save the model again"
            )
        files = dict(header["files"])
        graphs = [f"graphs/{name}.json" for name in header["graphs"]]
    except _DAMAGE as error:
        raise CompressError(
            f"{path} is not a model file of compress.save: it has no valid model.json ({error!r})"
        ) from error
    expected = {"weights.safetensors", "example.safetensors", *graphs}
    if set(files) != expected or set(members) != {"model.json", *expected}:
        odd = sorted((set(members) ^ {"model.json", *files}) | (set(files) ^ expected))
        raise CompressError(f"{path} is damaged: its list of files and what it holds do not agree on {odd[:3]}")
    for name, digest in files.items():
        if bytes_digest(members[name]) != digest:
            raise CompressError(
                f"{path} is damaged: {name} does not have the SHA-256 it was written with; copy it again"
            )
    return header


def _read_quantization(data: Mapping[str, Any]) -> Quantization:
    ranges = {g: {n: (float(r[0]), float(r[1])) for n, r in nodes.items()} for g, nodes in data["ranges"].items()}
    return Quantization(
        scheme=data["scheme"], ranges=ranges, settings=data["settings"], keep_float=tuple(data["keep_float"])
    )


def paths_of(model: Model) -> set[str]:
    """Dotted paths of all modules that any graph of ``model`` was traced through."""
    return {module_path(node) for graph in model.graphs.values() for node in graph.program.graph.nodes}
