"""Layers whose channels cannot go, in whose place others stand that compute the same and whose channels can."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compress.errors import CompressError
from compress.model import Model
from compress.program import program_runner
from compress.prune.check import FunctionChangedError, difference
from compress.prune.conv1d import find_transposed, linear
from compress.prune.exporting import export_pruned
from compress.prune.forward import Calls
from compress.prune.multihead import DividedAttention, find_packed, leave_fast_path


@dataclass(frozen=True)
class Kind:
    """What is replaced, which of it in a module can be and why others cannot, and what comes in its place."""

    name: str
    find: Callable[[nn.Module], tuple[list[str], dict[str, str]]]
    stand_in: Callable[[Any], nn.Module]
    made: type[nn.Module]
    settle: Callable[[nn.Module], None] = lambda _: None     # the module around them


KINDS: Mapping[str, Kind] = {       # by what the channel map calls the paths of those that were replaced
    "conv1d": Kind("transformers' Conv1D", find_transposed, linear, nn.Linear),
    "multihead": Kind("nn.MultiheadAttention", find_packed, DividedAttention, DividedAttention, leave_fast_path),
}


def put(module: nn.Module, key: str, paths: Iterable[str]) -> None:
    """Put what stands for them in the place of each layer at ``paths``, wherever it is held.

    Raises:
        CompressError: if none of that kind is at a path, or nothing can stand for it.
    """
    kind = KINDS[key]
    found, reasons = kind.find(module)
    paths = list(paths)
    for path in paths:
        if path not in found:
            raise CompressError(f"nothing can stand for a layer at {path!r}: "
                                f"{reasons.get(path, f'no {kind.name} is there')}")
    made = {layer: kind.stand_in(layer) for layer in map(module.get_submodule, paths)}
    for owner in list(module.modules()):
        for name, layer in owner._modules.items():
            if layer in made:
                owner._modules[name] = made[layer]
    kind.settle(module)


def apply_stand_ins(module: nn.Module, channels: Mapping[str, Any]) -> None:
    """:func:`put` in a factory's fresh ``module`` what a channel map says; what is there already stays.

    Raises:
        CompressError: as :func:`put` does, or if paths, which come from a file, are none.
    """
    for key, kind in KINDS.items():
        paths = channels.get(key, ())
        if not isinstance(paths, list | tuple) or not all(isinstance(path, str) for path in paths):
            raise CompressError(f"the channel map's {key!r} is {paths!r:.80}, expected a list of module paths")
        modules = dict(module.named_modules())
        put(module, key, [path for path in paths if not isinstance(modules.get(path), kind.made)])


def stand_in_all(model: Model, module: nn.Module, calls: Calls) -> tuple[Model, nn.Module, dict[str, str]]:
    """``model`` and its ``module`` with all of each kind replaced that can be, proved on the example; or as they are.

    Returns:
        The two, ``module`` itself unchanged; and the reasons for what ought to have been replaced, and was not.
    """
    whole: dict[str, str] = {}
    for key, kind in KINDS.items():
        paths, reasons = kind.find(module)
        whole |= reasons
        if not paths:
            continue
        other = copy.deepcopy(module)
        put(other, key, paths)
        known = model.channels.get(key, ())
        try:
            made = export_pruned(model, other, calls, channels={**model.channels, key: sorted({*known, *paths})})
            for name, graph in made.graphs.items():
                feed = {spec.name: model.example[spec.name] for spec in graph.inputs}
                expected, found = (program_runner(one.graphs[name])(feed) for one in (model, made))
                difference({at: torch.from_numpy(value) for at, value in expected.items()},
                           {at: torch.from_numpy(value) for at, value in found.items()})
        except (CompressError, FunctionChangedError) as error:
            whole |= dict.fromkeys(paths, f"{kind.name} that stays whole: with what stands for it the model is another "
                                          f"({error})")
        else:
            model, module = made, other
    return model, module, whole
