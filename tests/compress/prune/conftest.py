from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.complexity import count_operations
from compress.model import Graph
from compress.prune import PruneConfig
from compress.prune.structured import Pruned
from tests.compress.prune.pruning import prune_module


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def networks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prune_networks", Path(__file__).with_name("networks.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def calls() -> dict[str, Graph]:
    return {"forward": Graph()}


@pytest.fixture
def prune_one() -> Callable[..., Pruned]:
    """Prune a module with one input ``x``; its MACs are counted on its exported program."""

    def prune(module: nn.Module, x: np.ndarray, **settings: Any) -> Pruned:
        module.eval()
        program = torch.export.export(module, (), {"x": torch.from_numpy(x)})
        macs: dict[str, int] = {}
        for operation in count_operations(program, [x.shape]):
            macs[operation.module] = macs.get(operation.module, 0) + operation.macs
        feeds = {"forward": [{"x": x}]}
        return prune_module(module, {"forward": Graph()}, lambda size: [feeds], macs, PruneConfig(**settings))

    return prune


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    generator = np.random.default_rng(0)
    return lambda *shape: generator.standard_normal(shape).astype(np.float32)
