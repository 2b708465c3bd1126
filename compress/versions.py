"""The software a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import lru_cache

PACKAGES = ("compress-edge", "torch", "torchao", "torch-pruning", "onnx", "onnx-ir", "onnxscript", "onnxruntime",
            "openvino", "numpy")  # fmt: skip

READING = ("numpy", "pillow", "tokenizers", "soundfile", "pyarrow")
"""What raw samples are read and processed with."""


@lru_cache(maxsize=2)
def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Package -> version of what is installed of ``packages``, and Python's."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
