import itertools

import numpy as np
import pytest

from compress.distill.schedules import schedule


def test_the_cosine_rises_to_its_peak_and_falls_towards_zero():
    shares = [schedule(step, 100) for step in range(100)]
    np.testing.assert_allclose(shares[:6], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    np.testing.assert_allclose(shares[52], 0.5 * (1 + np.cos(np.pi * 47 / 95)))
    assert all(a > b for a, b in itertools.pairwise(shares[5:]))
    assert 0 < shares[-1] < 0.001


@pytest.mark.parametrize(("kind", "expected"), [
    ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]), ("constant", [0.5, 1, 1, 1, 1, 1]),
])  # fmt: skip
def test_other_falls(kind, expected):
    np.testing.assert_allclose([schedule(step, 6, kind=kind, warmup=1 / 3) for step in range(6)], expected)


def test_one_step_and_no_warm_up():
    assert schedule(0, 1) == 1.0
    assert schedule(0, 10, warmup=0.0) == 1.0
    assert schedule(0, 10, kind="linear", warmup=0.0) == 1.0
