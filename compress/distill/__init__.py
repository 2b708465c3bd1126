"""Distillation: a pruned or quantized student learns to answer as its teacher does, and recovers what it lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.distill.config import DistillConfig

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.metrics import Metric
    from compress.model import Model

__all__ = ["DistillConfig", "DistillResult", "distill"]


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """The trained ``model``, and how it got there.

    ``history`` has one entry per epoch: ``{epoch, loss, metric, seconds}``, and ``logit_loss``, ``feature_loss`` and so
    on for the parts of the loss that there are, the losses as means over the epoch's batches, without their weights.
    ``before`` and ``after`` are the metric on the validation set, where both were given; ``kept`` is the epoch whose
    weights ``model`` has, 0 for the student's own. ``outputs`` says how each was compared: as class ``scores``,
    ``shares``, ``probabilities``, an ``embedding`` or ``numbers``.
    """

    model: Model
    history: tuple[Mapping[str, Any], ...]
    before: float | None
    after: float | None
    kept: int
    features: tuple[str, ...]                      # components whose outputs were compared
    skipped: tuple[str, ...]                       # features that could not be, and why
    projected: tuple[str, ...]                     # components of which a narrower output was
    outputs: Mapping[str, str]
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
            "projected": list(self.projected),
            "outputs": dict(self.outputs),
            "quantization_aware": self.quantized,
        }


def distill(
    student: Model,
    teacher: Model,
    data: CalibrationSet,
    *,
    validation: CalibrationSet | None = None,
    metric: Metric | None = None,
    config: DistillConfig = DistillConfig(),  # noqa: B008 - frozen
    scratch: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> DistillResult:
    """Return ``student`` with weights trained to answer as ``teacher`` does; a quantized one trains on its int8 grids.

    Both models run as exported: dropout is off and batch normalisation keeps its statistics. The graphs of a chain are
    trained together; a decoder learns to score the tokens of its teacher's own answers as the teacher does. Under
    ``torchrun`` each process trains on its share of the set, and all return the same model.

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
    from compress.distill.training import train_student
    from compress.distill.workers import workers
    from compress.onnxmodel import needs_module

    for model in (student, teacher):
        needs_module(model, "distill", "student and teacher run in PyTorch, where the student is trained")
    if config.learning_rate is None:
        config = dataclasses.replace(config, learning_rate=2e-4 if student.quantization is None else 3e-5)
    with workers() as crew:
        told = progress if progress is not None and crew.first else _silent
        return train_student(student, teacher, data, validation, metric, config, scratch, told, crew)


def _silent(done: int, total: int, text: str) -> None:
    """Nobody watches."""
