"""What is compared: each term of the loss, from the outputs, the features and the labels of a pair of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from torch import Tensor

from compress.distill.config import DistillConfig
from compress.distill.kinds import Output
from compress.distill.labels import label_loss, pairing_loss, task_kind
from compress.distill.losses import (
    attention_divergence,
    binary_divergence,
    divergence,
    relation,
    relative_error,
    share_divergence,
    similarity,
)
from compress.distill.pairs import Matched

Values: TypeAlias = Sequence[Tensor]
"""The tensors of a model for a batch: its outputs, then its features; of a student also those that were projected."""

Labels: TypeAlias = Mapping[str, Tensor]
"""Output -> its labels."""


Compare: TypeAlias = Callable[[Values, Values, Labels], Tensor]
"""From the student's tensors, the teacher's and the labels to a scalar."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One comparison: the part of the loss that it belongs to, its weight in the part's mean, and how it is made."""

    part: str
    weight: float = 1.0
    loss: Compare


def output_terms(outputs: Sequence[Output], temperature: float) -> list[Term]:
    """The comparison of each output with the teacher's, as what it is compared as."""
    return [Term(part="logit", loss=_of_pair(_comparison(output, temperature), output.index, output.index))
            for output in outputs]  # fmt: skip


def _comparison(output: Output, temperature: float) -> Callable[[Tensor, Tensor], Tensor]:
    if output.compared == "scores":
        return lambda student, teacher: divergence(student, teacher, temperature)
    if output.compared == "shares":
        return lambda student, teacher: share_divergence(student, teacher, temperature)
    return binary_divergence if output.compared == "probabilities" else relative_error


def feature_terms(matched: Matched, first: int, config: DistillConfig) -> list[Term]:
    """The comparisons inside of the models: features through their projections, attention maps, relations.

    Args:
        matched: the pairs, whose tensors stand behind the ``first`` ones, those of the outputs.
    """
    weights = config.of_components()
    projected = first + len(matched.pairs)
    terms = []
    for index, pair in enumerate(matched.pairs, first):
        weight, mine = weights.get(pair.component, 1.0), index
        if pair.projection is not None:
            mine, projected = projected, projected + 1
        if pair.attends:
            terms.append(Term(part="attention", weight=weight, loss=_of_pair(attention_divergence, index, index)))
        elif pair.compared:
            terms.append(Term(part="feature", weight=weight, loss=_of_pair(relative_error, mine, index)))
        if pair.related is not None and not pair.attends:
            terms.append(Term(part="relation", weight=weight, loss=_of_samples(relation, index, *pair.related)))
    return terms


def _of_pair(compare: Callable[[Tensor, Tensor], Tensor], mine: int, index: int) -> Compare:
    return lambda student, teacher, _: compare(student[mine], teacher[index])


def _of_samples(compare: Callable[[Tensor, Tensor], Tensor], index: int, axis: int, other: int) -> Compare:
    """With the samples along the first axis: ``axis`` of the student's tensor, ``other`` of the teacher's."""
    return lambda student, teacher, _: compare(student[index].movedim(axis, 0), teacher[index].movedim(other, 0))


def similarity_terms(pairs: Sequence[tuple[Output, Output]], sharpness: float) -> list[Term]:
    """How alike the samples' embeddings of two towers are, for each two towers."""

    def of(left: int, right: int) -> Compare:
        return lambda student, teacher, _: similarity(
            (student[left], student[right]), (teacher[left], teacher[right]), sharpness)

    return [Term(part="similarity", loss=of(left.index, right.index)) for left, right in pairs]


def label_terms(
    outputs: Sequence[Output], labelled: Mapping[str, np.ndarray], pairs: Sequence[tuple[Output, Output]],
    sharpness: float,
) -> list[Term]:  # fmt: skip
    """The task's own loss of each output that has labels; of two towers, telling which samples belong together."""

    def of(output: Output) -> Compare:
        kind = task_kind(output.kind, labelled[output.spec.name])
        return lambda student, _, labels: label_loss(kind, student[output.index], labels[output.spec.name])

    def belonging(left: int, right: int) -> Compare:
        return lambda student, _, __: pairing_loss(student[left], student[right], sharpness)

    return [
        *(Term(part="label", loss=of(output)) for output in outputs if output.spec.name in labelled),
        *(Term(part="label", loss=belonging(left.index, right.index)) for left, right in pairs),
    ]
