"""What ``compress.load`` accepts: model files, ``.pt2``, ``.onnx``, scripts, Hugging Face folders, trusted pickles."""

from __future__ import annotations

import io
import json
import runpy
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._export.serde.serialize import _SERIALIZE_TO_TORCH_DTYPE
from torch.export import ExportedProgram

from compress.errors import CompressError
from compress.factory import resolve
from compress.model import Input, Model
from compress.modelfile import read_members, read_model
from compress.program import program_from_json
from compress.saving import export_model
from runtimes.spec import Dim, Feed


def load(
    path: str | Path,
    *,
    example: Feed | None = None,
    inputs: Mapping[str, Input] | None = None,
    factory: str | None = None,
    trust_pickle: bool = False,
) -> Model:
    """Read a model in any of the accepted forms.

    Args:
        path: a file of :func:`compress.save`, a ``.pt2`` of ``torch.export.save``, a ``.py`` with ``get_model()`` and
            ``get_args()``, a Hugging Face folder (``docs/huggingface.md``), an ``.onnx`` (which no stage can prune or
            distill), a state dict (with ``factory``), or a pickled module (with ``trust_pickle``).
        example: one feed, for the last three, which carry none.
        inputs: modalities and dynamic dimensions, for the forms that carry none.
        factory: ``package.module:function`` that builds the module of a state dict.
        trust_pickle: unpickle a module, or the weights of a folder. A pickle runs whatever its author wrote into it.

    Raises:
        CompressError: if the file is missing, damaged, refused, or of no accepted form; says what to do.
    """
    path = Path(path)
    if path.is_dir():
        from compress.huggingface import load_folder

        return load_folder(path, trust_pickle=trust_pickle)
    if not path.is_file():
        raise CompressError(f"model file {path} does not exist")
    if path.suffix == ".py":
        return _load_script(path, inputs)
    if path.suffix == ".onnx":
        from compress.onnxmodel import read_onnx_model

        return read_onnx_model(path, inputs, example)
    names = _member_names(path)
    if names is None:
        if path.suffix not in (".pt", ".pth", ".bin", ".pt2"):
            raise CompressError(
                f"{path} is not a model: expected a .pt of compress.save, a .pt2 or a .py with get_model()"
            )
        raise CompressError(f"{path} is damaged or not a model file: it is no zip archive; copy it again")
    if "model.json" in names:
        return read_model(path)
    if any(name.endswith("archive_format") for name in names) or any("/models/" in f"/{name}" for name in names):
        return _load_pt2(path, inputs)
    if any(name.endswith("data.pkl") for name in names):
        return _load_pickle(path, example=example, inputs=inputs, factory=factory, trust_pickle=trust_pickle)
    raise CompressError(f"{path} is a zip archive, but not of a model: write it with compress.save")


def _member_names(path: Path) -> list[str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None


# --- a script ---------------------------------------------------------------------------------------------------------


def _load_script(path: Path, inputs: Mapping[str, Input] | None) -> Model:
    """The user's own code, named on the command line: ``get_model()``, ``get_args()`` (a dict by parameter name)."""
    try:
        namespace = runpy.run_path(str(path), run_name=path.stem)
    except (SyntaxError, ImportError) as error:
        raise CompressError(f"{path} is not a model script that runs: {type(error).__name__}: {error}") from error
    missing = [name for name in ("get_model", "get_args") if name not in namespace]
    if missing:
        raise CompressError(f"{path} has no {missing[0]}(): a model script defines get_model() and get_args()")
    module, arguments = namespace["get_model"](), namespace["get_args"]()
    if not isinstance(module, nn.Module):
        raise CompressError(f"{path}: get_model() returned {type(module).__name__}, not an nn.Module")
    if isinstance(arguments, tuple):
        import inspect

        arguments = dict(zip(inspect.signature(module.forward).parameters, arguments, strict=False))
    given = inputs or (namespace["get_inputs"]() if "get_inputs" in namespace else None)
    return export_model(module, name=path.stem, example=arguments, inputs=given)


# --- torch.export's own archive ---------------------------------------------------------------------------------------


def _load_pt2(path: Path, inputs: Mapping[str, Input] | None) -> Model:
    """Read the parts of the archive ourselves: torch's reader unpickles some of them, and its zip is not Python's."""
    members = read_members(path)
    if len({name.partition("/")[0] for name in members}) != 1:
        raise CompressError(f"{path} was refused: it holds several archives in one; write it with torch.export.save")
    members = {name.partition("/")[2]: content for name, content in members.items()}
    programs = [name for name in members if name.startswith("models/") and name.endswith(".json")]
    if len(programs) != 1:
        raise CompressError(f"{path} holds {len(programs)} exported programs: expected one, of torch.export.save")
    name = programs[0].removeprefix("models/").removesuffix(".json")
    tensors = _read_tensors(path, members, "weights", name) | _read_tensors(path, members, "constants", name)
    program = program_from_json(members[programs[0]].decode(errors="replace"), tensors, str(path))
    values, positional, keywords = _read_samples(path, members, name)
    names = [str(user) for user in program.graph_signature.user_inputs]
    if len(names) != len(values):
        raise CompressError(f"{path} has {len(names)} inputs but {len(values)} example inputs: save it again")
    module = program.module(check_guards=False)
    components = {name: f"program.{name}" for name, _ in module.named_children()} or {"model": ""}
    feed = dict(zip(names, values, strict=True))
    return export_model(
        _ByName(module, positional, keywords), name=path.stem, example={k: v.numpy() for k, v in feed.items()},
        inputs=inputs or _inputs_of(program, feed), components=components,
    )  # fmt: skip


def _read_tensors(path: Path, members: Mapping[str, bytearray], kind: str, name: str) -> dict[str, torch.Tensor]:
    content = members.get(f"data/{kind}/{name}_{kind}_config.json")
    if content is None:
        raise CompressError(f"{path} has no list of its {kind}: write it again with torch.export.save of torch 2.9 on")
    tensors = {}
    try:
        for key, entry in json.loads(content)["config"].items():
            file, meta = entry["path_name"], entry["tensor_meta"]
            if entry["use_pickle"] or not file.startswith(("weight_", "tensor_")):
                raise CompressError(
                    f"{path} was refused: it stores {key!r} as a pickle, which could run code on loading"
                )
            dtype = _SERIALIZE_TO_TORCH_DTYPE[meta["dtype"]]
            sizes, strides = ([int(size["as_int"]) for size in meta[axis]] for axis in ("sizes", "strides"))
            data = members[f"data/{kind}/{file}"]
            flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
            tensors[key] = torch.as_strided(flat, sizes, strides, int(meta["storage_offset"]["as_int"])).clone()
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError, RecursionError) as error:
        raise CompressError(f"{path} is damaged: its {kind} cannot be read ({error}); save it again") from error
    return tensors


def _read_samples(path: Path, members: Mapping[str, bytearray], name: str) -> tuple[list[torch.Tensor], int, list[str]]:
    """The example inputs, how many of them are positional, and the names of the others."""
    content = members.get(f"data/sample_inputs/{name}.pt")
    if not content:
        raise CompressError(f"{path} has no example inputs: write it with torch.export.save")
    try:
        args, kwargs = torch.load(io.BytesIO(content), weights_only=True)
        values, keywords = [*args, *kwargs.values()], list(kwargs)
    except Exception as error:  # the restricted unpickler raises its own kind for anything but tensors
        raise CompressError(
            f"{path} was refused: its example inputs are damaged or a pickle of code ({type(error).__name__})"
        ) from error
    if not all(isinstance(value, torch.Tensor) for value in values):
        raise CompressError(f"{path} has an input that is not a tensor: export it again with tensors only")
    return values, len(args), keywords


def _inputs_of(program: ExportedProgram, feed: Mapping[str, torch.Tensor]) -> dict[str, Input]:
    """The dynamic dimensions the program was exported with, by its own symbols."""
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder"}
    dims: dict[Any, Dim] = {}
    inputs = {}
    for name, value in feed.items():
        axes: list[Dim | None] = []
        for axis, size in enumerate(shapes[name]):
            symbol = None if isinstance(size, int) else size.node.expr
            limits = None if symbol is None else program.range_constraints.get(symbol)
            if limits is not None and symbol not in dims:
                low, usual = max(1, int(limits.lower)), value.shape[axis]
                high = int(limits.upper) if limits.upper < 1 << 31 else max(64, 4 * usual)
                taken = {dim.name for dim in dims.values()}
                label = "batch" if axis == 0 and "batch" not in taken else f"{name}_axis{axis}"
                dims[symbol] = Dim(label, low, min(max(low, usual), high), high)
            axes.append(dims.get(symbol))
        inputs[name] = Input(dims=tuple(axes))
    return inputs


class _ByName(nn.Module):
    """A program called by the names of its inputs, whichever of them were positional when it was exported."""

    def __init__(self, program: nn.Module, positional: int, keywords: list[str]) -> None:
        super().__init__()
        self.program = program
        self.positional = positional
        self.keywords = keywords

    def train(self, mode: bool = True) -> _ByName:
        """A program stays in the mode it was exported in, and torch raises where it is told to change."""
        return self

    def forward(self, **feed: torch.Tensor) -> Any:
        values = list(feed.values())
        return self.program(
            *values[: self.positional], **dict(zip(self.keywords, values[self.positional :], strict=True))
        )


# --- pickles ----------------------------------------------------------------------------------------------------------


def _load_pickle(
    path: Path, *, example: Feed | None, inputs: Mapping[str, Input] | None, factory: str | None, trust_pickle: bool
) -> Model:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # the restricted unpickler raises its own kind for anything but tensors
        if not trust_pickle:
            raise CompressError(
                f"{path} is a pickled module: loading it would run code from the file. Save it with compress.save "
                "instead, or, if you trust whoever made it, pass --trust-pickle"
            ) from error
        try:
            content = torch.load(path, weights_only=False, map_location="cpu")
        except Exception as failure:  # unpickling runs the author's code
            raise CompressError(f"{path} cannot be unpickled: {type(failure).__name__}: {failure}") from failure
    if isinstance(content, Mapping):
        if factory is None:
            raise CompressError(
                f"{path} is a state dict, weights without a network: name what builds it with --factory"
            )
        try:
            module = resolve(factory, "factory")()
            missing, unexpected = module.load_state_dict(content, strict=False)
        except (RuntimeError, TypeError, AttributeError) as error:  # a size, or a factory of something else
            raise CompressError(f"{path} does not fit {factory}: {' '.join(str(error).split())[:300]}") from error
        if missing or unexpected:
            raise CompressError(
                f"{path} does not fit {factory}: missing {list(missing)[:3]}, unexpected {list(unexpected)[:3]}"
            )
        content = module
    if not isinstance(content, nn.Module):
        raise CompressError(f"{path} holds {type(content).__name__}, not a module")
    if example is None:
        raise CompressError(f"{path} carries no example of its inputs: name a data set with --example")
    return export_model(content, name=path.stem, example=example, inputs=inputs)
