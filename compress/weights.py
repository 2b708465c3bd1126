"""A model with other weights of the same shapes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from compress.model import Model
from compress.prune.sparsity import masked


def with_weights(model: Model, trained: Mapping[str, Tensor]) -> Model:
    """``model`` with the tensors of ``trained`` in place of its own; tied weights stay tied, ``model`` as it was.

    Weights in the 2:4 pattern keep their zeros, whatever ``trained`` has there.
    """
    trained = masked(model.weights, model.channels.get("sparse", ()), trained)
    owners = {storage(model.weights[name]): value for name, value in trained.items()}
    weights = {name: owners.get(storage(value), value) for name, value in model.weights.items()}
    graphs = {}
    for name, graph in model.graphs.items():
        program = copy.copy(graph.program)
        parameters: dict[int, nn.Parameter] = {}
        state = {}
        for key, old in program.state_dict.items():
            new = weights.get(key, old)
            if new is not old and isinstance(old, nn.Parameter):
                new = parameters.setdefault(id(new), nn.Parameter(new, requires_grad=old.requires_grad))
            state[key] = new
        program._state_dict = state  # an ExportedProgram has no public way to new weights of the same shapes
        graphs[name] = dataclasses.replace(graph, program=program)
    return dataclasses.replace(model, graphs=graphs, weights=weights, module=None)


def storage(value: Tensor) -> tuple[Any, ...]:
    """Equal for two names of one tensor."""
    return value.data_ptr(), tuple(value.shape), value.stride()
