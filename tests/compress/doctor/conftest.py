"""Patients made of tiny modules, and one examination of them at a time."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress import Input
from compress.doctor import Finding
from compress.doctor.reading import admit
from compress.targets import Target, get_target
from tests.compress.doctor.examine import Examine


@pytest.fixture
def examined(tmp_path: Path) -> Examine:
    """``examined(name, module, example, inputs=, targets=)``: what that examination finds."""

    def examine(
        name: str, module: nn.Module, example: Mapping[str, Any], *, inputs: Mapping[str, Input] | None = None,
        targets: Sequence[str | Target] = ("onnxruntime-cpu",),
    ) -> list[Finding]:  # fmt: skip
        rows = [get_target(target) if isinstance(target, str) else target for target in targets]
        patient = admit(module, rows, tmp_path, example=example, inputs=inputs)
        return list(importlib.import_module(f"compress.doctor.examinations.{name}").examine(patient))

    return examine


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
