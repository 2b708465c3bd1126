"""The losses between a student and its teacher: outputs, what components hand to each other, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from compress.distill import DistillConfig
from runtimes.spec import TensorSpec


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """``T² · KL(softmax(teacher / T) || softmax(student / T))`` over the last axis, the mean over all others.

    In float64, so that equal answers have no gradient, instead of rounding that AdamW would blow up to full steps.

    Source: Hinton et al. 2015, arXiv:1503.02531, section 2; T² keeps the gradient's size independent of T.
    """
    wanted = log_softmax(teacher.double() / temperature, dim=-1)
    given = log_softmax(student.double() / temperature, dim=-1)
    share = wanted.exp()
    terms = (share * (wanted - given)).masked_fill(share == 0, 0.0)  # a class masked with -inf adds nothing
    return terms.sum(-1).mean() * temperature**2


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """``‖student - teacher‖² / ‖teacher‖²``: the squared error as a share of the signal, whatever its scale."""
    signal = teacher.square().mean()
    return (student - teacher).square().mean() / torch.where(signal > 0, signal, 1.0)


def label_loss(student: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of scores ``(..., classes)`` with class indices ``(...)``."""
    return cross_entropy(student.flatten(0, -2), labels.flatten().long())


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The loss of one batch, a scalar tensor with a gradient, and its unweighted parts."""

    total: Tensor
    logit: float
    feature: float


class Criterion:
    """Weighs the losses of a batch whose tensors are a model's outputs followed by its features."""

    def __init__(self, outputs: Sequence[TensorSpec], features: Sequence[str], config: DistillConfig) -> None:
        self.outputs = [index for index, spec in enumerate(outputs) if spec.dtype.startswith(("float", "bfloat"))]
        self.features = range(len(outputs), len(outputs) + len(features))
        self.config = config

    def __call__(self, student: Sequence[Tensor], teacher: Sequence[Tensor], labels: Tensor | None) -> Losses:
        config = self.config
        logit = _mean([self._output_loss(student[index], teacher[index]) for index in self.outputs])
        feature = _mean([relative_error(student[index], teacher[index]) for index in self.features])
        total = config.logit_weight * logit + config.feature_weight * feature
        if labels is not None:
            total = total + config.label_weight * label_loss(student[0], labels)
        return Losses(total=total, logit=float(logit.detach()), feature=float(feature.detach()))

    def _output_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.config.loss == "kl":
            return divergence(student, teacher, self.config.temperature)
        return relative_error(student, teacher)


def _mean(losses: Sequence[Tensor]) -> Tensor:
    return torch.stack([loss.double() for loss in losses]).mean() if losses else torch.zeros((), dtype=torch.float64)
