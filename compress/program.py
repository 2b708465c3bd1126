"""Exported programs: trace a module into one, store one as JSON that is safe to read back, and run one on a feed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import json
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._export.serde import schema
from torch._export.serde.serialize import (
    EnumEncoder,
    ExportedProgramDeserializer,
    ExportedProgramSerializer,
    _dataclass_to_dict,
    _dict_to_dataclass,
)
from torch.export import ExportedProgram

from compress.errors import CompressError
from compress.grammar import check_program
from compress.model import Model, ProgramGraph
from compress.recurrent import PADDED, opaque, packs
from runtimes.chain import Chain
from runtimes.spec import Feed, TensorSpec

# --- tracing ----------------------------------------------------------------------------------------------------------


def trace(module: nn.Module, example: Feed, inputs: Sequence[TensorSpec], method: str = "forward") -> ExportedProgram:
    """Export ``module.method(**example)`` with the dynamic dimensions of ``inputs``; outputs become a flat tuple.

    The module is traced in the mode it is in. Its recurrent layers become operators of any length
    (:mod:`compress.recurrent`).

    Raises:
        CompressError: when the module cannot be traced, with torch's own first line.
    """
    dims = {d.name: torch.export.Dim(d.name, min=d.min, max=d.max) for spec in inputs for d in spec.dims if d.max > 1}
    shapes = {
        spec.name: {
            axis: dims[d.name] for axis, d in enumerate(spec.shape) if not isinstance(d, int) and d.name in dims
        }
        for spec in inputs
    }
    feed = {spec.name: torch.from_numpy(widened(spec, example[spec.name])) for spec in inputs}
    try:
        with opaque(module), _flat_outputs(module, method, list(feed)), torch.no_grad(), warnings.catch_warnings():
            # A recurrent layer lists its weights anew on each call, which torch notes and undoes.
            warnings.filterwarnings("ignore", message="The tensor attributes? ")
            return torch.export.export(module, (), feed, dynamic_shapes=shapes)
    except CompressError:
        raise
    except Exception as error:  # tracing runs the user's code: anything may come out of it
        if packs(error):
            raise CompressError(f"{type(module).__name__}.{method} cannot be exported: {PADDED}") from error
        if (guarded := _guarded(error, inputs)) is not None:
            raise CompressError(f"{type(module).__name__}.{method} cannot be exported for {guarded}") from error
        raise CompressError(
            f"{type(module).__name__}.{method} cannot be exported: {type(error).__name__}: {_first_line(error)} "
            "(data-dependent control flow and untraceable code must be rewritten; a size torch calls constant must not "
            "be declared dynamic)"
        ) from error


def named_outputs(module: nn.Module, example: Feed, method: str = "forward") -> dict[str, torch.Tensor]:
    """Run ``module.method(**example)``: a lone tensor is called ``output``, a mapping keeps its keys.

    Tensors further in are called after what they are in: ``state_1``.
    """
    try:
        with torch.no_grad():
            result = getattr(module, method)(**{name: torch.from_numpy(value) for name, value in example.items()})
    except Exception as error:  # it runs the user's code
        shapes = {name: f"{value.dtype}{list(value.shape)}" for name, value in example.items()}
        raise CompressError(
            f"{type(module).__name__}.{method} fails on the example {shapes}: "
            f"{type(error).__name__}: {_first_line(error)}"
        ) from error
    return _named(result)


def _named(result: Any) -> dict[str, torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return {"output": result}
    found = list(_tensors("", result))
    if not found:
        raise CompressError(
            f"the model returned {type(result).__name__} without a tensor in it: return a tensor or a mapping"
        )
    named = dict(found)
    if len(named) < len(found):
        twice = next(name for place, (name, _) in enumerate(found) if name in dict(found[:place]))
        raise CompressError(f"two tensors that the model returned are called {twice!r}, one of them inside another "
                            "output: return them under other names")  # fmt: skip
    return named


def _tensors(name: str, value: Any) -> Iterator[tuple[Any, torch.Tensor]]:
    """The tensors in ``value``, also those further in: ``state_1`` is the second of a tuple called ``state``."""
    if isinstance(value, torch.Tensor):
        yield name, value
        return
    if isinstance(value, Mapping):
        items = list(value.items())
    elif dataclasses.is_dataclass(value):
        items = [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    else:
        items = list(enumerate(value)) if isinstance(value, (tuple, list)) else []
        name = name or "output"
    for key, each in items:
        yield from _tensors(f"{name}_{key}" if name else key, each)


@contextlib.contextmanager
def _flat_outputs(module: nn.Module, method: str, names: Sequence[str]) -> Iterator[None]:
    """Let ``module(...)`` call ``method`` and return a plain tuple, so that a program never names a user's class."""
    original = getattr(module, method)

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        return tuple(_named(original(*args, **kwargs)).values())

    signature = inspect.signature(original)
    if any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):  # torch wants each input by its name
        named = [p for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        rest = [n for n in names if n not in signature.parameters]
        named += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in rest]
        signature = signature.replace(parameters=named)
    forward.__signature__ = signature  # type: ignore[attr-defined]
    shadowed = "forward" in vars(module)
    previous = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if shadowed:
            module.forward = previous  # type: ignore[assignment]


def widened(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """torch.export fixes a size of 1 (or of 0): repeat the example along dynamic axes that have it."""
    for axis, size in enumerate(spec.shape):
        if not isinstance(size, int) and array.shape[axis] == 1 and size.max > 1:
            array = np.repeat(array, 2, axis=axis)
    return np.ascontiguousarray(array)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Constraints violated"):  # which size, and why, is on a line of its own
        return next((line.removeprefix("- ") for line in lines if line.startswith("- ")), lines[0])[:400]
    return lines[0][:300] if lines else "no message"


_GUARD = re.compile(r"- Not all values of \w+ = L\['(\w+)'\]\.size\(\)\[(\d+)\] in the .* the generated guard (.*)")
_SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")


def _guarded(error: BaseException, inputs: Sequence[TensorSpec]) -> str | None:
    """Of a size for which torch had to assume something: which, what, and what to do; ``None`` of other errors."""
    found = _GUARD.search(str(error))
    if found is None:
        return None
    shapes = {spec.name: spec.shape for spec in inputs}

    def size(match: re.Match[str]) -> str:
        dim = shapes[match[1]][int(match[2])]
        return str(dim) if isinstance(dim, int) else dim.name

    name, axis, guard = found.groups()
    dim = shapes[name][int(axis)]
    assert not isinstance(dim, int)
    return (
        f"every size of {dim.name!r}, axis {axis} of input {name!r}: the code holds for "
        f"{_SIZE.sub(size, guard).rstrip('.')}, which torch cannot tell of all from {dim.min} to {dim.max}: narrow the "
        "bounds of its Dim, multiply by a mask of torch.arange(size) where a slice takes a part of it, or leave it out "
        "of dims, which fixes it"
    )


# --- running ----------------------------------------------------------------------------------------------------------


def program_runner(graph: ProgramGraph) -> Callable[[Feed], dict[str, np.ndarray]]:
    """A function from feed to named outputs that runs ``graph`` in torch."""
    module = graph.program.module(check_guards=False)
    names = [spec.name for spec in graph.inputs]
    outputs = [spec.name for spec in graph.outputs]

    def run(feed: Feed) -> dict[str, np.ndarray]:
        with torch.no_grad(), told_as("the model fails on a feed"):
            values = module(**{name: torch.from_numpy(np.ascontiguousarray(feed[name])) for name in names})
        return {name: value.numpy() for name, value in zip(outputs, values, strict=True)}

    return run


def model_runner(model: Model) -> Callable[[Feed], dict[str, np.ndarray]]:
    """A function from feed to outputs, named as ``model.outputs`` are: its chain in torch, every step of a decoder.

    Graphs of which it is not known how they feed each other each take from the feed what they name.
    """
    if len(model.graphs) == 1 and model.chain is None:
        return program_runner(model.graph)
    if model.wiring is not None:
        return chain_of(model).run
    runners = {name: program_runner(graph) for name, graph in model.graphs.items()}

    def run(feed: Feed) -> dict[str, np.ndarray]:
        return {f"{name}.{key}": value for name, runner in runners.items() for key, value in runner(feed).items()}

    return run


class GraphSession:
    """A graph in torch, as a chain of engines calls one; ``run`` is called in place of the program where given."""

    def __init__(self, graph: ProgramGraph, run: Callable[[Feed], dict[str, np.ndarray]] | None = None) -> None:
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self.run = self.run_checked = run or program_runner(graph)


def chain_of(model: Model, runs: Mapping[str, Callable[[Feed], dict[str, np.ndarray]]] | None = None) -> Chain:
    """The chain of ``model`` with torch in place of engines, one step after the other; ``runs`` replaces graphs' own.

    Raises:
        CompressError: if it is not known how the graphs feed each other.
    """
    wiring = model.wiring
    if wiring is None:
        raise CompressError(
            f"model {model.name!r} has the graphs {list(model.graphs)}, of which one takes what another gives: save it "
            "with chain=, which says how"
        )
    sessions: Any = {name: GraphSession(graph, (runs or {}).get(name)) for name, graph in model.graphs.items()}
    return Chain(wiring, sessions, f"model {model.name!r}", together=False)


@contextlib.contextmanager
def told_as(what: str) -> Iterator[None]:
    """One line for what torch says of values that fit the specs, but not the model: a token outside its table."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CompressError(f"{what}: {reason[:200]}; check its values: are tokens in the vocabulary?") from error


def run_program(model: Model, feed: Feed, graph: str | None = None) -> dict[str, np.ndarray]:
    """Run one graph of ``model`` in torch on ``feed``."""
    return program_runner(model.graph if graph is None else model.graphs[graph])(feed)


def module_path(node: torch.fx.Node) -> str:
    """Dotted path of the innermost module that ``node`` was traced in; empty at the top."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path: str = next(reversed(stack.values()))[0]
    return path.removeprefix("L['self'].").removeprefix("L__self__.")


# --- storing ----------------------------------------------------------------------------------------------------------


def program_to_json(program: ExportedProgram) -> str:
    """The program without its tensors, in torch's own schema, free of stack traces, source paths and code lines."""
    serialized = ExportedProgramSerializer().serialize(
        program, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
    )
    plain = _dataclass_to_dict(serialized.exported_program)  # type: ignore[no-untyped-call]
    data = json.loads(json.dumps(plain, cls=EnumEncoder))
    _strip(data)
    check_program(data, "the exported program")  # what would be refused on reading is not written
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def program_from_json(text: str, tensors: Mapping[str, torch.Tensor], source: str) -> ExportedProgram:
    """Rebuild a program from :func:`program_to_json`'s text after checking every string in it; runs no code from it.

    Args:
        text: the JSON; may come from anybody.
        tensors: parameters, buffers and constants by name.
        source: what messages call the file.

    Raises:
        CompressError: on anything outside the closed set of operators, expressions and names; names the offender.
    """
    try:
        data = json.loads(text)
        _strip(data)
        check_program(data, source)
    except (ValueError, RecursionError) as error:
        raise CompressError(f"{source} is damaged: its program is not JSON ({error})") from error
    constants: dict[str, torch.Tensor] = {}
    state: dict[str, torch.Tensor] = {}
    try:
        program = _dict_to_dataclass(schema.ExportedProgram, data)  # type: ignore[no-untyped-call]
        signature = program.graph_module.signature
        for spec in signature.input_specs:
            if spec.type == "parameter":
                name = spec.parameter.parameter_name
                state[name] = nn.Parameter(tensors[name], requires_grad=tensors[name].is_floating_point())
            elif spec.type == "buffer" and spec.buffer.persistent:
                state[spec.buffer.buffer_name] = tensors[spec.buffer.buffer_name]
            elif spec.type == "buffer":
                constants[spec.buffer.buffer_name] = tensors[spec.buffer.buffer_name]
            elif spec.type == "tensor_constant":
                name = spec.tensor_constant.tensor_constant_name
                # a tensor of a file is a view of it, which the program may not detach in place when it is traced again
                constants[name] = tensors[name].clone()
        exported = ExportedProgramDeserializer().deserialize(program, state, constants, None)
        exported.module(check_guards=False)  # generates and compiles the code, which a damaged program does not survive
        return exported
    except CompressError:
        raise
    except Exception as error:  # a damaged program can fail anywhere inside the reader
        raise CompressError(
            f"{source} is damaged: its program cannot be read ({type(error).__name__}: {_first_line(error)})"
        ) from error


def _strip(data: Any) -> None:
    """Drop what leaks the author's source (traces, guards) and what would be resolved by name on reading."""
    if isinstance(data, dict):
        if "guards_code" in data:
            data["guards_code"] = []
        if isinstance(data.get("metadata"), dict):
            kept = data["metadata"].get("nn_module_stack")
            data["metadata"] = {} if kept is None else {"nn_module_stack": kept}
        for value in data.values():
            _strip(value)
    elif isinstance(data, list):
        for value in data:
            _strip(value)
