"""Mean squared error, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from compress.errors import CompressError
from compress.metrics import get_metric


def test_squared_error_of_each_sample() -> None:
    mse = get_metric("mse")
    assert (mse.lower_is_better, mse.is_share) == (True, False)
    pairs = np.array([[1.0, 3.0], [0.0, 2.0]], np.float32)
    np.testing.assert_allclose(mse.per_sample({"output": pairs}, np.array([[1, 1], [2, 2]])), [2.0, 2.0])
    np.testing.assert_allclose(mse.per_sample({"output": pairs[:, :1]}, np.array([0.5, -1.0])), [0.25, 1.0])


def test_refusals() -> None:
    with pytest.raises(CompressError, match=r"'mse' failed .*output has shape \(2, 3\) and the targets \(2,\)"):
        get_metric("mse").per_sample({"output": np.zeros((2, 3))}, np.zeros(2))
    with pytest.raises(CompressError, match=r"targets are texts \('far'\): give numbers"):
        get_metric("mse").per_sample({"output": np.zeros((2, 1))}, np.array(["far", "near"]))
