"""transformers' ``Conv1D``, GPT-2's layer: an ``nn.Linear`` whose weight lies the other way round, inputs first."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.prune.channels import ties, weight_of


def find_transposed(module: nn.Module) -> tuple[list[str], dict[str, str]]:
    """The paths of the ``Conv1D`` of ``module`` for which an ``nn.Linear`` can stand, and of others why none can."""
    shared = {id(layer) for held in ties(module) for layer, _ in held}
    paths, reasons = [], {}
    for path, layer in module.named_modules():
        if not _is_transposed(layer):
            continue
        if not path:
            reasons[path] = "it is the model itself, with nothing around it"
        elif layer._forward_hooks or layer._forward_pre_hooks:
            reasons[path] = "hooks are registered on it"
        elif id(layer) in shared:
            reasons[path] = "its weights are another layer's too"
        else:
            paths.append(path)
    return paths, {path: f"transformers' Conv1D that stays whole: {reason}" for path, reason in reasons.items()}


def linear(layer: nn.Module) -> nn.Linear:
    """The same function as ``layer``, whose weight is ``(inputs, outputs)``."""
    weight, bias = weight_of(layer, "weight"), layer._parameters["bias"]
    made = nn.Linear(weight.shape[0], weight.shape[1], bias=bias is not None, device="meta")
    made.weight = _owned(weight.T, weight.requires_grad)
    if bias is not None:
        made.bias = _owned(bias, bias.requires_grad)
    return made.train(layer.training)


def _owned(values: Tensor, trained: bool) -> nn.Parameter:
    return nn.Parameter(values.detach().clone(memory_format=torch.contiguous_format), requires_grad=trained)


def _is_transposed(layer: nn.Module) -> bool:
    """By its name: the package need not be installed."""
    kind = type(layer)
    return kind.__name__ == "Conv1D" and kind.__module__.partition(".")[0] == "transformers"
