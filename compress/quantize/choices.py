"""What a part of a model may be: int8 as its scheme has it, int4 weights, or float. Another format is another row here.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Sequence
from typing import Protocol

from compress.model import Model, Quantization
from compress.quantize.annotate import operators_of
from compress.quantize.prepare import int8_operators
from compress.quantize.schemes import get_scheme


class Choice(Protocol):
    """A precision of layers; ``put`` gives it to those at the module paths ``paths`` of a quantized model."""

    name: str
    is_float: bool      # then it makes no noise, and an engine of nothing else is in the target's float

    def put(self, model: Model, paths: Sequence[str]) -> Model: ...


class Int8:
    """As the model was quantized."""

    name = "int8"
    is_float = False

    def put(self, model: Model, paths: Sequence[str]) -> Model:
        return model


class Int4Weights:
    """The weights of linear layers alone in int4; all else at these paths is float, and parts without any are none."""

    name = "int4 weights"
    is_float = False

    def put(self, model: Model, paths: Sequence[str]) -> Model:
        quantization = model.quantization
        assert quantization is not None
        alone = quantization.weight_only
        globs = tuple(dict.fromkeys((*alone.int4, *map(glob.escape, paths))))
        return _needed(model, dataclasses.replace(
            quantization, weight_only=dataclasses.replace(alone, int4=globs)))  # fmt: skip


class Float:
    """The target's float: the paths are added to ``keep_float``, and ranges that nothing reads any more go."""

    name = "float"
    is_float = True

    def put(self, model: Model, paths: Sequence[str]) -> Model:
        quantization = model.quantization
        assert quantization is not None
        keep = tuple(dict.fromkeys((*quantization.keep_float, *map(glob.escape, paths))))
        return _needed(model, dataclasses.replace(quantization, keep_float=keep))


def _needed(model: Model, quantization: Quantization) -> Model:
    """``model`` with ``quantization``, but for the ranges that nothing reads."""
    ranges, scheme = {}, get_scheme(quantization.scheme)
    for name, graph in model.graphs.items():
        low = int8_operators(operators_of(graph.program.module(check_guards=False), quantization))
        used = {node for operator in low for node, _, _ in operator.ranged(scheme)}
        ranges[name] = {node: limits for node, limits in quantization.ranges.get(name, {}).items() if node in used}
    return dataclasses.replace(model, quantization=dataclasses.replace(quantization, ranges=ranges))


CHOICES: tuple[Choice, ...] = (Int8(), Float())
WITH_INT4: tuple[Choice, ...] = (Int8(), Int4Weights(), Float())
