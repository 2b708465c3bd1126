"""Distillation: a pruned or quantized student learns to answer as its teacher does, and recovers what it lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.errors import CompressError
from runtimes.spec import largest_batch

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.metrics import Metric
    from compress.model import Model


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What the student learns from, and for how long."""

    epochs: int = field(default=4, metadata={"help": "Passes over the train set."})
    batch_size: int = field(
        default=64, metadata={"help": "Samples a step; never more than the model's batch dimension allows."}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "Peak of the learning rate: a short warm-up, then a cosine to zero. "
                                        "Default: 2e-4; 3e-5 for a quantized student, which is close to its teacher."}
    )  # fmt: skip
    loss: Literal["kl", "mse"] = field(
        default="kl", metadata={"help": "How outputs are compared: kl for class scores, mse for other numbers."}
    )
    temperature: float = field(default=2.0, metadata={"help": "Softens both answers before --loss kl compares them."})
    logit_weight: float = field(default=1.0, metadata={"help": "Weight of the outputs' loss."})
    feature_weight: float = field(
        default=1.0, metadata={"help": "Weight of the loss between what the components hand to each other."}
    )
    label_weight: float = field(
        default=0.0, metadata={"help": "Weight of the cross-entropy with the train set's labels."}
    )
    seed: int = field(default=0, metadata={"help": "Of the order of the samples."})

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise CompressError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("learning_rate", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise CompressError(f"{name} is {value}: it must be above 0 and finite")
        weights = (self.logit_weight, self.feature_weight, self.label_weight)
        if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
            raise CompressError(
                f"logit_weight, feature_weight and label_weight are {weights}: none may be negative, "
                "one must be above 0"
            )
        if self.loss not in ("kl", "mse"):
            raise CompressError(f"loss is {self.loss!r}: expected 'kl' or 'mse'")
        if self.seed < 0:
            raise CompressError(f"seed is {self.seed}: it must be at least 0")


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """The trained ``model``, and how it got there.

    ``history`` has one entry per epoch: ``{epoch, loss, logit_loss, feature_loss, metric, seconds}``, the losses as
    means over the epoch's steps. ``before`` and ``after`` are the metric on the validation set, where both were given;
    ``kept`` is the epoch whose weights ``model`` has, 0 for the student's own.
    """

    model: Model
    history: tuple[Mapping[str, Any], ...]
    before: float | None
    after: float | None
    kept: int
    features: tuple[str, ...]                      # components whose outputs were compared
    skipped: tuple[str, ...]                       # features that could not be, and why
    quantized: bool

    def to_json(self) -> dict[str, Any]:
        """The record of the stage, without the model; its only timings are the ``seconds`` of the history."""
        return {
            "history": [dict(entry) for entry in self.history],
            "before": self.before,
            "after": self.after,
            "kept_epoch": self.kept,
            "features": list(self.features),
            "skipped_features": list(self.skipped),
            "quantization_aware": self.quantized,
        }


def distill(
    student: Model,
    teacher: Model,
    data: CalibrationSet,
    *,
    validation: CalibrationSet | None = None,
    metric: Metric | None = None,
    config: DistillConfig = DistillConfig(),
    scratch: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> DistillResult:
    """Return ``student`` with weights trained to answer as ``teacher`` does; a quantized one trains on its int8 grids.

    Both models run as exported: dropout is off and batch normalisation keeps its statistics. The graphs of a chain are
    trained together; a decoder learns to score the tokens of its teacher's own answers as the teacher does.

    Args:
        student: what to train; a quantized one keeps its activation ranges, its weights' ranges follow the weights.
        teacher: whose answers are right, with the same inputs and outputs; usually the original model.
        data: train set, with labels where ``config.label_weight`` is not 0.
        validation, metric: where given, the epoch that scores best on them is kept, or the student's own weights.
        config: see :class:`DistillConfig`.
        scratch: folder for a checkpoint, from which a run with the same inputs and settings continues.
        progress: called with (steps done, steps in all, a text with loss and metric).

    Raises:
        CompressError: if the two models or the data do not match, or a loss is not finite (naming the step).
    """
    from compress.distill.batches import Batches
    from compress.distill.bound import bind
    from compress.distill.checkpoint import Checkpoint, run_key
    from compress.distill.forcing import teacher_tokens
    from compress.distill.loop import Scorer, check_data, train
    from compress.distill.losses import Criterion
    from compress.distill.pairs import check_pair, match_features
    from compress.distill.teacher import Teacher
    from compress.onnxmodel import needs_module
    from compress.weights import with_weights

    for model in (student, teacher):
        needs_module(model, "distill", "student and teacher run in PyTorch, where the student is trained")
    if config.learning_rate is None:
        config = dataclasses.replace(config, learning_rate=2e-4 if student.quantization is None else 3e-5)
    check_pair(student, teacher, config)
    check_data(student, data, validation, metric, config)
    matched = match_features(student, teacher, config)
    module = bind(student, matched.student)
    size = largest_batch(student.inputs, config.batch_size)
    report = progress or _silent
    tokens = teacher_tokens(teacher, data, lambda text: report(0, config.epochs, text))
    batches = Batches(data, size, config.seed, labels=config.label_weight > 0, more=tokens)
    total = config.epochs * batches.per_epoch
    answers = Teacher(
        bind(teacher, matched.teacher), batches, epochs=config.epochs, progress=lambda text: report(0, total, text)
    )
    criterion = Criterion(module.compared, matched.components, config)
    scorer = None if validation is None or metric is None else Scorer(student, module, validation, metric, batches.size)
    checkpoint = None
    if scratch is not None:
        checkpoint = Checkpoint(scratch, run_key(student, teacher, data, validation, metric, config))
    state = train(module, answers, batches, criterion, config, scorer, checkpoint, report, f"model {student.name!r}")
    return DistillResult(
        model=with_weights(student, state.best_weights), history=tuple(state.history), before=state.before,
        after=state.best, kept=state.kept, features=tuple(dict.fromkeys(matched.components)), skipped=matched.skipped,
        quantized=student.quantization is not None,
    )  # fmt: skip


def _silent(done: int, total: int, text: str) -> None:
    """Nobody watches."""
