"""The model file: a zip of JSON and safetensors that holds a whole model, written by ``save`` and read by ``load``.

Members: ``model.json`` (format, specs, chain, components, factory, channel map, quantization, processing, and the
SHA-256 of every other member), ``graphs/<name>.json`` (the exported program in torch's schema, without tensors),
``weights.safetensors`` (parameters, buffers, constants), ``example.safetensors`` (a feed) and ``processing/<name>``
(the files processing names). Nothing in it is a pickle, and reading it runs no code from it.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.errors import CompressError
from compress.model import GROUPS, Factory, Model, ModelProcessing, ProgramGraph, Quantization, WeightOnly
from compress.program import program_from_json, program_to_json
from compress.store import atomic_file
from compress.tensorfile import read_tensors, tensor_pieces
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, pieces_digest
from runtimes.processing.record import FOLDER, Processing, parse_processing
from runtimes.spec import TensorSpec, check_feed

FORMAT = "compress.model"
VERSION = 4         # version 1 had no processing, 2 no chain, 3 no weights quantized alone; all are read still
_BLOCK = 1 << 20    # bytes read at a time
# What reading damaged JSON, tables and archives raises; all of it is turned into a CompressError that names the file.
_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, RuntimeError)


def write_model(model: Model, path: Path) -> None:
    """Write ``model`` to ``path``; the same model gives the same bytes."""
    names = _aliases(model.weights)
    example = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in model.example.items()}
    members: dict[str, list[bytes | memoryview]] = {
        f"graphs/{key}.json": [program_to_json(graph.program).encode()] for key, graph in model.graphs.items()
    }
    members["weights.safetensors"] = tensor_pieces({k: v for k, v in model.weights.items() if k not in names})
    members["example.safetensors"] = tensor_pieces(example)
    processing = model.processing or ModelProcessing(section=Processing(inputs={}, outputs={}))
    members.update({f"{FOLDER}/{name}": [data] for name, data in processing.files.items()})
    header = {
        "format": FORMAT,
        "version": VERSION,
        "name": model.name,
        "graphs": {
            key: {
                "inputs": [s.to_json() for s in graph.inputs],
                "outputs": [s.to_json() for s in graph.outputs],
                "method": graph.method,
            }
            for key, graph in model.graphs.items()
        },
        "chain": model.chain,
        "components": dict(model.components),
        "factory": None if model.factory is None else dataclasses.asdict(model.factory),
        "channels": model.channels,
        "labels": {name: list(words) for name, words in model.labels.items()},
        "processing": None if model.processing is None else processing.section.to_json(),
        "quantization": None if model.quantization is None else dataclasses.asdict(model.quantization),
        "aliases": names,
        "files": {name: pieces_digest(pieces) for name, pieces in sorted(members.items())},
    }
    members = {"model.json": [json.dumps(header, indent=1, sort_keys=True, allow_nan=False).encode()], **members}
    with atomic_file(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, pieces in members.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.file_size = sum(len(piece) for piece in pieces)
            with archive.open(entry, "w") as member:
                for piece in pieces:
                    member.write(piece)


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
        stored = read_tensors(members["weights.safetensors"])
        example = {k: v.numpy() for k, v in read_tensors(members["example.safetensors"]).items()}
        weights = {**stored, **{name: stored[owner] for name, owner in header["aliases"].items()}}
        graphs = {
            key: ProgramGraph(
                program=program_from_json(members[f"graphs/{key}.json"].decode(), weights, str(path)),
                inputs=tuple(TensorSpec.from_json(s) for s in entry["inputs"]),
                outputs=tuple(TensorSpec.from_json(s) for s in entry["outputs"]),
                method=None if entry.get("method") is None else _method(entry["method"]),
            )
            for key, entry in header["graphs"].items()
        }
        for graph in graphs.values():
            check_finite({**graph.program.state_dict, **graph.program.constants}, f"{path}: ")
            _check_specs(graph)
        model = Model(
            name=_text(header["name"]),
            graphs=graphs,
            chain=_read_chain(header),
            weights=weights,
            components={_text(name): _text(at) for name, at in header["components"].items()},
            example=example,
            factory=None if header["factory"] is None else _read_factory(header["factory"]),
            channels=header["channels"],
            labels={name: tuple(map(_text, words)) for name, words in header["labels"].items()},
            processing=_read_processing(header, members, path),
            quantization=None if header["quantization"] is None else _read_quantization(header["quantization"]),
        )
        for graph in graphs.values():
            check_feed(graph.inputs, {s.name: example[s.name] for s in graph.inputs}, source=f"{path}: example")
        model.wiring  # noqa: B018 - parsed, to be refused now
    except (*_DAMAGE, RuntimesError) as error:
        raise CompressError(
            f"{path} is damaged: {error}; copy it again, or write it anew with compress.save"
        ) from error
    return model


def read_members(path: Path) -> dict[str, bytearray]:
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
            return {member.filename: _content(archive, member) for member in members}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, *_DAMAGE) as error:
        raise CompressError(
            f"{path} is damaged or not a model file ({error}): copy it again, or write it anew with compress.save"
        ) from error


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytearray:
    """What is in a member, in memory that tensors may be views of."""
    content, at = bytearray(member.file_size), 0
    with archive.open(member) as file, memoryview(content) as view:
        while block := file.read(_BLOCK):
            view[at : at + len(block)] = block
            at += len(block)
    if at < len(content):
        raise zipfile.BadZipFile(f"{member.filename} is cut short")
    return content


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


def _method(value: Any) -> str:
    """Prune calls it, on the module of a factory that the user trusts: no method that torch's own modules have."""
    name = _text(value)
    if not name.isidentifier() or name.startswith("_") or (name != "forward" and hasattr(nn.Module, name)):
        raise ValueError(f"{name!r:.80} is no method that a graph is traced from")
    return name


def _read_factory(data: Mapping[str, Any]) -> Factory:
    return Factory(reference=_text(data["reference"]), kwargs={_text(k): v for k, v in data["kwargs"].items()})


def _read_header(path: Path, members: Mapping[str, bytearray]) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(members["model.json"])
        if header["format"] != FORMAT:
            raise CompressError(f"{path} is not a model file: its format is {header['format']!r}, expected {FORMAT!r}")
        if type(header["version"]) is not int or not 1 <= header["version"] <= VERSION:
            raise CompressError(
                f"{path} has version {header['version']} of the model format, this release reads up to {VERSION}: "
                "use the release that wrote it, or save the model again"
            )
        files = dict(header["files"])
        graphs = [f"graphs/{name}.json" for name in header["graphs"]]
        named = _section(header, path).files
    except (*_DAMAGE, RuntimesError) as error:
        raise CompressError(
            f"{path} is not a model file of compress.save: it has no valid model.json ({error!r})"
        ) from error
    expected = {"weights.safetensors", "example.safetensors", *graphs, *(f"{FOLDER}/{name}" for name in named)}
    if set(files) != expected or set(members) != {"model.json", *expected}:
        odd = sorted((set(members) ^ {"model.json", *files}) | (set(files) ^ expected))
        raise CompressError(f"{path} is damaged: its list of files and what it holds do not agree on {odd[:3]}")
    for name, digest in files.items():
        if bytes_digest(members[name]) != digest:
            raise CompressError(
                f"{path} is damaged: {name} does not have the SHA-256 it was written with; copy it again"
            )
    return header


def _section(header: Mapping[str, Any], path: Path) -> Processing:
    record = header["processing"] if header["version"] > 1 else None
    return Processing(inputs={}, outputs={}) if record is None else parse_processing(record, str(path))


def _read_processing(
    header: Mapping[str, Any], members: Mapping[str, bytearray], path: Path
) -> ModelProcessing | None:
    if header["version"] == 1 or header["processing"] is None:
        return None
    section = _section(header, path)
    return ModelProcessing(section=section, files={name: bytes(members[f"{FOLDER}/{name}"]) for name in section.files})


def _read_chain(header: Mapping[str, Any]) -> dict[str, Any] | None:
    chain = header["chain"] if header["version"] > 2 else None
    if chain is not None and not isinstance(chain, dict):
        raise ValueError(f"its chain is a {type(chain).__name__}, expected an object")
    return chain


def _read_quantization(data: Mapping[str, Any]) -> Quantization:
    ranges = {g: {n: (float(r[0]), float(r[1])) for n, r in nodes.items()} for g, nodes in data["ranges"].items()}
    alone = data.get("weight_only", {"int8": (), "int4": (), "group": WeightOnly.group})
    globs = {name: tuple(map(_text, alone[name])) for name in ("int8", "int4")}
    if alone["group"] not in GROUPS:
        raise ValueError(f"its weights have groups of {alone['group']!r:.20}, expected one of {GROUPS}")
    return Quantization(
        scheme=data["scheme"], ranges=ranges, settings=data["settings"], keep_float=tuple(data["keep_float"]),
        weight_only=WeightOnly(**globs, group=alone["group"]),
    )  # fmt: skip


def check_finite(tensors: Mapping[str, torch.Tensor], source: str = "") -> None:
    """Parameters are finite; a buffer may hold -inf, as attention masks do, and nothing else that is not finite."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = torch.aminmax(tensor.detach())  # one NaN makes both of them NaN
        if not high < torch.inf or (isinstance(tensor, nn.Parameter) and not low > -torch.inf):
            raise CompressError(
                f"{source}weight {name!r} has values that are not finite: the model did not train; "
                "save it from a good checkpoint"
            )
