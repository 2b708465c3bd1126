"""What distillation costs beside the bare passes of teacher and student, measured in one run, step by step in turn.

    python benchmarks/distillation.py FOLDER... [--steps 40] > benchmarks/results/distillation.json

FOLDERs are those that ``compress demo FOLDER --model NAME`` writes. The student is the model with its weights shaken,
so that nothing in the loop is left out. A *bare* step runs the teacher's program without a gradient, and the student's
with one, forward and backward from the sum of its outputs, on a batch that is there: no loss, no optimizer. The loop's
step is all that ``compress.distill`` does from one call of its progress to the next: picking the batch, both passes,
losses of outputs and features, clipping, AdamW, the history. Behind each there is a bare one. ``overhead`` is the
median over the steps of the difference within a pair, over the median bare step, with the teacher run at every step;
``remembered`` is the same with the teacher's answers in memory, as they are by default where they fit: then the loop
does less than the bare passes. ``training`` is the overhead over the bare passes and a step of AdamW, fused, which any
training has. Limit of ``overhead``: 10 %, of models whose bare step takes at least 9 ms. Of smaller ones it is what the
calls of some dozens of small operators take, and told in milliseconds, ``over_ms``. Exit code 1 beyond the limit.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import calibration  # noqa: E402
import compress  # noqa: E402
from compress.distill import DistillConfig, distill  # noqa: E402
from compress.distill import teacher as answers  # noqa: E402
from compress.model import Model  # noqa: E402
from compress.weights import with_weights  # noqa: E402
from runtimes.machine import machine_facts  # noqa: E402
from runtimes.spec import largest_batch  # noqa: E402

LIMIT, FROM_MS = 0.10, 9.0      # of models whose bare step takes so long
WARMUP = 5      # steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--steps", type=int, default=40, help="steps of each model and form")
    options = parser.parse_args()
    rows = []
    for folder in options.folders:
        rows.append(measure(folder, options.steps))
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps({"rows": rows, "limit": {"share": LIMIT, "from_ms": FROM_MS}, "torch": version("torch"),
                      "threads": torch.get_num_threads(), "machine": machine_facts()}, indent=1))
    return 0 if all(row["within"] is not False for row in rows) else 1


def measure(folder: Path, steps: int) -> dict[str, Any]:
    teacher = compress.load(folder / "model.pt")
    size = largest_batch(teacher.inputs, DistillConfig().batch_size)
    data = calibration.open_set(folder / "train", teacher.inputs).take((steps + WARMUP) * size)
    student = shaken(teacher)
    feed = {name: torch.from_numpy(array) for name, array in data.first(size).items()}
    bare, training = passes(teacher, student, feed), passes(teacher, student, feed, optimizer=True)
    row: dict[str, Any] = {"model": teacher.name, "batch": size, "steps": steps}
    for form, most in (("computed", 0), ("remembered", 1 << 30)):
        answers.CACHE_BYTES, answers.OPERATIONS_PER_BYTE = most, float("inf")
        times = in_turn(student, teacher, data, size, steps, bare, training)
        middle = np.median(times, axis=0)
        over, over_training = (float(np.median(times[:, 0] - times[:, i])) for i in (1, 2))
        taken = {f"{name}_ms": round(1e3 * t, 3) for name, t in zip(("loop", "bare", "adamw"), middle, strict=True)}
        row[form] = {"overhead": round(over / middle[1], 4), "over_ms": round(1e3 * over, 3),
                     "training": round(over_training / middle[2], 4), **taken}
        if form == "computed":
            row["within"] = bool(over <= LIMIT * middle[1]) if 1e3 * middle[1] >= FROM_MS else None
    return row


def shaken(model: Model) -> Model:
    noise = torch.Generator().manual_seed(0)
    return with_weights(model, {
        name: value + 0.05 * value.std() * torch.randn(value.shape, generator=noise)
        for name, value in model.weights.items() if value.is_floating_point() and value.numel() > 1
    })  # fmt: skip


def passes(
    teacher: Model, student: Model, feed: dict[str, torch.Tensor], *, optimizer: bool = False
) -> Callable[[], None]:
    """One bare step: all graphs of a model of independent ones; with ``optimizer`` also what AdamW does."""
    runs = []
    for model in (teacher, student):
        for graph in model.graphs.values():
            module = graph.program.module(check_guards=False)
            for name, value in list(module.named_parameters()):
                owner = module.get_submodule(name.rpartition(".")[0])
                own = torch.nn.Parameter(value.detach().clone(), requires_grad=model is student)
                setattr(owner, name.rpartition(".")[2], own)
            runs.append((module, {spec.name: feed[spec.name] for spec in graph.inputs}, model is student))
    weights = [value for module, _, trains in runs for value in module.parameters() if trains]
    adamw = torch.optim.AdamW(weights, lr=1e-9, weight_decay=0.0, fused=True)

    def step() -> None:
        for module, own, trains in runs:
            with torch.set_grad_enabled(trains):
                outputs = module(**own)
            if trains:
                torch.stack([value.sum() for value in outputs if value.is_floating_point()]).sum().backward()
        if optimizer:
            adamw.step()
        adamw.zero_grad(set_to_none=True)

    return step


def in_turn(
    student: Model, teacher: Model, data: calibration.CalibrationSet, size: int, steps: int,
    *others: Callable[[], None],
) -> np.ndarray:  # fmt: skip
    """Seconds of the loop's steps and of each of the ``others``, which run behind it: ``(steps, 1 + others)``."""
    times: list[list[float]] = []
    begun: list[float] = []

    def told(done: int, total: int, text: str) -> None:
        row = [time.perf_counter()]
        if begun and text.startswith("epoch"):
            for other in others:
                other()
                row.append(time.perf_counter())
            times.append(np.diff([begun[0], *row]).tolist())
        begun[:] = [time.perf_counter()]

    epochs = max(2, -(-(steps + WARMUP) * size // len(data)))
    distill(student, teacher, data, config=DistillConfig(epochs=epochs, batch_size=size), progress=told)
    return np.array(times[WARMUP : WARMUP + steps])


if __name__ == "__main__":
    sys.exit(main())
