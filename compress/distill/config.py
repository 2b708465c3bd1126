"""What a distillation learns from, and how it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from compress.errors import CompressError


def _said(help: str) -> dict[str, Any]:
    return {"help": help}


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """What the student learns from, for how long, and how."""

    epochs: int = field(default=4, metadata=_said("Passes over the train set."))
    batch_size: int = field(
        default=64, metadata=_said("Samples a batch; never more than the model's batch dimension allows.")
    )
    learning_rate: float | None = field(
        default=None, metadata=_said("Peak of the learning rate. Default: 2e-4; 3e-5 for a quantized student, which is "
                                     "close to its teacher.")
    )  # fmt: skip
    loss: Literal["auto", "kl", "mse"] = field(
        default="auto", metadata=_said("How outputs are compared: kl for class scores, mse for other numbers, auto for "
                                       "each by what it is.")
    )  # fmt: skip
    temperature: float = field(default=2.0, metadata=_said("Softens both answers before kl compares them."))
    logit_weight: float = field(default=1.0, metadata=_said("Weight of the outputs' loss."))
    feature_weight: float = field(
        default=1.0, metadata=_said("Weight of the loss between what the components hand to each other; where the "
                                    "student's are narrower, through projections that are learned.")
    )  # fmt: skip
    attention_weight: float = field(default=0.0, metadata=_said("Weight of the loss between attention maps."))
    relation_weight: float = field(
        default=0.0, metadata=_said("Weight of the loss between the distances and angles of a batch's samples, as the "
                                    "components see them.")
    )  # fmt: skip
    similarity_weight: float = field(
        default=1.0, metadata=_said("Of dual encoders: weight of the loss between the similarity matrices of a batch.")
    )
    label_weight: float = field(
        default=0.0, metadata=_said("Weight of the task's own loss with the train set's labels.")
    )
    component_weights: tuple[str, ...] = field(
        default=(), metadata=_said("NAME=WEIGHT: what the features of a component weigh, in place of 1. May be given "
                                   "several times.")
    )  # fmt: skip
    schedule: Literal["cosine", "linear", "constant"] = field(
        default="cosine", metadata=_said("How the learning rate falls behind its warm-up.")
    )
    warmup: float = field(default=0.05, metadata=_said("Share of the steps over which the learning rate rises."))
    accumulate: int = field(default=1, metadata=_said("Batches whose gradients make one step."))
    clip_norm: float = field(default=1.0, metadata=_said("Largest norm of a step's gradient; 0 for any."))
    average: float = field(
        default=0.0, metadata=_said("Decay of an exponential average of the weights (0.999, say), which is scored and "
                                    "kept in their place; 0 for none.")
    )  # fmt: skip
    patience: int = field(
        default=0, metadata=_said("Stop behind this many epochs in which the metric did not get better; 0 for never.")
    )
    precision: Literal["fp32", "bf16"] = field(
        default="fp32", metadata=_said("What products are computed in; weights, gradients and losses stay in fp32.")
    )
    device: Literal["cpu", "cuda"] = field(
        default="cpu", metadata=_said("Where it trains: the processor, or an NVIDIA GPU that torch can use; of several "
                                      "GPUs one for each process.")
    )  # fmt: skip
    seed: int = field(default=0, metadata=_said("Of the order of the samples."))

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise CompressError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("patience", "seed"):
            if getattr(self, name) < 0:
                raise CompressError(f"{name} is {getattr(self, name)}: it must be at least 0")
        for name in ("learning_rate", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise CompressError(f"{name} is {value}: it must be above 0 and finite")
        if not 0 <= self.clip_norm < math.inf:
            raise CompressError(f"clip_norm is {self.clip_norm}: it must be at least 0 and finite")
        for name in ("warmup", "average"):
            if not 0 <= getattr(self, name) < 1:
                raise CompressError(f"{name} is {getattr(self, name)}: it must be in [0, 1)")
        self._check_weights()
        for name, choices in (
            ("loss", ("auto", "kl", "mse")), ("schedule", ("cosine", "linear", "constant")),
            ("precision", ("fp32", "bf16")), ("device", ("cpu", "cuda")),
        ):  # fmt: skip
            if getattr(self, name) not in choices:
                raise CompressError(f"{name} is {getattr(self, name)!r}: expected {' or '.join(map(repr, choices))}")

    @property
    def weights(self) -> dict[str, float]:
        """Part of the loss -> its weight."""
        return {
            "logit": self.logit_weight, "feature": self.feature_weight, "attention": self.attention_weight,
            "relation": self.relation_weight, "similarity": self.similarity_weight, "label": self.label_weight,
        }  # fmt: skip

    def of_components(self) -> dict[str, float]:
        """Component -> the weight of its features, where one was given."""
        return {name: float(weight) for name, _, weight in (text.rpartition("=") for text in self.component_weights)}

    def _check_weights(self) -> None:
        for part, weight in self.weights.items():
            if not 0 <= weight < math.inf:
                raise CompressError(f"{part}_weight is {weight}: it must be at least 0 and finite")
        if not any(self.weights.values()):
            raise CompressError("every weight of the loss is 0: one must be above 0")
        for text in self.component_weights:
            name, _, number = text.rpartition("=")
            try:
                right = bool(name) and 0 <= float(number) < math.inf
            except ValueError:
                right = False
            if not right:
                raise CompressError(f"component_weights has {text!r}: expected NAME=WEIGHT, the weight at least 0")


@dataclass(frozen=True, kw_only=True)
class DistillStage(DistillConfig):
    """A recipe's ``distill`` stage, which says besides whom the student learns from."""

    teacher: str | None = None          # a model's file, relative to the recipe; default: the recipe's model
