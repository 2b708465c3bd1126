"""The training loop: AdamW under a cosine, the best epoch kept, a checkpoint that continues to the same weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from calibration import CalibrationSet
from compress.distill import DistillConfig
from compress.distill.batches import Batches
from compress.distill.bound import Bound
from compress.distill.checkpoint import Checkpoint
from compress.distill.forcing import loops_of
from compress.distill.losses import Criterion
from compress.distill.teacher import Teacher
from compress.errors import CompressError
from compress.evaluate import evaluate, targets_of
from compress.metrics import Metric
from compress.model import Model
from compress.program import chain_of

CHECKPOINT_SECONDS = 30.0
WARMUP = 0.05      # share of the steps over which the learning rate rises
CLIP = 1.0         # largest norm of a step's gradient
EQUAL = 1e-11      # a loss below is float32 rounding (6e-8 squared, with room), which AdamW would blow up to full steps


@dataclass
class State:
    """Where a run stands. ``best`` is the best metric so far, ``best_weights`` what had it after epoch ``kept``."""

    step: int = 0
    before: float | None = None
    best: float | None = None
    kept: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # of this epoch: loss, logit and feature loss
    seconds: float = 0.0  # of this epoch


class Scorer:
    """The value of ``metric`` over the validation set, for the weights ``bound`` has when it is called.

    The chain runs as it will on a device: a decoder picks its own tokens.
    """

    def __init__(self, model: Model, bound: Bound, data: CalibrationSet, metric: Metric, batch: int) -> None:
        self.run = chain_of(model, bound.runs()).run
        self.data = data
        self.metric = metric
        self.batch = batch

    def __call__(self) -> float:
        return evaluate(self.run, self.data, self.metric, self.batch).value


def check_data(
    student: Model, data: CalibrationSet, validation: CalibrationSet | None, metric: Metric | None,
    config: DistillConfig,
) -> None:  # fmt: skip
    """Refuse sets that lack what this run reads."""
    if (validation is None) != (metric is None):
        raise CompressError("validation and metric go together: give both, or neither")
    for given in (data, validation):
        if given is None:
            continue
        got = {spec.name: spec.dtype for spec in given.inputs}
        expected = {spec.name: spec.dtype for spec in student.inputs}
        if got != expected:
            raise CompressError(
                f"data set {given.name!r} holds the inputs {got}, model {student.name!r} takes {expected}: open it "
                "with the model's inputs"
            )
    if validation is not None and metric is not None:
        targets_of(validation, metric.output)
    if config.label_weight and len(student.outputs) != 1:
        raise CompressError(
            f"label_weight is {config.label_weight}, but model {student.name!r} has {len(student.outputs)} outputs: "
            "labels are for a lone output of class scores"
        )
    if config.label_weight and loops_of(student):
        raise CompressError(
            f"label_weight is {config.label_weight}, but model {student.name!r} picks tokens, and learns those of its "
            "teacher: set it to 0"
        )


def train(
    student: Bound, teacher: Teacher, batches: Batches, criterion: Criterion, config: DistillConfig,
    scorer: Scorer | None, checkpoint: Checkpoint | None, progress: Callable[[int, int, str], None], name: str,
) -> State:  # fmt: skip
    """Train ``student`` in place from where the checkpoint left it, and return the state at the end."""
    module = student.module
    peak = config.learning_rate
    assert peak is not None  # distill has chosen one
    # No weight decay: a student that equals its teacher has to stay where it is.
    optimizer = torch.optim.AdamW(module.parameters(), lr=peak, weight_decay=0.0, fused=True)
    state = _resume(checkpoint, module, optimizer)
    if state is None:
        score = scorer() if scorer else None
        state = State(before=score, best=score, best_weights=student.parameters())
    total = config.epochs * batches.per_epoch
    saved = time.monotonic()
    while state.step < total:
        epoch, done = divmod(state.step, batches.per_epoch)
        for batch in batches.epoch(epoch, skip=done):
            started = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = peak * schedule(state.step, total)
            losses = criterion(student(batch.feed), teacher(batch), batch.labels)
            optimizer.zero_grad(set_to_none=True)
            losses.total.backward()  # type: ignore[no-untyped-call]
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP)
            loss = float(losses.total.detach())
            if not math.isfinite(loss) or not math.isfinite(float(norm)):
                raise _diverged(name, loss, float(norm), state.step, total, config, checkpoint)
            if loss > EQUAL:
                optimizer.step()
            state.step += 1
            state.sums = [a + b for a, b in zip(state.sums, (loss, losses.logit, losses.feature), strict=True)]
            state.seconds += time.perf_counter() - started
            progress(state.step, total, _text(epoch, config, loss, state))
            if checkpoint and state.step % batches.per_epoch and time.monotonic() - saved >= CHECKPOINT_SECONDS:
                _write(checkpoint, state, module, optimizer)
                saved = time.monotonic()
        _finish_epoch(state, epoch, batches.per_epoch, student, scorer)
        progress(state.step, total, _text(epoch, config, state.history[-1]["loss"], state))
        if checkpoint:
            _write(checkpoint, state, module, optimizer)
            saved = time.monotonic()
    return state


def schedule(step: int, total: int) -> float:
    """Share of the peak learning rate at ``step``: a linear warm-up, then half a cosine down towards zero.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    warm = max(1, round(WARMUP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


def _finish_epoch(state: State, epoch: int, steps: int, student: Bound, scorer: Scorer | None) -> None:
    score = scorer() if scorer else None
    loss, logit, feature = (value / steps for value in state.sums)
    state.history.append({
        "epoch": epoch + 1, "loss": loss, "logit_loss": logit, "feature_loss": feature, "metric": score,
        "seconds": state.seconds,
    })  # fmt: skip
    # Between equals the later one: it is closer to the teacher.
    if scorer is None or score is None or state.best is None or scorer.metric.is_no_worse(score, state.best):
        state.best, state.kept, state.best_weights = score, epoch + 1, student.parameters()
    state.sums, state.seconds = [0.0, 0.0, 0.0], 0.0


def _text(epoch: int, config: DistillConfig, loss: float, state: State) -> str:
    metric = f", metric {state.best:.4f}" if state.best is not None else ""
    return f"epoch {epoch + 1} of {config.epochs}, loss {loss:.4g}{metric}"


def _write(checkpoint: Checkpoint, state: State, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    checkpoint.write({"run": vars(state), "module": module.state_dict(), "optimizer": optimizer.state_dict()})


def _resume(checkpoint: Checkpoint | None, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State | None:
    saved: Mapping[str, Any] | None = checkpoint.read() if checkpoint else None
    if saved is None:
        return None
    module.load_state_dict(saved["module"])
    optimizer.load_state_dict(saved["optimizer"])
    return State(**saved["run"])


def _diverged(
    name: str, loss: float, norm: float, step: int, total: int, config: DistillConfig, checkpoint: Checkpoint | None
) -> CompressError:  # fmt: skip
    kept = f"; the last good checkpoint is {checkpoint.path}" if checkpoint and checkpoint.path.is_file() else ""
    return CompressError(
        f"distilling {name} stopped at step {step + 1} of {total}: the loss is {loss:g}, the norm of its gradient "
        f"{norm:g}. Lower learning_rate (it is {config.learning_rate:g}), or look for values that are not finite in "
        f"the outputs of student and teacher on the train set{kept}"
    )
