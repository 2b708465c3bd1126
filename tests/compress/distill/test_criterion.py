"""The sum of the losses, from terms that are built of outputs, pairs of features, and labels."""

import math

import numpy as np
import pytest
import torch

from compress.distill import DistillConfig
from compress.distill.criterion import Criterion
from compress.distill.graphs import Feature
from compress.distill.kinds import Output
from compress.distill.losses import relation, similarity
from compress.distill.pairs import Matched, Pair
from compress.distill.terms import Term, feature_terms, label_terms, output_terms, similarity_terms
from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 1, 64)
KL = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)        # of (3/4, 1/4) from (1/2, 1/2)
LOGITS, EVEN = torch.tensor([[math.log(3.0), 0.0]]), torch.zeros(1, 2)


def output(index, compared, *, kind=None, name=None, width=2):
    spec = TensorSpec(name=name or f"output_{index}", dtype="float32", shape=(BATCH, width))
    return Output(index=index, spec=spec, kind=kind or compared, compared=compared)


def feature(component, *, attends=False):
    return Feature(graph="forward", component=component, node=component, attends=attends)


def pair(component, *, attends=False, **more):
    given = {"compared": True, **more}
    return Pair(student=feature(component, attends=attends), teacher=feature(component, attends=attends), **given)


def losses(terms, config, student, teacher, labels=None):
    return Criterion(terms, config.weights)(student, teacher, labels or {})


@pytest.mark.parametrize(
    ("compared", "student", "teacher", "expected"),
    [
        ("scores", EVEN, LOGITS, KL),
        ("shares", EVEN.softmax(-1), LOGITS.softmax(-1), KL),
        ("probabilities", torch.tensor([[0.5]]), torch.tensor([[0.75]]), KL),
        ("numbers", torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]]), 1 / 25),
        ("embedding", torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]]), 1 / 25),
    ],
)
def test_an_output_is_compared_as_its_kind(compared, student, teacher, expected):
    config = DistillConfig(temperature=1.0)
    found = losses(output_terms([output(0, compared)], config.temperature), config, [student], [teacher])
    np.testing.assert_allclose(found.total.item(), expected, rtol=1e-5)


def test_parts_are_means_of_their_terms_and_the_total_their_weighted_sum():
    config = DistillConfig(temperature=1.0, logit_weight=2.0, feature_weight=10.0, attention_weight=3.0,
                           label_weight=0.5, component_weights=("heard=0.5",))  # fmt: skip
    outputs = [output(0, "scores", name="answer"), output(1, "numbers", name="size")]
    matched = Matched(pairs=(pair("seen"), pair("heard"), pair("seen", attends=True)))
    terms = [*output_terms(outputs, 1.0), *feature_terms(matched, 2, config),
             *label_terms(outputs, {"answer": np.array([1])}, [], 1.0)]  # fmt: skip
    maps = torch.full((1, 1, 1, 2), 0.5), torch.tensor([[[[0.75, 0.25]]]])
    student = [EVEN, torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 3.0]]), torch.tensor([[2.0]]), maps[0]]
    teacher = [LOGITS, torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0]]), maps[1]]
    found = losses(terms, config, student, teacher, {"answer": torch.tensor([1])})
    parts = {"logit": (KL + 1 / 25) / 2, "feature": (1 / 25 + 0.5 * 1.0) / 2, "attention": KL, "label": math.log(2)}
    assert {name: pytest.approx(float(value), rel=1e-5) for name, value in found.parts.items()} == parts
    total = 2 * parts["logit"] + 10 * parts["feature"] + 3 * parts["attention"] + 0.5 * parts["label"]
    np.testing.assert_allclose(found.total.item(), total, rtol=1e-5)


def test_what_is_projected_stands_behind_all_else():
    config = DistillConfig(feature_weight=1.0)
    matched = Matched(pairs=(pair("seen", projection=(1, 1, 2)), pair("heard"), pair("head", projection=(1, 1, 2))))
    student = [EVEN, torch.zeros(1, 1), torch.tensor([[2.0]]), torch.zeros(1, 1),
               torch.tensor([[3.0, 3.0]]), torch.tensor([[3.0, 4.0]])]  # fmt: skip
    teacher = [EVEN, torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0]]), torch.tensor([[3.0, 4.0]])]
    found = losses(feature_terms(matched, 1, config), config, student, teacher)
    np.testing.assert_allclose(found.parts["feature"].item(), (1 / 25 + 1.0 + 0.0) / 3, rtol=1e-6)


def test_relations_are_between_samples_wherever_their_axis_is():
    config = DistillConfig(relation_weight=2.0, feature_weight=0.0, logit_weight=0.0)
    student, teacher = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.randn(5, 4, 2)
    matched = Matched(pairs=(pair("seen", compared=False, related=(1, 0)),))
    found = losses(feature_terms(matched, 0, config), config, [student], [teacher])
    assert set(found.parts) == {"relation"}
    np.testing.assert_allclose(found.total.item(), 2 * relation(student.T, teacher).item(), rtol=1e-12)


def test_towers_by_their_similarity_and_by_what_belongs_together():
    config = DistillConfig(label_weight=1.0, logit_weight=0.0)
    sides = output(0, "embedding"), output(1, "embedding")
    terms = [*similarity_terms([sides], math.log(3.0)), *label_terms([], {}, [sides], math.log(3.0))]
    one, same = torch.eye(2), torch.ones(2, 1)
    found = losses(terms, config, [same, same], [one, one])
    np.testing.assert_allclose(found.parts["similarity"].item(), KL, rtol=1e-6)
    np.testing.assert_allclose(found.parts["label"].item(), math.log(2), rtol=1e-6)
    wanted = similarity((same, same), (one, one), math.log(3.0)).item()
    np.testing.assert_allclose(found.total.item(), wanted + math.log(2), rtol=1e-6)


def test_parts_without_a_weight_or_a_term_are_not_computed():
    def never(student, teacher, labels):
        raise AssertionError

    terms = [Term(part="feature", loss=never), *output_terms([output(0, "scores")], 1.0)]
    criterion = Criterion(terms, DistillConfig(feature_weight=0.0, attention_weight=1.0).weights)
    assert criterion.parts == ("logit",)
    assert set(criterion([EVEN], [EVEN], {}).parts) == {"logit"}
