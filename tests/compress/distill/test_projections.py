import numpy as np
import pytest
import torch

from compress.distill.projections import Projection, axis_between


def test_a_projection_is_a_linear_map_along_its_axis():
    project = Projection(1, 2, 3)
    project.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    picture = torch.arange(16.0).view(2, 2, 2, 2)
    found = project(picture)
    assert found.shape == (2, 3, 2, 2)
    np.testing.assert_allclose(found[:, 1].detach(), 2 * picture[:, 1])
    np.testing.assert_allclose(found[:, 2].detach(), picture.sum(1))


def test_it_begins_where_the_teacher_can_be_read_from_the_student():
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(200, 5, 4, generator=generator)
    true = torch.randn(6, 4, generator=generator)
    project = Projection(2, 4, 6)
    project.fit(student, student @ true.T)
    np.testing.assert_allclose(project.weight.detach(), true / 1.01, rtol=0.02, atol=0.01)


def test_ridge_regression_of_one_number_by_hand():
    # x = (1, 3): XᵀX = 10, λ = 0.1; y = (2, 6): XᵀY = 20
    project = Projection(1, 1, 1)
    project.fit(torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [6.0]]))
    np.testing.assert_allclose(project.weight.item(), 20 / 10.1, rtol=1e-6)


def test_a_student_of_zeros_has_a_projection_of_zeros():
    project = Projection(1, 2, 2)
    project.fit(torch.zeros(3, 2), torch.ones(3, 2))
    assert (project.weight == 0).all()


@pytest.mark.parametrize(
    ("student", "teacher", "batch", "axis"),
    [
        ((1, 4), (1, 8), 0, 1), ((1, 4, 7, 7), (1, 8, 7, 7), 0, 1), ((1, 5, 4), (1, 5, 8), 0, 2), ((4,), (8,), None, 0),
        ((1, 4), (1, 4), 0, None), ((1, 4, 7), (1, 8, 14), 0, None), ((1, 4), (1, 4, 1), 0, None),
        ((2, 4), (3, 4), 0, None),
    ],
)  # fmt: skip
def test_the_axis_that_is_bridged(student, teacher, batch, axis):
    assert axis_between(student, teacher, batch) == axis
