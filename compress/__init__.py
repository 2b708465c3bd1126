"""Prune, distil and quantize a multimodal PyTorch model, export it, and prove what the shipped file does on the device.

Every stage is a function here, a verb of the command line and an entry of a recipe, with the same name and options.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from compress.bench import BenchConfig, bench
from compress.bundle import bundle
from compress.distill import DistillConfig, distill
from compress.doctor import doctor
from compress.errors import CompressError
from compress.evaluate import evaluate
from compress.export import export
from compress.model import Graph, Input, Model
from compress.parity import parity
from compress.prune import PruneConfig, prune
from compress.quantize import QuantizeConfig, quantize
from compress.quantize.budget import BudgetConfig, budget
from compress.quantize.sensitivity import SensitivityConfig, sensitivity
from compress.report import report
from runtimes.spec import Dim

if TYPE_CHECKING:
    from compress.loading import load
    from compress.pipeline import run
    from compress.saving import save

__all__ = [
    # a model and its file
    "Dim", "Graph", "Input", "Model", "load", "save",
    # the stages
    "BenchConfig", "BudgetConfig", "DistillConfig", "PruneConfig", "QuantizeConfig", "SensitivityConfig",
    "bench", "budget", "bundle", "distill", "doctor", "evaluate", "export", "parity", "prune", "quantize", "report",
    "sensitivity",
    # all of them
    "run",
    "CompressError",
]  # fmt: skip

# On import torchao logs which of its CUDA kernels it could not load, and torch what torchao should not call any more.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

_LAZY = {"load": "compress.loading", "save": "compress.saving", "run": "compress.pipeline"}


def __getattr__(name: str) -> Any:
    """``load``, ``save`` and ``run`` need torch, which ``compress --help`` must not wait for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LAZY[name]), name)
