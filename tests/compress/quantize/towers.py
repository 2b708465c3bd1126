"""A network of two towers whose sensitive layer is known by construction, with data and a metric."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import torch
from torch import Tensor, nn

from calibration import CalibrationSet, open_set
from compress.metrics import Metric
from compress.model import Model
from compress.quantize import quantize
from compress.saving import export_model

CLASSES = 4


class Towers(nn.Module):
    """``see`` and ``read`` are the identity on their inputs, ``join`` adds them, ``spare`` is times 0."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.read = nn.Linear(CLASSES, CLASSES), nn.Linear(CLASSES, CLASSES)
        self.spare = nn.Linear(CLASSES, CLASSES)
        self.join = nn.Linear(2 * CLASSES, CLASSES, bias=False)
        for layer in (self.see, self.read):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            self.join.weight.copy_(torch.cat([torch.eye(CLASSES), torch.eye(CLASSES)], 1))

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        return self.join(torch.cat([self.see(image), self.read(question)], 1)) + 0 * self.spare(image)


@functools.cache
def towers() -> Model:
    torch.manual_seed(0)
    example = {name: np.zeros((2, CLASSES), np.float32) for name in ("image", "question")}
    model = export_model(Towers(), name="towers", example=example)
    specs = tuple(dataclasses.replace(spec, modality=modality)  # type: ignore[arg-type]
                  for spec, modality in zip(model.graph.inputs, ("image", "text"), strict=True))  # fmt: skip
    graphs = {"forward": dataclasses.replace(model.graph, inputs=specs)}
    return dataclasses.replace(model, graphs=graphs, module=None)


def labelled(count: int = 64, seed: int = 0) -> CalibrationSet:
    """Two inputs of which the larger sum is the answer, by a margin of at least a tenth."""
    rng = np.random.default_rng(seed)
    image, question = (rng.uniform(0, 1, (count, CLASSES)).astype(np.float32) for _ in range(2))
    target = rng.integers(0, CLASSES, count)
    best = (image + question).max(1)
    image[np.arange(count), target] = best - question[np.arange(count), target] + 0.1
    return open_set([{"image": image, "question": question, "target": target}], towers().inputs, name="labelled")


@functools.cache
def quantized() -> Model:
    return quantize(towers(), labelled(), scheme="x86-vnni").model


def poisoned(path: str = "read") -> Model:
    """The range of the input of the layer at ``path`` a thousand times too wide: in int8 it is always 0."""
    model = quantized()
    assert model.quantization is not None
    node = {"see": "image", "read": "question"}[path]
    (ranges,) = model.quantization.ranges.values()
    wide = {**ranges, node: (0.0, 1000.0)}
    return dataclasses.replace(model, quantization=dataclasses.replace(model.quantization, ranges={"forward": wide}))


def right(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
    return np.asarray(outputs["output"].argmax(1) == target, np.float64)


METRIC = Metric(name="right", statistics=right, is_share=True)
