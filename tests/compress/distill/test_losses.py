import math

import numpy as np
import pytest
import torch

from compress.distill import DistillConfig
from compress.distill.losses import Criterion, divergence, label_loss, relative_error
from compress.errors import CompressError
from runtimes.spec import Dim, TensorSpec

BATCH = Dim("batch", 1, 1, 64)


def test_divergence_of_two_classes_by_hand():
    # logits (ln 3, 0) are shares (3/4, 1/4); (0, 0) are (1/2, 1/2)
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    np.testing.assert_allclose(divergence(student, teacher, 1.0).item(), expected, rtol=1e-6)


def test_temperature_divides_logits_and_multiplies_the_loss_by_its_square():
    # at T = 2, logits (2 ln 3, 0) are shares (3/4, 1/4)
    teacher = torch.tensor([[2 * math.log(3.0), 0.0]])
    student = torch.tensor([[0.0, 0.0]])
    expected = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    np.testing.assert_allclose(divergence(student, teacher, 2.0).item(), expected, rtol=1e-6)


def test_divergence_is_the_mean_over_samples_and_positions():
    teacher = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    one = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    np.testing.assert_allclose(divergence(torch.zeros(1, 2, 2), teacher, 1.0).item(), one / 2, rtol=1e-6)


def test_equal_answers_have_no_gradient_that_an_optimiser_could_blow_up():
    teacher = torch.randn(64, 12, generator=torch.Generator().manual_seed(0)) * 5
    student = teacher.clone().requires_grad_()
    divergence(student, teacher, 2.0).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-15  # AdamW's eps is 1e-8


def test_a_class_masked_with_minus_infinity_adds_nothing():
    teacher = torch.tensor([[math.log(3.0), 0.0, -math.inf]])
    student = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    loss = divergence(student, teacher, 1.0)
    loss.backward()
    np.testing.assert_allclose(loss.item(), 0.75 * math.log(1.5) + 0.25 * math.log(0.5), rtol=1e-6)
    np.testing.assert_allclose(student.grad.numpy(), [[-0.25, 0.25, 0.0]], atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_relative_error_by_hand(scale):
    teacher = torch.tensor([[3.0, 4.0]]) * scale  # ‖·‖² = 25
    student = torch.tensor([[3.0, 3.0]]) * scale  # differs by 1
    np.testing.assert_allclose(relative_error(student, teacher).item(), 1 / 25, rtol=1e-6)


def test_relative_error_to_a_teacher_of_zeros_is_the_mean_squared_error():
    assert relative_error(torch.tensor([1.0, 3.0]), torch.zeros(2)).item() == 5.0


def test_label_loss_by_hand():
    scores = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    expected = -(math.log(0.25) + math.log(0.5)) / 2
    np.testing.assert_allclose(label_loss(scores, torch.tensor([1, 0])).item(), expected, rtol=1e-6)


def _criterion(**settings):
    outputs = [
        TensorSpec(name="logits", dtype="float32", shape=(BATCH, 2)),
        TensorSpec(name="answer", dtype="int64", shape=(BATCH,)),
    ]
    return Criterion(outputs, ["seen", "heard"], DistillConfig(temperature=1.0, **settings))


def test_criterion_weighs_outputs_features_and_labels_and_leaves_integers_out():
    integers = torch.tensor([0])
    student = [torch.zeros(1, 2), integers, torch.tensor([[3.0, 3.0]]), torch.tensor([[2.0]])]
    teacher = [torch.tensor([[math.log(3.0), 0.0]]), integers + 1, torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0]])]
    losses = _criterion(logit_weight=2.0, feature_weight=10.0, label_weight=0.5)(student, teacher, torch.tensor([1]))
    logit = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    feature = (1 / 25 + 1.0) / 2
    np.testing.assert_allclose([losses.logit, losses.feature], [logit, feature], rtol=1e-6)
    np.testing.assert_allclose(losses.total.item(), 2 * logit + 10 * feature + 0.5 * math.log(2), rtol=1e-6)


def test_mse_compares_numbers():
    values = [torch.tensor([[3.0, 3.0]]), torch.tensor([0]), torch.ones(1), torch.ones(1)]
    wanted = [torch.tensor([[3.0, 4.0]]), torch.tensor([0]), torch.ones(1), torch.ones(1)]
    losses = _criterion(loss="mse")(values, wanted, None)
    np.testing.assert_allclose(losses.total.item(), 1 / 25, rtol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0: it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: it must be above 0"),
        ({"temperature": math.inf}, "temperature is inf"),
        ({"feature_weight": -1.0}, "none may be negative"),
        ({"logit_weight": math.nan}, "none may be negative"),
        ({"logit_weight": 0.0, "feature_weight": 0.0}, "one must be above 0"),
        ({"loss": "hinge"}, "loss is 'hinge': expected 'kl' or 'mse'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(CompressError, match=message):
        DistillConfig(**settings)
