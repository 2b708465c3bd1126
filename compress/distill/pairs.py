"""Student and teacher: whether they can be compared, and which of their features are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from compress.distill.bound import Bound, bind
from compress.distill.config import DistillConfig
from compress.distill.graphs import Feature, compared_specs, find_attention, find_features
from compress.distill.projections import axis_between
from compress.distill.vocabulary import check_meanings
from compress.errors import CompressError
from compress.model import Model
from runtimes.spec import Dim, TensorSpec

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A feature of the student and the one of the teacher that it is compared with.

    Attributes:
        compared: whether their shapes allow it: they are equal, or a projection bridges them.
        projection: ``(axis, width, the teacher's width)`` of what makes the student's comparable.
        related: the batch axes of both, where the relations between samples can be compared.
    """

    student: Feature
    teacher: Feature
    compared: bool
    projection: tuple[int, int, int] | None = None
    related: tuple[int, int] | None = None

    @property
    def component(self) -> str:
        return self.student.component

    @property
    def attends(self) -> bool:
        return self.student.attends


@dataclass(frozen=True, kw_only=True)
class Matched:
    """The features of student and teacher that are compared, pair by pair, and what could not be matched."""

    pairs: tuple[Pair, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def components(self) -> tuple[str, ...]:
        """Those of which anything is compared, each once."""
        return tuple(dict.fromkeys(pair.component for pair in self.pairs))

    @property
    def student(self) -> tuple[Feature, ...]:
        return tuple(pair.student for pair in self.pairs)

    @property
    def teacher(self) -> tuple[Feature, ...]:
        return tuple(pair.teacher for pair in self.pairs)


def check_pair(student: Model, teacher: Model, config: DistillConfig) -> None:
    """Refuse a pair that cannot be compared, naming both models."""
    learnt = [spec for spec in compared_specs(student) if spec.dtype.startswith(("float", "bfloat"))]
    answers = compared_specs(teacher)     # refuses graphs of which it is not known how they feed each other
    pair = f"student {student.name!r} and teacher {teacher.name!r}"
    for what, ours, theirs in (
        ("input", student.inputs, teacher.inputs), ("output", student.outputs, teacher.outputs)
    ):  # fmt: skip
        _check_specs(pair, what, ours, theirs)
    if [s.name for s in student.outputs] != [s.name for s in teacher.outputs]:
        raise CompressError(f"{pair} have their outputs in different orders: save one of them again")
    if student.chain != teacher.chain:
        raise CompressError(f"{pair} chain their graphs in different ways: save one again with the other's chain")
    _check_specs(pair, "the scores of output", compared_specs(student), answers)
    check_meanings(pair, student, teacher)
    if not learnt and config.logit_weight:
        raise CompressError(f"model {student.name!r} has no output of real numbers: there is nothing to distil")
    single = next((spec for spec in learnt if spec.shape[-1:] == (1,)), None)
    if config.loss == "kl" and config.logit_weight and single is not None:
        raise CompressError(
            f"output {single.name!r} of {student.name!r} is one number, not class scores: use loss 'mse' or 'auto'"
        )


def _check_specs(pair: str, what: str, ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]) -> None:
    mine, other = {s.name: s for s in ours}, {s.name: s for s in theirs}
    if set(mine) != set(other):
        raise CompressError(f"{pair} have different {what}s, {sorted(mine)} and {sorted(other)}: the names must agree")
    for name, spec in mine.items():
        if _form(spec) != _form(other[name]):
            raise CompressError(
                f"{pair} differ in {what} {name!r}: {spec.describe()} and {other[name].describe()}; "
                "a teacher needs the inputs and answers of its student"
            )


def match_features(student: Model, teacher: Model, config: DistillConfig) -> Matched:
    """Pair what the two models compute inside, by component and order; what cannot be compared is skipped."""
    if not (config.feature_weight or config.attention_weight or config.relation_weight):
        return Matched()
    couples, skipped = _features(student, teacher, config)
    if config.attention_weight:
        couples += _attention(student, teacher, skipped)
    mine, theirs = (bind(model, [couple[i] for couple in couples]) for i, model in enumerate((student, teacher)))
    pairs = []
    for (ours, other), shape, wanted, axis, its in zip(
        couples, _shapes(student, mine), _shapes(teacher, theirs), _axes(mine), _axes(theirs), strict=True
    ):
        pair = _pair(ours, other, shape, wanted, axis, its, config)
        if pair.compared or pair.related is not None:
            pairs.append(pair)
        else:
            what = "attention maps of " if ours.attends else ""
            skipped.append(f"{ours.component}: {what}shape {shape} in the student, {wanted} in the teacher")
    return Matched(pairs=tuple(pairs), skipped=tuple(skipped))


def _features(student: Model, teacher: Model, config: DistillConfig) -> tuple[list[tuple[Feature, Feature]], list[str]]:
    couples: list[tuple[Feature, Feature]] = []
    skipped: list[str] = []
    if not (config.feature_weight or config.relation_weight):
        return couples, skipped
    mine, theirs = find_features(student), find_features(teacher)
    for component in _components(mine, theirs):
        ours, other = _own(mine, component), _own(theirs, component)
        if len(ours) != len(other):
            skipped.append(f"{component}: the student hands on {len(ours)} tensors, the teacher {len(other)}")
        else:
            couples += list(zip(ours, other, strict=True))
    return couples, skipped


def _attention(student: Model, teacher: Model, skipped: list[str]) -> list[tuple[Feature, Feature]]:
    """Each map of the student with one of the teacher's: with fewer layers, with every second of them, say.

    The last go with the last. Source: Jiao et al. 2020, arXiv:1909.10351 (TinyBERT), the uniform mapping.
    """
    mine, theirs = find_attention(student), find_attention(teacher)
    couples = []
    for component in _components(mine, theirs):
        ours, other = _own(mine, component), _own(theirs, component)
        if not ours or len(ours) > len(other):
            skipped.append(f"{component}: the student attends {len(ours)} times, the teacher {len(other)}")
            continue
        couples += [(feature, other[(index + 1) * len(other) // len(ours) - 1]) for index, feature in enumerate(ours)]
    return couples


def _components(mine: Sequence[Feature], theirs: Sequence[Feature]) -> list[str]:
    return list(dict.fromkeys(feature.component for feature in (*mine, *theirs)))


def _own(features: Sequence[Feature], component: str) -> list[Feature]:
    return [feature for feature in features if feature.component == component]


def _pair(
    ours: Feature, other: Feature, shape: Shape, wanted: Shape, axis: int | None, its: int | None,
    config: DistillConfig,
) -> Pair:  # fmt: skip
    if ours.attends:
        alike = len(shape) == len(wanted) == 4 and shape[2:] == wanted[2:]
        return Pair(student=ours, teacher=other, compared=shape == wanted or alike)
    bridge = axis_between(shape, wanted, axis) if config.feature_weight else None
    related = (axis, its) if config.relation_weight and axis is not None and its is not None else None
    return Pair(
        student=ours, teacher=other, compared=bool(config.feature_weight) and (shape == wanted or bridge is not None),
        projection=None if bridge is None else (bridge, shape[bridge], wanted[bridge]), related=related,
    )  # fmt: skip


def _form(spec: TensorSpec) -> tuple[Any, ...]:
    return spec.dtype, tuple(None if isinstance(size, Dim) else size for size in spec.shape)


def _axes(bound: Bound) -> tuple[int | None, ...]:
    return bound.batch_axes[len(bound.compared) :]


def _shapes(model: Model, bound: Bound) -> list[Shape]:
    """Of each feature, where its graph is run on the model's example."""
    feed = {name: torch.from_numpy(array) for name, array in model.example.items()}
    found: dict[Feature, torch.Tensor] = {}
    with torch.no_grad():
        for graph in bound.graphs.values():
            found.update(graph.run(feed)[1])
    return [tuple(found[feature].shape) for feature in bound.features]
