"""Outputs of one sample that depend on the others in its batch: by statistics of the batch, or a mixing reshape."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from compress.doctor.comparing import differs
from compress.doctor.finding import Finding
from compress.doctor.patient import Patient, batch_of, varied
from compress.doctor.places import Place, of_node
from compress.errors import CompressError
from runtimes.spec import TensorSpec

_TOLERANCE = 1e-3                                # of the largest output; a product of other shape differs by ~1e-6


def examine(patient: Patient) -> Iterator[Finding]:
    specs = _batched(patient)
    size = min((batch_of(spec, 2) for spec in specs), default=1)
    if size < 2 or patient.outputs is None or any(batch_of(spec, 2) != size for spec in specs):
        return
    try:
        first, second = (patient.run(_batch(patient, specs, size, others)) for others in (False, True))
    except CompressError:                        # an untraced model whose batch has another size
        return
    own = {name: (value[:1], second[name][:1]) if value.dim() and len(value) == size else (value, second[name])
           for name, value in first.items()}  # fmt: skip
    names = differs({n: a for n, (a, _) in own.items()}, {n: b for n, (_, b) in own.items()}, tolerance=_TOLERANCE)
    if not names:
        return
    statistics = _of_batch_statistics(patient)
    place = statistics or Place()
    yield Finding(
        examination="batch", severity="blocks", where=place.path or f"output {names[0]!r}", source=place.source,
        what=f"output {', '.join(names)} of a sample changes with the other samples of its batch"
             + (": a batch norm computes the statistics of the batch" if statistics is not None else ""),
        concerns=("quantize", "parity", "eval", "bench"),
        remedy="use the running statistics: train with track_running_stats=True and export in evaluation mode"
        if statistics is not None else
        "look for a reshape, a flatten or a mean that runs over the batch axis; of a dual encoder save the towers, "
        "graphs={'image': Graph('encode_image', ...), ...}, in place of their similarities",
    )  # fmt: skip


def _batched(patient: Patient) -> list[TensorSpec]:
    """The inputs with a batch axis; where the code fixes the batch, those that hold as many samples as the first."""
    if not any("batch" in refusal.dims for refusal in patient.refusals):
        return [spec for spec in patient.inputs if spec.batch_axis is not None]
    specs = [dataclasses.replace(spec, batch_axis=0) for spec in patient.inputs]
    return [spec for spec in specs if spec.shape[0] == specs[0].shape[0]]


def _batch(patient: Patient, specs: list[TensorSpec], size: int, others: bool) -> Mapping[str, np.ndarray]:
    """The example's first sample, with copies of itself for neighbours, or with ``others``."""
    feed = dict(patient.example)
    for spec in specs:
        axis = spec.batch_axis or 0
        whole = feed[spec.name]
        first = np.take(whole, [0], axis=axis)
        neighbours = [varied(first, seed, whole) if others else first for seed in range(1, size)]
        feed[spec.name] = np.concatenate([first, *neighbours], axis=axis)
    return feed


def _of_batch_statistics(patient: Patient) -> Place | None:
    """The first batch norm that does not use running statistics."""
    for graph in () if patient.model is None else patient.model.graphs.values():
        for node in graph.program.graph.nodes:
            name = str(node.target)
            if "batch_norm" in name and (True in node.args[5:6] or "functional" in name):
                return of_node(node)
    for path, child in () if patient.module is None else patient.module.named_modules():
        if isinstance(child, torch.nn.modules.batchnorm._BatchNorm) and child.running_mean is None:
            return Place(path=path)
    return None
