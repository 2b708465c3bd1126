"""2:4 sparsity: of every four neighbouring inputs of a weight two are zero, which TensorRT's sparse kernels skip.

The shapes stay as they are: this pays on a target whose kernels know the pattern, and on no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import nn

from compress.prune.channels import CONVOLUTIONS, ties
from compress.prune.forward import Calls, GraphFeeds, call, samples_of, tensors
from compress.prune.protection import is_protected
from compress.prune.readings import by_channel, reading_layers

ZEROS, OF = 2, 4


def sparse_layers(module: nn.Module, protect: Iterable[str] = ()) -> list[str]:
    """The layers whose weights TensorRT can read in the pattern: Linear and convolutions of whole fours of inputs.

    A weight that another layer holds too stays dense, as do a convolution's in groups and what ``protect`` names.
    """
    shared = {id(layer) for held in ties(module) for layer, _ in held}
    return [path for path, layer in module.named_modules()
            if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and "weight" in layer._parameters
            and layer.weight.shape[1] % OF == 0 and getattr(layer, "groups", 1) == 1 and id(layer) not in shared
            and not is_protected(path, protect)]


def make_sparse(
    module: nn.Module, paths: Iterable[str], calls: Calls, batches: Callable[[int], Iterable[GraphFeeds]], samples: int,
) -> None:
    """Zero the two least important of every four weights of these layers, in place.

    A weight's importance is ``|W_ij| |x_j|``, with the norm of what is read in channel ``j`` over the samples; what is
    left is not changed to make good for it, which distillation is for.

    Args:
        batches: the most samples at once -> feeds of real samples, by graph.
        samples: how many to read at most.

    Source: Sun et al. 2023, arXiv:2306.11695 (Wanda), equation 1 and its section on N:M sparsity.
    """
    power: dict[str, torch.Tensor] = {}

    def noted(path: str, value: torch.Tensor) -> None:
        read = by_channel(module.get_submodule(path), value).double()
        power[path] = power.get(path, torch.zeros(())) + read.square().sum((0, 1))

    paths = list(paths)
    seen = 0
    with reading_layers(module, paths, noted), torch.no_grad():
        for feeds in batches(min(32, samples)):
            given = tensors(feeds)
            call(module, calls, given)
            seen += samples_of(given)
            if seen >= samples:
                break
    for path in paths:
        weight = module.get_submodule(path).weight
        assert isinstance(weight, nn.Parameter)
        norms = power.get(path, torch.ones(weight.shape[1])).sqrt()
        score = weight.detach().double().abs() * norms.reshape(-1, *[1] * (weight.dim() - 2))
        with torch.no_grad():
            weight.mul_(kept(score))


def kept(score: torch.Tensor) -> torch.Tensor:
    """1 for the two largest of every four along the inputs, axis 1, of ``(outputs, inputs, ..)``, 0 for the others."""
    last = score.movedim(1, -1)
    fours = last.reshape(-1, OF)
    order = fours.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(fours).scatter_(-1, order[..., :OF - ZEROS], 1.0)
    return mask.reshape(last.shape).movedim(-1, 1)


def is_sparse(weight: torch.Tensor) -> bool:
    """Whether no four neighbouring inputs have more than two weights that are not zero."""
    if weight.dim() < 2 or weight.shape[1] % OF:
        return False
    return bool(((weight.movedim(1, -1).reshape(-1, OF) != 0).sum(-1) <= OF - ZEROS).all())


def masked(weights: Mapping[str, torch.Tensor], sparse: Iterable[str], changed: Mapping[str, torch.Tensor],
           ) -> dict[str, torch.Tensor]:
    """``changed`` with the zeros that ``weights`` have in those of the pattern, whatever changed them."""
    names = {name for name in sparse if name in changed and name in weights}
    return {name: value * (weights[name] != 0) if name in names else value for name, value in changed.items()}
