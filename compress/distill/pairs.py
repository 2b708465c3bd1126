"""Student and teacher: whether they can be compared, and which of their features are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from compress.distill import DistillConfig
from compress.distill.bound import bind
from compress.distill.graphs import Feature, compared_specs, find_features
from compress.errors import CompressError
from compress.model import Model
from runtimes.spec import Dim, TensorSpec


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The features of student and teacher that are compared, pair by pair, and what could not be matched."""

    student: tuple[Feature, ...] = ()
    teacher: tuple[Feature, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(feature.component for feature in self.student)


def check_pair(student: Model, teacher: Model, config: DistillConfig) -> None:
    """Refuse a pair that cannot be compared, naming both models."""
    learnt = [spec for spec in compared_specs(student) if spec.dtype.startswith(("float", "bfloat"))]
    compared_specs(teacher)     # refuses graphs of which it is not known how they feed each other
    pair = f"student {student.name!r} and teacher {teacher.name!r}"
    for what, ours, theirs in (
        ("input", student.inputs, teacher.inputs), ("output", student.outputs, teacher.outputs)
    ):  # fmt: skip
        mine, other = {s.name: s for s in ours}, {s.name: s for s in theirs}
        if set(mine) != set(other):
            raise CompressError(
                f"{pair} have different {what}s, {sorted(mine)} and {sorted(other)}: the names must agree"
            )
        for name, spec in mine.items():
            if _form(spec) != _form(other[name]):
                raise CompressError(
                    f"{pair} differ in {what} {name!r}: {spec.describe()} and {other[name].describe()}; "
                    "a teacher needs the inputs and answers of its student"
                )
    if [s.name for s in student.outputs] != [s.name for s in teacher.outputs]:
        raise CompressError(f"{pair} have their outputs in different orders: save one of them again")
    if student.chain != teacher.chain:
        raise CompressError(f"{pair} chain their graphs in different ways: save one again with the other's chain")
    if not learnt and config.logit_weight:
        raise CompressError(f"model {student.name!r} has no output of real numbers: there is nothing to distil")
    single = next((spec for spec in learnt if spec.shape[-1:] == (1,)), None)
    if config.loss == "kl" and config.logit_weight and single is not None:
        raise CompressError(
            f"output {single.name!r} of {student.name!r} is one number, not class scores: use loss 'mse'"
        )


def match_features(student: Model, teacher: Model, config: DistillConfig) -> Matched:
    """Pair the features of the two models by component and order; what differs in number or shape is skipped."""
    if not config.feature_weight:
        return Matched()
    mine, theirs = find_features(student), find_features(teacher)
    pairs, skipped = [], []
    for component in dict.fromkeys(feature.component for feature in (*mine, *theirs)):
        ours = [feature for feature in mine if feature.component == component]
        other = [feature for feature in theirs if feature.component == component]
        if len(ours) != len(other):
            skipped.append(f"{component}: the student hands on {len(ours)} tensors, the teacher {len(other)}")
        else:
            pairs += list(zip(ours, other, strict=True))
    kept = []
    shapes = zip(
        pairs, _shapes(student, [pair[0] for pair in pairs]), _shapes(teacher, [pair[1] for pair in pairs]), strict=True
    )
    for pair, shape, wanted in shapes:
        if shape == wanted:
            kept.append(pair)
        else:
            skipped.append(f"{pair[0].component}: shape {shape} in the student, {wanted} in the teacher")
    if not kept and not config.logit_weight and not config.label_weight:
        raise CompressError(
            f"student {student.name!r} and teacher {teacher.name!r} have no component output in common "
            f"({'; '.join(skipped) or 'no components'}): give logit_weight"
        )
    return Matched(student=tuple(p[0] for p in kept), teacher=tuple(p[1] for p in kept), skipped=tuple(skipped))


def _form(spec: TensorSpec) -> tuple[Any, ...]:
    return spec.dtype, tuple(None if isinstance(size, Dim) else size for size in spec.shape)


def _shapes(model: Model, features: Sequence[Feature]) -> list[tuple[int, ...]]:
    """Of each feature, where its graph is run on the model's example."""
    feed = {name: torch.from_numpy(array) for name, array in model.example.items()}
    found: dict[Feature, torch.Tensor] = {}
    with torch.no_grad():
        for graph in bind(model, features).graphs.values():
            found.update(graph.run(feed)[1])
    return [tuple(found[feature].shape) for feature in features]
