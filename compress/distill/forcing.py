"""Teacher forcing: a decoder's scores after tokens that are given, in place of those it would pick itself.

The tokens are the teacher's own answers to the train set, which the student learns to give as well.

Source: sequence-level knowledge distillation, Kim and Rush 2016, arXiv:1606.07947, with the teacher's scores at each
token as targets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calibration import CalibrationSet
from compress.model import Model, ProgramGraph
from runtimes.loops import Loop
from runtimes.spec import Dim, TensorSpec, largest_batch
from runtimes.wiring import TOKENS, Step

Run = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], Any]]
BATCH = 32


def tokens_key(step: str) -> str:
    """Under which a feed has the tokens that the decoder ``step`` is forced to."""
    return f"{step}.{TOKENS}"


def loops_of(model: Model) -> dict[str, Step]:
    """The steps of the chain that pick tokens, by name."""
    wiring = model.wiring
    return {} if wiring is None else {step.name: step for step in wiring.steps if step.loop is not None}


def teacher_tokens(teacher: Model, data: CalibrationSet, progress: Callable[[str], None]) -> dict[str, np.ndarray]:
    """What ``teacher`` answers to each sample of ``data``: key of a feed -> int64 ``(samples, steps)``, padded.

    Nothing where no step of its chain picks tokens.
    """
    from compress.ladder import torch_runner

    loops = loops_of(teacher)
    if not loops:
        return {}
    chain = {**(teacher.chain or {}), "outputs": {tokens_key(name): f"{name}.{TOKENS}" for name in loops}}
    run = torch_runner(dataclasses.replace(teacher, chain=chain))
    parts: dict[str, list[np.ndarray]] = {tokens_key(name): [] for name in loops}
    done, axis = 0, data.inputs[0].batch_axis or 0
    for feed in data.batches(largest_batch(teacher.inputs, BATCH)):
        outputs = run(feed)
        for key, found in parts.items():
            found.append(outputs[key])
        done += feed[data.inputs[0].name].shape[axis]
        progress(f"teacher's tokens, {done} of {len(data)} samples")
    return {tokens_key(name): _joined(parts[tokens_key(name)], _loop(step).pad) for name, step in loops.items()}


def at_once(loop: Loop, graph: ProgramGraph) -> bool:
    """Whether one run of the graph scores every token of an answer: else it is run token by token."""
    logits = next(spec for spec in graph.outputs if spec.name == loop.logits)
    length = next(spec for spec in graph.inputs if spec.name == loop.token).shape[1]
    longest = length.max if isinstance(length, Dim) else length
    return len(logits.shape) == 3 and longest >= max(1, len(loop.start)) + loop.max_steps - 1


def forced(run: Run, loop: Loop, graph: ProgramGraph, *, picked: Tensor) -> Run:
    """``run`` of a decoder's graph, made to score each of the tokens ``picked``, int64 ``(batch, steps)``.

    What it returns has, in place of the graph's outputs, ``loop.logits`` ``(batch, steps, tokens)``: row i has the
    scores that the i-th token was to be picked by; 0 behind the stop token, where there was nothing to pick.
    """

    specs = {spec.name: spec for spec in graph.inputs}

    def score(given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
        fixed = dict(given)
        start = fixed.pop(loop.token, None)
        if start is None:
            start = torch.tensor([loop.start], device=picked.device).expand(len(picked), -1)
        masks = {} if loop.mask is None else {loop.mask: fixed.pop(loop.mask, torch.ones_like(start))}
        state = {name: _empty(specs[name], picked, loop.initial[name]) for name in loop.state}
        told = torch.cat([start, picked[:, :-1]], dim=1)
        features: Any = {}
        if at_once(loop, graph):
            outputs, features = run({**fixed, **state, **_grown(masks, picked.shape[1] - 1), loop.token: told})
            scores = outputs[loop.logits][:, start.shape[1] - 1 :]
        else:
            rows = []
            for step in range(picked.shape[1]):
                end = start.shape[1] + step
                tokens = told[:, :end] if step == 0 or not loop.state else told[:, end - 1 : end]
                outputs, _ = run({**fixed, **state, **_grown(masks, step), loop.token: tokens})
                state = {name: outputs[present] for name, present in loop.state.items()}
                rows.append(outputs[loop.logits] if outputs[loop.logits].ndim == 2 else outputs[loop.logits][:, -1])
            scores = torch.stack(rows, dim=1)
        return {loop.logits: scores.masked_fill(_stopped(picked, loop)[..., None], 0.0)}, features

    return score


def _stopped(picked: Tensor, loop: Loop) -> Tensor:
    """Which tokens ``(batch, steps)`` stand behind a stop token."""
    stops = torch.isin(picked, torch.tensor(loop.stop, dtype=picked.dtype, device=picked.device)).long()
    return (stops.cumsum(1) - stops) > 0


def _grown(masks: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """With ones for ``count`` tokens more."""
    return {name: torch.cat([mask, mask.new_ones(len(mask), count)], dim=1) for name, mask in masks.items()}


def _empty(spec: TensorSpec, picked: Tensor, length: int) -> Tensor:
    batch, axis = len(picked), spec.batch_axis
    sizes = [batch if i == axis else size if isinstance(size, int) else length for i, size in enumerate(spec.shape)]
    return torch.zeros(sizes, dtype=getattr(torch, spec.dtype), device=picked.device)


def _joined(parts: list[np.ndarray], pad: int) -> np.ndarray:
    longest = max(part.shape[1] for part in parts)
    filled = [np.pad(part, ((0, 0), (0, longest - part.shape[1])), constant_values=pad) for part in parts]
    return np.concatenate(filled)


def _loop(step: Step) -> Loop:
    assert step.loop is not None
    return step.loop
