"""Trace a module as asked, and if that fails with as few dynamic sizes fewer as its code demands; keep every reason."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from compress.doctor.patient import Refusal
from compress.doctor.places import Place, of_error, of_stack
from compress.errors import CompressError
from compress.model import Input, Model
from compress.saving import export_model
from runtimes.spec import Dim

_SHAPES = "torch.fx.experimental.symbolic_shapes"  # the logger that tells when a dynamic size becomes a constant


def trace(module: nn.Module, arguments: Mapping[str, Any]) -> tuple[Model | None, tuple[Refusal, ...]]:
    """``arguments`` are those of :func:`compress.saving.export_model`; its model, and why it is not as asked.

    A module with weights that are not finite is traced in a copy with zeros there, so that what else is wrong shows.
    """
    traced = _finite(module)
    inputs = {name: (arguments.get("inputs") or {}).get(name, Input()) for name in arguments["example"]}
    refusals: list[Refusal] = []
    while True:
        sizes = _Sizes(traced)
        try:
            with quiet(), sizes.watched():
                return export_model(traced, **{**arguments, "inputs": inputs}), tuple(refusals)
        except Exception as error:  # tracing runs the user's code: anything may come out of it
            refusal = _refusal(error, traced, inputs, sizes)
            refusals.append(refusal)
            fixed = {name: _without(given, refusal.dims) for name, given in inputs.items()}
            if fixed == inputs:
                return None, tuple(refusals)
            inputs = fixed


def _finite(module: nn.Module) -> nn.Module:
    if all(finite_enough(tensor) for tensor in (*module.parameters(), *module.buffers())):
        return module
    cleaned = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in (*cleaned.parameters(), *cleaned.buffers()):
            if not finite_enough(tensor):
                tensor.nan_to_num_(0.0, 0.0, 0.0)
    return cleaned


def finite_enough(tensor: torch.Tensor) -> bool:
    """As ``compress.save`` has it: a buffer may hold -inf, as attention masks do."""
    if not tensor.is_floating_point():
        return True
    return bool((torch.isfinite(tensor) if isinstance(tensor, nn.Parameter) else tensor < torch.inf).all())


def _refusal(error: Exception, module: nn.Module, inputs: Mapping[str, Input], sizes: _Sizes) -> Refusal:
    """torch's own message, the first lines of it that are about the model, and the line it stopped at."""
    if isinstance(error, CompressError) and "cannot be exported" not in str(error):
        return Refusal(what=str(error), place=of_error(error, module), kind="refused")
    cause: BaseException = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = lines[0] if lines else type(cause).__name__
    violated = re.match(r"Constraints violated \((.*?)\)", said)
    if violated is None:
        said = re.sub(r"\s*\((unhinted|Size-like symbols): .*?\)\.?(?=\s|$)", "", said)
        return Refusal(what=said[:300], place=of_error(error, module), kind=type(cause).__name__)
    names = [name.strip(" .") for name in violated[1].split(",")]
    dims = {name: next((_plain(line) for line in lines if re.search(rf"\b{name}\b", line) and line[0] == "-"), said)
            for name in names}  # fmt: skip
    return Refusal(what=said, place=sizes.place_of(names, inputs), kind="specialised", dims=dims)


def _plain(line: str) -> str:
    """Without torch's advice on its own markers."""
    constant = re.search(r"specialized it to be a constant \((\d+)\)", line)
    guard = re.search(r"generated guard (.+?)\.?$", line)
    if guard is not None:
        return "it tells sizes apart: " + re.sub(r"L\['(.+?)'\]\.size\(\)", r"\1.shape", guard[1])
    return f"it takes {constant[1]} alone" if constant else line.removeprefix("- ")[:200]


def _without(given: Input, dims: Mapping[str, str]) -> Input:
    """The input with these dimensions fixed at the example's size."""
    axes = given.dims if given.dims is not None else ("batch",)
    kept = tuple(None if _name(axis) in dims else axis for axis in axes)
    return given if kept == axes else Input(modality=given.modality, dims=kept)


def _name(axis: str | Dim | None) -> str | None:
    return axis.name if isinstance(axis, Dim) else axis


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """torch logs and prints the program as far as it came, with paths; what matters of it is in the error."""
    logger = logging.getLogger(_SHAPES)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


class _Sizes:
    """Which line made which dynamic size a constant: torch logs it while the user's frames are on the stack."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.axes: dict[str, tuple[str, int]] = {}        # torch's symbol -> input and axis
        self.fixed: dict[str, Place] = {}                 # symbol -> what made it a constant
        self.guarded: dict[str, Place] = {}               # symbol -> what first told its sizes apart

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        logger = logging.getLogger(_SHAPES)
        before = logger.level, logger.propagate, logger.handlers
        logger.propagate, logger.handlers = False, [_Handler(self._read)]
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            _, logger.propagate, logger.handlers = before
            logger.setLevel(before[0])

    def _read(self, text: str) -> None:
        made = re.match(r"create_symbol (\w+) = \d+ for L\['(.+?)'\]\.size\(\)\[(\d+)\]", text)
        if made is not None:
            self.axes[made[1]] = made[2], int(made[3])
        ended = re.match(r"set_replacement (\w+) = \d+ ", text)
        guard = re.match(r"eval (.+?) \[guard added\]", text)
        if ended is not None or guard is not None:
            place = of_stack(sys._getframe(), self.module)
            if place.source is not None:
                found, into = ([ended[1]], self.fixed) if ended else (re.findall(r"\w+", text), self.guarded)
                for symbol in found:
                    into.setdefault(symbol, place)

    def place_of(self, names: list[str], inputs: Mapping[str, Input]) -> Place:
        for places in (self.fixed, self.guarded):
            for symbol, place in places.items():
                name, axis = self.axes.get(symbol, ("", 0))
                dims = inputs[name].dims if name in inputs else ()
                dims = ("batch",) if dims is None else dims
                if axis < len(dims) and _name(dims[axis]) in names:
                    return place
        return Place()


class _Handler(logging.Handler):
    def __init__(self, read: Callable[[str], None]) -> None:
        super().__init__()
        self.read = read

    def emit(self, record: logging.LogRecord) -> None:
        self.read(record.getMessage())
