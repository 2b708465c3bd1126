"""A Hugging Face folder before anything of it is built: its ``config.json``, checked, and its other JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.errors import CompressError
from compress.huggingface.library import first_line, library

LARGEST_JSON = 1 << 26      # bytes of a config or of an index
NOT_OURS = frozenset({
    "auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal",
    "experts_implementation", "_experts_implementation", "dtype", "torch_dtype", "_name_or_path", "custom_pipelines",
    "fusion_config", "kernel_config", "transformers_weights", "distributed_config",
})
"""Keys of a config, at any depth, that say how the library is to load or run it, or with whose code: left out."""


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder whose ``config.json`` was read; ``config`` is without the keys of :data:`NOT_OURS`."""

    path: Path
    model_type: str
    config: Mapping[str, Any]
    trust_pickle: bool = False

    def built_config(self, name: str) -> Any:
        """The library's config object of its class ``name``."""
        try:
            return getattr(library(), name).from_dict(dict(self.config))
        except Exception as error:  # the library checks values with exceptions of many kinds
            raise CompressError(f"{self.path / 'config.json'} is not a {name}: {first_line(error)}") from error


def read_folder(path: Path, *, trust_pickle: bool = False) -> Folder:
    """Read the ``config.json`` of ``path``.

    Raises:
        CompressError: if there is none, it is damaged or has no ``model_type``, or the weights are an adapter's or
            quantized.
    """
    if not (path / "config.json").is_file():
        raise CompressError(
            f"{path} is a folder: name the model file (a Hugging Face folder, which has a config.json, is read whole)"
        )
    config = read_json(path / "config.json")
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CompressError(f"{path / 'config.json'} has no \"model_type\": it is not of a Hugging Face model")
    if (path / "adapter_config.json").exists():
        raise CompressError(f"{path} holds an adapter: merge it into its model (merge_and_unload) and save that")
    if "quantization_config" in config:
        raise CompressError(f"{path} is quantized already (quantization_config): start from the float checkpoint")
    return Folder(path=path, model_type=model_type, config=_plain(config), trust_pickle=trust_pickle)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of the folder.

    Raises:
        CompressError: names the file.
    """
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise CompressError(f"{path} has more than {LARGEST_JSON} bytes: it is no config")
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CompressError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(record, dict):
        raise CompressError(f"{path} holds a {type(record).__name__}, expected an object")
    return record


def _plain(value: Any) -> Any:
    """``value`` without the keys of :data:`NOT_OURS`."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items() if key not in NOT_OURS}
    return [_plain(item) for item in value] if isinstance(value, list) else value
