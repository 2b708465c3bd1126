"""What a part of a model may be: int8 as its scheme has it, or float. Another format is another row here."""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Sequence
from typing import Protocol

from compress.model import Model
from compress.quantize.annotate import find_operators, sources
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


class Float:
    """The target's float: the paths are added to ``keep_float``, and ranges that nothing reads any more go."""

    name = "float"
    is_float = True

    def put(self, model: Model, paths: Sequence[str]) -> Model:
        quantization = model.quantization
        assert quantization is not None
        keep = tuple(dict.fromkeys((*quantization.keep_float, *map(glob.escape, paths))))
        ranges, scheme = {}, get_scheme(quantization.scheme)
        for name, graph in model.graphs.items():
            module = graph.program.module(check_guards=False)
            read = {node.name for node in sources(module, int8_operators(find_operators(module, keep, scheme)))}
            ranges[name] = {node: limits for node, limits in quantization.ranges.get(name, {}).items() if node in read}
        return dataclasses.replace(
            model, quantization=dataclasses.replace(quantization, keep_float=keep, ranges=ranges)
        )


CHOICES: tuple[Choice, ...] = (Int8(), Float())
