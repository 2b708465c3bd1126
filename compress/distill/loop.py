"""The training loop: AdamW under a schedule, the best epoch kept, a checkpoint that continues to the same weights."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from compress.distill.averaging import Average
from compress.distill.batches import Batch, Batches
from compress.distill.checkpoint import Checkpoint
from compress.distill.config import DistillConfig
from compress.distill.criterion import Criterion
from compress.distill.learner import Learner
from compress.distill.schedules import schedule
from compress.distill.scoring import Scorer
from compress.distill.state import State, Training
from compress.distill.teacher import Teacher
from compress.distill.workers import Workers
from compress.errors import CompressError

CHECKPOINT_SECONDS = 30.0
CHECKPOINT_SHARE = 0.05     # of the time, at most, that writing checkpoints inside of an epoch takes
EQUAL = 1e-11      # a loss below is float32 rounding (6e-8 squared, with room), which AdamW would blow up to full steps


@dataclass(kw_only=True)
class Run:
    """What one training needs; ``name`` is the student's, for errors."""

    learner: Learner
    teacher: Teacher
    batches: Batches
    criterion: Criterion
    config: DistillConfig
    scorer: Scorer | None
    checkpoint: Checkpoint | None
    workers: Workers
    progress: Callable[[int, int, str], None]
    name: str

    @property
    def total(self) -> int:
        return self.config.epochs * self.batches.per_epoch


def train(run: Run) -> State:
    """Train the student in place from where the checkpoint left it, and return the state at the end.

    Raises:
        CompressError: if a loss or a gradient is not finite; names the step.
    """
    config, batches = run.config, run.batches
    assert config.learning_rate is not None  # distill has chosen one
    # No weight decay: a student that equals its teacher has to stay where it is.
    optimizer = torch.optim.AdamW(run.learner.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    average = Average(run.learner.bound.named(), config.average) if config.average else None
    training = Training(module=run.learner, optimizer=optimizer, average=average)
    state = _begin(run, training)
    clock = _Clock()
    while state.step < run.total and not _stopped(state, config):
        epoch, done = divmod(state.step, batches.per_epoch)
        among: list[tuple[float, float]] = []     # loss and weight of the batches that the next step is made of
        for batch in batches.epoch(epoch, skip=done):
            started = time.perf_counter()
            last, weight = _place(run, state.step % batches.per_epoch, batch)
            losses = _backward(run, batch, weight)
            among.append((losses["loss"], weight))
            if last:
                _update(run, training, state, among)
                among = []
            state.step += 1
            state.add(losses)
            state.seconds += time.perf_counter() - started
            run.progress(state.step, run.total, _text(run, epoch, losses["loss"], state))
            if run.checkpoint and last and state.step % batches.per_epoch and clock.due():
                clock.timed(training.write, run.checkpoint, state)
        _finish_epoch(run, training, state, epoch)
        run.progress(state.step, run.total, _text(run, epoch, state.history[-1]["loss"], state))
        if run.checkpoint:
            clock.timed(training.write, run.checkpoint, state)
    return state


class _Clock:
    """When the next checkpoint is due: a while behind the last one, longer where writing it takes long."""

    def __init__(self) -> None:
        self._next = time.monotonic() + CHECKPOINT_SECONDS

    def due(self) -> bool:
        return time.monotonic() >= self._next

    def timed(self, write: Callable[[Checkpoint, State], None], checkpoint: Checkpoint, state: State) -> None:
        began = time.monotonic()
        write(checkpoint, state)
        ended = time.monotonic()
        self._next = ended + max(CHECKPOINT_SECONDS, (ended - began) / CHECKPOINT_SHARE)


def _begin(run: Run, training: Training) -> State:
    saved: Mapping[str, Any] | None = run.workers.told(run.checkpoint.read() if run.checkpoint else None)
    if saved is not None:
        return training.resume(saved)
    if len(run.learner.projections):
        first = next(iter(run.batches.epoch(0))).to(run.learner.bound.device)
        run.learner.fit(first.feed, run.teacher(first))
        run.workers.same(run.learner.projections.parameters())
    score = _score(run)
    return State(before=score, best=score, best_weights=run.learner.bound.parameters())


def _place(run: Run, number: int, batch: Batch) -> tuple[bool, float]:
    """Whether a batch of an epoch is the last of its step, and what it weighs in it: as many samples as it has.

    A step is made of ``accumulate`` batches, or of what the epoch has left.
    """
    among = run.config.accumulate
    last = (number + 1) % among == 0 or number + 1 == run.batches.per_epoch
    return last, 1.0 if among == 1 else len(batch.rows) / run.batches.size


def _backward(run: Run, batch: Batch, weight: float) -> dict[str, float]:
    """Add a batch's gradient, times its weight, and return its losses: ``loss``, and each part of it."""
    batch = batch.to(run.learner.bound.device)
    losses = run.criterion(run.learner(batch.feed), run.teacher(batch), batch.labels)
    (losses.total if weight == 1 else losses.total * weight).backward()  # type: ignore[no-untyped-call]
    values = torch.stack([losses.total.detach(), *losses.parts.values()]).tolist()
    return dict(zip(("loss", *losses.parts), values, strict=True))


def _update(run: Run, training: Training, state: State, among: Sequence[tuple[float, float]]) -> None:
    """One step of the optimizer down the gradient that was added up, of batches with these losses and weights."""
    config, optimizer = run.config, training.optimizer
    assert config.learning_rate is not None
    held = optimizer.param_groups[0]["params"]      # the learner's, without a walk through its modules
    trained = [value for value in held if value.grad is not None]
    gradients = [value.grad for value in trained if value.grad is not None]
    weights = math.fsum(weight for _, weight in among)
    if weights != 1 and gradients:
        torch._foreach_mul_(gradients, 1 / weights)
    run.workers.join(held)
    total = get_total_norm(gradients)
    norm = float(total)
    (loss,) = run.workers.mean([math.fsum(loss * weight for loss, weight in among) / weights])
    if not math.isfinite(loss) or not math.isfinite(norm):
        raise _diverged(run, loss, norm, state.step)
    share = schedule(state.step, run.total, kind=config.schedule, warmup=config.warmup)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * share
    if 0 < config.clip_norm < norm:
        clip_grads_with_norm_(trained, config.clip_norm, total)
    if loss > EQUAL:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if training.average is not None:
        training.average.update(state.updates)
    state.updates += 1


def _finish_epoch(run: Run, training: Training, state: State, epoch: int) -> None:
    with contextlib.nullcontext() if training.average is None else training.average.applied():
        score, weights = _score(run), run.learner.bound.parameters()
    means = [value / run.batches.per_epoch for value in run.workers.mean(list(state.sums.values()))]
    losses = dict(zip(state.sums, means, strict=True))
    state.history.append({
        "epoch": epoch + 1, "loss": losses.pop("loss"), **{f"{part}_loss": value for part, value in losses.items()},
        "metric": score, "seconds": state.seconds,
    })  # fmt: skip
    # Between equals the later one: it is closer to the teacher.
    if run.scorer is None or score is None or state.best is None or run.scorer.metric.is_no_worse(score, state.best):
        if score is None or score != state.best:
            state.improved = epoch + 1
        state.best, state.kept, state.best_weights = score, epoch + 1, weights
    state.sums, state.seconds = {}, 0.0


def _score(run: Run) -> float | None:
    """The first process scores, and tells the others."""
    return run.workers.told(run.scorer() if run.scorer is not None and run.workers.first else None)


def _stopped(state: State, config: DistillConfig) -> bool:
    return 0 < config.patience <= len(state.history) - state.improved


def _text(run: Run, epoch: int, loss: float, state: State) -> str:
    metric = f", metric {state.best:.4f}" if state.best is not None else ""
    return f"epoch {epoch + 1} of {run.config.epochs}, loss {loss:.4g}{metric}"


def _diverged(run: Run, loss: float, norm: float, step: int) -> CompressError:
    kept = f"; the last good checkpoint is {run.checkpoint.path}" if run.checkpoint and run.checkpoint.written else ""
    return CompressError(
        f"distilling {run.name} stopped at step {step + 1} of {run.total}: the loss is {loss:g}, the norm of its "
        f"gradient {norm:g}. Lower learning_rate (it is {run.config.learning_rate:g}), or look for values that are not "
        f"finite in the outputs of student and teacher on the train set{kept}"
    )
