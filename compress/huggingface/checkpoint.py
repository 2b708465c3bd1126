"""The weights of a folder, and the library's network with exactly these: none missing, none left over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import CompressError
from compress.huggingface.folder import Folder, read_json
from compress.huggingface.library import first_line, library
from runtimes.errors import RuntimesError
from runtimes.records import inside

SINGLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"


def build(
    folder: Folder, architecture: str, config: Any, *, attention: str = "sdpa", training: tuple[str, ...] = ()
) -> nn.Module:
    """The library's class ``architecture`` with the folder's weights, in float32 and evaluation mode.

    Of the library's ways to compute attention ``sdpa`` and, for networks without it, ``eager`` can be traced. The
    weights that ``training`` names by their last part are read in training alone: checkpoints of old releases lack
    them, and they are zero then.

    Raises:
        CompressError: if weights are missing, left over or of another shape; names them.
    """
    weights = read_weights(folder)
    try:
        model, info = getattr(library(), architecture).from_pretrained(
            None, config=config, state_dict=weights, output_loading_info=True, dtype=torch.float32,
            attn_implementation=attention, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # a config whose values do not fit each other fails anywhere in the library's classes
        raise CompressError(
            f"{folder.path}: {architecture} cannot be built from its config.json: {first_line(error)}"
        ) from error
    unused = {name for name in info["missing_keys"] if name.rpartition(".")[2] in training}
    for name in unused:
        nn.init.zeros_(model.get_parameter(name))
    missing, unexpected = sorted(info["missing_keys"] - unused), sorted(info["unexpected_keys"])
    if missing or unexpected:
        told = [f"lacks {_some(missing)}"] if missing else []
        told += [f"has {_some(unexpected)}, which the network does not"] if unexpected else []
        raise CompressError(
            f"{folder.path}: the checkpoint is not one of {architecture} as config.json has it: it {' and '.join(told)}"
        )
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise CompressError(
            f"{folder.path}: weight {name!r} has the shape {tuple(found)}, but config.json makes it {tuple(expected)}"
        )
    network: nn.Module = model.eval()
    return network


def read_weights(folder: Folder) -> dict[str, torch.Tensor]:
    """Every tensor of the folder's safetensors, by name.

    Raises:
        CompressError: if there are none, one is truncated or damaged, or the index of a sharded checkpoint names what
            is not a file of the folder.
    """
    path = folder.path
    if (path / SINGLE).is_file():
        return _read_shard(path / SINGLE)
    if (path / INDEX).is_file():
        return _read_shards(path)
    if not (path / PICKLE).is_file():
        raise CompressError(f"{path} has no weights: expected {SINGLE} or {INDEX}")
    if not folder.trust_pickle:
        raise CompressError(
            f"{path / PICKLE} is a pickle, which can run code when it is read: save the model with safetensors, or, if "
            "you trust whoever made it, pass --trust-pickle"
        )
    try:
        weights: dict[str, torch.Tensor] = torch.load(path / PICKLE, weights_only=True, map_location="cpu")
    except Exception as error:  # the restricted unpickler raises its own kind for anything but tensors
        raise CompressError(f"{path / PICKLE} is no state dict of tensors: {first_line(error)}") from error
    return weights


def _read_shards(path: Path) -> dict[str, torch.Tensor]:
    where = path / INDEX
    files = read_json(where).get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(file, str) for file in files.values()):
        raise CompressError(f'{where} has no "weight_map" from weights to files')
    weights: dict[str, torch.Tensor] = {}
    for name in sorted(set(files.values())):
        try:
            file = path / inside(name, str(where))
        except RuntimesError as error:
            raise CompressError(str(error)) from error
        if "/" in name or not name.endswith(".safetensors"):
            raise CompressError(f"{where} names {name!r:.200}: expected a .safetensors file beside it")
        if not file.is_file():
            raise CompressError(f"{where} names {name!r}, which the folder lacks: copy it again")
        shard = _read_shard(file)
        listed = {key for key, value in files.items() if value == name}
        if listed != shard.keys():
            key = min(listed ^ shard.keys())
            raise CompressError(f"{file} and {INDEX} disagree about the weight {key!r}: copy the folder again")
        weights.update(shard)
    return weights


def _read_shard(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CompressError(f"{path} is damaged or not safetensors ({first_line(error)}): copy it again") from error
    return tensors


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more
