"""Take in whatever ``compress`` accepts as a model, also what cannot be traced."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.doctor.patient import Patient
from compress.doctor.tracing import quiet, trace
from compress.errors import CompressError
from compress.loading import load
from compress.model import Input, Model
from compress.saving import export_model
from compress.targets import Target


def admit(
    given: Model | nn.Module | str | Path,
    targets: Sequence[Target],
    work: Path,
    *,
    example: Mapping[str, Any] | None = None,
    inputs: Mapping[str, Input] | None = None,
    factory: str | None = None,
    trust_pickle: bool = False,
) -> Patient:
    """Read and trace; the arguments are those of :func:`compress.doctor.doctor`.

    Raises:
        CompressError: if there is no such file, it is refused or damaged, or a module comes without an example.
    """
    if isinstance(given, str | os.PathLike):
        held = _read(Path(given), example=example, inputs=inputs, factory=factory, trust_pickle=trust_pickle)
    elif isinstance(given, nn.Module):
        if example is None:
            raise CompressError(f"{type(given).__name__} comes without an example of its inputs: give example=")
        held = _Module(given, {"name": type(given).__name__, "example": example, "inputs": inputs})
    else:
        held = given
    if isinstance(held, Model):
        module = held.module
        return Patient(
            name=held.name, example=held.example, targets=tuple(targets), work=work, module=module, model=held,
            weights=held.weights if module is None else module.state_dict(keep_vars=True), samples=(held.example,),
            training=_training(module), factory=factory,
        )  # fmt: skip
    feed = {key: _to_numpy(key, value) for key, value in held.arguments["example"].items()}
    model, refusals = trace(held.module, {**held.arguments, "example": feed})
    return Patient(
        name=held.arguments["name"], example=feed, targets=tuple(targets), work=work, module=held.module, model=model,
        refusals=refusals, weights=held.module.state_dict(keep_vars=True), samples=(feed,),
        training=_training(held.module), factory=factory,
    )  # fmt: skip


class _Module:
    """A module, and what :func:`compress.saving.export_model` is to be called with beside it."""

    def __init__(self, module: nn.Module, arguments: Mapping[str, Any]) -> None:
        self.module = module
        self.arguments = arguments


def _read(path: Path, **settings: Any) -> Model | _Module:
    """The model of a file; of one whose module cannot be traced the module, which the error's frames still hold."""
    try:
        with quiet():
            model = load(path, **settings)
    except Exception as error:  # a script is the user's code: anything may come out of it
        module = _module_in(error)
        if module is not None:
            return module
        if isinstance(error, CompressError):
            raise
        said = " ".join(str(error).split())[:300]
        raise CompressError(f"{path} fails before there is a model: {type(error).__name__}: {said}") from error
    return model


def _module_in(error: BaseException) -> _Module | None:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is export_model.__code__:
            held = trace.tb_frame.f_locals
            return _Module(held["module"], {key: held[key] for key in ("name", "example", "inputs", "components")})
        trace = trace.tb_next
    return None


def _training(module: nn.Module | None) -> tuple[str, ...]:
    """Paths of the modules in training mode; a program that was read stays in the mode it was exported in."""
    if module is None or any(isinstance(child, torch.fx.GraphModule) for child in module.modules()):
        return ()
    return tuple(path for path, child in module.named_modules() if child.training)


def _to_numpy(name: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor) and value.dtype is torch.bfloat16:
        raise CompressError(f"example input {name!r} is bfloat16, which numpy lacks: give the model float32 inputs")
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
