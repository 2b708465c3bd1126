"""Ways to a network of half the multiply-accumulates: this project's, its grouping by magnitude, and Torch-Pruning's.

Torch-Pruning prunes as its README says: ``MagnitudePruner`` with one ratio for all layers, the layers that give the
outputs left alone, the attention's heads named, and the numbers that modules repeat set by hand behind it. Where its
graph breaks on a layer, that layer is left alone too, as its users do (``IGNORED``). The ratio is the smallest with no
more multiply-accumulates than asked for; widths are multiples of 8, with which it gets closer than with ours of 16.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    import torch
    from torch import nn

    from calibration import CalibrationSet
    from compress.model import Model

TARGET = "openvino-cpu"
PROJECT = {"ours": "taylor", "magnitude": "magnitude"}          # method -> importance
ALL_BELOW = 0.5         # of the multiply-accumulates: whole blocks and residual streams may go too
METHODS = (*PROJECT, "torch-pruning", "scratch")
ROUND_TO = 8
LARGEST, STEP = 0.95, 0.01      # of the ratio of Torch-Pruning

OUTPUTS: Mapping[str, Sequence[str]] = {        # the layers that give a model's outputs
    "digits-vqa": ("head.answer",), "video": ("head.2",), "attention-vqa": ("decoder.2",),
    "spoken-command": ("action.4", "transcript"),
}  # fmt: skip
IGNORED: Mapping[str, Sequence[str]] = {        # what Torch-Pruning cannot follow or cuts wrongly
    "video": ("frame_encoder.out",), "attention-vqa": ("attention",),       # a GRU reads it; its queries are an LSTM's
}  # fmt: skip


def pruned(method: str, model: Model, data: CalibrationSet, goal: str) -> Model:
    """``model`` with at most a share of its multiply-accumulates, or so many times as fast: ``0.5``, ``x1.7``."""
    from compress.prune import PruneConfig, prune
    from compress.prune.config import Structure

    timed = goal.startswith("x")
    if method not in PROJECT:
        if timed:
            raise SystemExit(f"{method} has no goal in latency: give --macs")
        return by_torch_pruning(model, float(goal))
    config = PruneConfig(
        macs=None if timed else float(goal), speedup=float(goal[1:]) if timed else None, target=TARGET,
        importance=PROJECT[method],  # type: ignore[arg-type]
    )
    if timed or float(goal) < ALL_BELOW:
        config = dataclasses.replace(config, structures=get_args(Structure))
    return prune(model, data, config).model


def by_torch_pruning(model: Model, macs: float) -> Model:
    """One ratio for all layers: found by torch's own counter, which leaves out recurrent layers, then by ours."""
    from compress.complexity import count_model
    from compress.factory import build_module

    limit = macs * count_model(model).total.macs
    most = macs * _operations(model, build_module(model))
    low, high = 0.0, LARGEST
    while high - low > STEP:
        ratio = (low + high) / 2
        low, high = (low, ratio) if _operations(model, _uniform(model, ratio)) <= most else (ratio, high)
    while high <= LARGEST:
        made = exported(model, _uniform(model, high))
        if count_model(made).total.macs <= limit:
            return made
        high += STEP
    raise SystemExit(f"Torch-Pruning reaches no {macs:.0%} of the multiply-accumulates of {model.name}")


def _operations(model: Model, module: nn.Module) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**{name: torch.from_numpy(array) for name, array in model.example.items()})
    return int(counter.get_total_flops())


def _uniform(model: Model, ratio: float) -> nn.Module:
    import torch
    import torch_pruning as tp

    from compress.factory import build_module

    module = copy.deepcopy(build_module(model))
    layers = dict(module.named_modules())
    heads = {layers[f"{path}.{name}"]: layer.heads for path, layer in layers.items() for name in "qkv"
             if hasattr(layer, "heads")}  # fmt: skip
    feed = {name: torch.from_numpy(array) for name, array in model.example.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")     # of parameters that it finds in no layer
        pruner = tp.pruner.MagnitudePruner(
            module, feed, importance=tp.importance.MagnitudeImportance(p=2), pruning_ratio=ratio,
            ignored_layers=[layers[path] for path in (*OUTPUTS[model.name], *IGNORED.get(model.name, ()))],
            round_to=ROUND_TO, num_heads=dict(heads), forward_fn=_called, output_transform=_tensors,
        )
        pruner.step()
    for path, layer in layers.items():
        if layers.get(f"{path}.q") in heads:
            layer.heads = pruner.num_heads[layer.q]
            layer.head_dim = layer.q.out_features // layer.heads
    with torch.no_grad():
        module(**feed)
    return module.eval()


def _called(module: nn.Module, feed: Mapping[str, torch.Tensor]) -> Any:
    return module(**feed)


def _tensors(output: Any) -> list[torch.Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


def exported(model: Model, module: nn.Module) -> Model:
    """``module`` as ``model`` is, with the channel map that gives a fresh network its shapes."""
    from compress.model import Input
    from compress.saving import export_model

    inputs = {spec.name: Input(modality=spec.modality, dims=tuple(
        None if isinstance(size, int) else size for size in spec.shape)) for spec in model.inputs}
    changed = {path: {"heads": layer.heads, "head_dim": layer.head_dim} for path, layer in module.named_modules()
               if hasattr(layer, "heads")}  # fmt: skip
    return export_model(
        module, name=model.name, example=model.example, components=model.components, factory=model.factory,
        inputs=inputs, labels=model.labels, processing=model.processing, channels={"attributes": changed})


def untrained(model: Model, seed: int) -> Model:
    """A network of ``model``'s shape with the weights that its factory draws, scaled to the inputs that are left.

    A weight is drawn for the whole network and cut; its standard deviation is that of layers with as few inputs.
    """
    import torch

    from compress.factory import resolve
    from compress.weights import with_weights

    assert model.factory is not None
    torch.manual_seed(seed)
    whole = resolve(model.factory.reference, "factory")(**model.factory.kwargs).state_dict()
    drawn = {}
    for name, value in model.weights.items():
        cut = whole[name][tuple(slice(0, size) for size in value.shape)].clone()
        scaled = value.dim() > 1 and "weight" in name and "embedding" not in name and "table" not in name
        drawn[name] = cut * (math.sqrt(whole[name][0].numel() / value[0].numel()) if scaled else 1.0)
    return with_weights(model, drawn)
