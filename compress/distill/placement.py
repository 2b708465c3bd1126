"""Where a student trains: the processor, or a GPU that torch can use."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.fx import GraphModule

from compress.errors import CompressError

CPU = torch.device("cpu")


def device_of(name: str) -> torch.device:
    """The device that ``name`` means in this process: of several GPUs under ``torchrun`` each process has its own.

    Args:
        name: ``cpu`` or ``cuda``, as in :class:`compress.distill.config.DistillConfig`.

    Raises:
        CompressError: if torch has no such device, or too few for the processes.
    """
    if name == "cpu":
        return CPU
    found, number = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    if not found:
        raise CompressError(f"device is {name!r}, but torch {torch.__version__} finds no GPU here: use 'cpu', or a "
                            "build of torch for CUDA and a driver that it can use")
    if number >= found:
        raise CompressError(f"device is {name!r}, and this is process {number + 1} of this machine, which has {found} "
                            f"GPU{'s' * (found > 1)}: start as many processes, one for each")
    torch.cuda.set_device(number)
    return torch.device(name, number)


def place(module: GraphModule, device: torch.device) -> None:
    """Move what a traced graph holds besides its parameters, and have what it makes itself made there."""
    for part in module.modules():
        for held in (part._buffers, vars(part)):
            for name, value in held.items():
                if isinstance(value, torch.Tensor):
                    held[name] = value.to(device)
        if isinstance(part, GraphModule):
            for node in part.graph.nodes:
                node.args = torch.fx.node.map_aggregate(node.args, lambda value: _moved(value, device))
                node.kwargs = torch.fx.node.map_aggregate(node.kwargs, lambda value: _moved(value, device))
            part.recompile()


def _moved(value: Any, device: torch.device) -> Any:
    return device if isinstance(value, torch.device) else value
