import math

import numpy as np
import pytest
import torch

from compress.distill.losses import (
    affinity,
    attention_divergence,
    binary_divergence,
    divergence,
    relation,
    relative_error,
    share_divergence,
    similarity,
)


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


def test_shares_are_compared_as_the_scores_they_were_made_of():
    student, teacher = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    for temperature in (1.0, 2.0):
        found = share_divergence(student.softmax(-1), teacher.softmax(-1), temperature)
        np.testing.assert_allclose(found.item(), divergence(student, teacher, temperature).item(), rtol=1e-5)


def test_a_share_of_zero_has_a_finite_loss_and_gradient():
    student = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss = share_divergence(student, torch.tensor([[0.5, 0.5]]), 1.0)
    loss.backward()
    np.testing.assert_allclose(loss.item(), 0.5 * math.log(0.5 / 1e-7) + 0.5 * math.log(0.5), rtol=1e-5)
    assert torch.isfinite(student.grad).all()


def test_binary_divergence_by_hand():
    student, teacher = torch.tensor([[0.5], [0.2]]), torch.tensor([[0.75], [0.2]])
    expected = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    np.testing.assert_allclose(binary_divergence(student, teacher).item(), expected, rtol=1e-6)


def test_certain_probabilities_have_a_finite_loss():
    given = torch.tensor([0.0, 1.0], requires_grad=True)
    loss = binary_divergence(given, torch.tensor([1.0, 1.0]))
    loss.backward()
    np.testing.assert_allclose(loss.item(), math.log(1 / 1e-7) / 2, rtol=1e-5)
    assert torch.isfinite(given.grad).all()


def test_attention_divergence_is_a_mean_over_rows():
    teacher = torch.tensor([[[[0.75, 0.25], [0.5, 0.5]]]])          # one sample, one head, two queries
    student = torch.full((1, 1, 2, 2), 0.5)
    expected = (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)) / 2
    np.testing.assert_allclose(attention_divergence(student, teacher).item(), expected, rtol=1e-6)


def test_attention_of_fewer_heads_is_compared_by_the_mean_over_heads():
    teacher = torch.tensor([[[[1.0, 0.0]], [[0.5, 0.5]]]])          # two heads, whose mean is (3/4, 1/4)
    student = torch.tensor([[[[0.5, 0.5]]]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    np.testing.assert_allclose(attention_divergence(student, teacher).item(), expected, rtol=1e-6)


def test_what_a_mask_hides_from_both_adds_nothing():
    maps = torch.tensor([[[[0.75, 0.25, 0.0]]]])
    assert attention_divergence(maps, maps).item() == 0.0


def test_relation_of_distances_and_angles_by_hand():
    # Teacher: 3, 4, 5: a right angle at the first point. Student: all on a line, the first between the others.
    teacher = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    student = torch.tensor([[0.0], [-1.0], [1.0]])
    # distances over their means, 4 and 4/3: (3, 4, 5) / 4 and (1, 1, 2) / (4/3)
    differences = np.array([0.75 - 0.75, 0.75 - 1.0, 1.5 - 1.25])
    distance = (differences**2 / 2).mean()
    # cosines at the points 0, 1, 2: teacher 0, 3/5, 4/5, student -1, 1, 1
    angle = (np.array([1.0, 0.4, 0.2]) ** 2 / 2).mean()
    np.testing.assert_allclose(relation(student, teacher).item(), distance + 2 * angle, rtol=1e-6)


def test_relation_does_not_see_scale_shift_rotation_or_width():
    teacher = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))
    turned = torch.linalg.qr(torch.randn(9, 6, generator=torch.Generator().manual_seed(1)))[0]
    student = 5 * teacher.flatten(1) @ turned.T + 2
    np.testing.assert_allclose(relation(student, teacher).item(), 0.0, atol=1e-9)


def test_relation_of_huge_differences_grows_linearly():
    # distances (0, 1, 1) / (2/3) and (1, 1, 0) / (2/3): differences of 1.5, beyond 1, where Huber's loss is |d| - 1/2
    teacher, student = torch.tensor([[0.0], [0.0], [1.0]]), torch.tensor([[0.0], [1.0], [1.0]])
    distance = (2 * (1.5 - 0.5) + 0) / 3
    # cosines are 0 where two points are one: at the points 0, 1, 2 the teacher has 0, 0, 1 and the student 1, 0, 0
    angle = (0.5 + 0 + 0.5) / 3
    np.testing.assert_allclose(relation(student, teacher).item(), distance + 2 * angle, rtol=1e-6)


@pytest.mark.parametrize("samples", [1, 2])
def test_relation_of_few_samples(samples):
    student = torch.arange(2.0 * samples).view(samples, 2).requires_grad_()
    loss = relation(student, student.detach() ** 2 + 1)
    np.testing.assert_allclose(loss.item(), 0.0, atol=1e-20)            # of two points the distance over the mean is 1
    if samples == 2:
        loss.backward()
        np.testing.assert_allclose(student.grad.numpy(), 0.0, atol=1e-12)


def test_equal_points_have_a_finite_gradient():
    student = torch.zeros(4, 3, requires_grad=True)
    relation(student, torch.randn(4, 3)).backward()
    assert torch.isfinite(student.grad).all()


def test_affinity_is_the_cosine_times_its_sharpness():
    left, right = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    np.testing.assert_allclose(affinity(left, right, 10.0).numpy(), [[6.0, 8.0]], rtol=1e-6)


def test_similarity_by_hand():
    # Teacher: sample i's two sides are alike; student: all are alike. A = ln 3 · cos.
    one = torch.eye(2)
    same = torch.ones(2, 1)
    wanted = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)      # of each row and each column
    found = similarity((same, same), (one, one), math.log(3.0))
    np.testing.assert_allclose(found.item(), wanted, rtol=1e-6)


def test_similarity_looks_along_rows_and_columns():
    left, right = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    # teacher's A = ln 3 · ((1, 0), (1, 0)): its rows are (3/4, 1/4), its columns even; the student's are all even
    same = torch.ones(2, 1)
    row = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    found = similarity((same, same), (left, right), math.log(3.0))
    np.testing.assert_allclose(found.item(), row / 2, rtol=1e-6)
