"""The software a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import lru_cache

PACKAGES = ("compress-edge", "torch", "torchao", "torch-pruning", "onnx", "onnx-ir", "onnxscript", "onnxruntime",
            "openvino", "numpy")  # fmt: skip


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Package -> version of what is installed of :data:`PACKAGES`, and Python's."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
