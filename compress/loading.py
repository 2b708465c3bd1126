"""Everything ``compress.load`` accepts: a model file, a ``.pt2``, a Python script, and a pickle only when trusted."""

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

from compress.errors import CompressError
from compress.grammar import check_program
from compress.model import Input, Model
from compress.modelfile import export_model, read_model, resolve
from runtimes.spec import Feed


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
            ``get_args()``, a state dict (with ``factory``), or a pickled module (with ``trust_pickle``).
        example: one feed, for the last two, which carry none.
        inputs: modalities and dynamic dimensions, for the forms that carry none.
        factory: ``package.module:function`` that builds the module of a state dict.
        trust_pickle: unpickle a module. A pickle runs whatever its author wrote into it.

    Raises:
        CompressError: if the file is missing, damaged, refused, or of no accepted form; says what to do.
    """
    path = Path(path)
    if path.is_dir():
        raise CompressError(f"{path} is a folder: name the model file; model folders are not read by this release")
    if not path.is_file():
        raise CompressError(f"model file {path} does not exist")
    if path.suffix == ".py":
        return _load_script(path, inputs)
    if path.suffix == ".onnx":
        raise CompressError(
            f"{path} is an ONNX file: this release starts from a PyTorch model; save that with compress.save"
        )
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
    except (zipfile.BadZipFile, OSError):
        return None


# --- a script ---------------------------------------------------------------------------------------------------------


def _load_script(path: Path, inputs: Mapping[str, Input] | None) -> Model:
    """The user's own code, named on the command line: ``get_model()``, ``get_args()`` (a dict by parameter name)."""
    namespace = runpy.run_path(str(path), run_name=path.stem)
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
    data = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name.split("/", 1)[-1]: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise CompressError(f"{path} is damaged: {error}; write it again with torch.export.save") from error
    programs = [name for name in members if name.startswith("models/") and name.endswith(".json")]
    if len(programs) != 1:
        raise CompressError(f"{path} holds {len(programs)} exported programs: expected one, of torch.export.save")
    try:
        check_program(json.loads(members[programs[0]]), str(path))
        for name, content in members.items():
            if name.endswith("_config.json"):
                _refuse_pickles(path, json.loads(content))
        samples = next(content for name, content in members.items() if name.startswith("data/sample_inputs/"))
        args, kwargs = torch.load(io.BytesIO(samples), weights_only=True)
    except CompressError:
        raise
    except StopIteration:
        raise CompressError(f"{path} has no example inputs: write it with torch.export.save") from None
    except Exception as error:  # json, the restricted unpickler and torch each have their own
        raise CompressError(
            f"{path} was refused: it is damaged or holds a pickle of code ({type(error).__name__})"
        ) from error
    program = torch.export.load(io.BytesIO(data))
    module = program.module(check_guards=False)
    names = [*program.graph_signature.user_inputs]
    components = {name: f"program.{name}" for name, _ in module.named_children()} or {"model": ""}
    feed = dict(zip(names, [*args, *kwargs.values()], strict=True))
    caller = _ByName(module, len(args), list(kwargs))
    return export_model(caller, name=path.stem, example=feed, inputs=inputs, components=components)


class _ByName(nn.Module):
    """A program called by the names of its inputs, whichever of them were positional when it was exported."""

    def __init__(self, program: nn.Module, positional: int, keywords: list[str]) -> None:
        super().__init__()
        self.program = program
        self.positional = positional
        self.keywords = keywords

    def forward(self, **feed: torch.Tensor) -> Any:
        values = list(feed.values())
        return self.program(
            *values[: self.positional], **dict(zip(self.keywords, values[self.positional :], strict=True))
        )


def _refuse_pickles(path: Path, config: Mapping[str, Any]) -> None:
    for name, entry in config.get("config", {}).items():
        if entry.get("use_pickle"):
            raise CompressError(f"{path} was refused: it stores {name!r} as a pickle, which could run code on loading")


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
        module = resolve(factory, "factory")()
        missing, unexpected = module.load_state_dict(content, strict=False)
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
