"""Driving: its physics by hand, its metric, what the locations show."""

import numpy as np
import pytest

from compress.metrics import get_metric
from compress.zoo.driving import TICK_S, samples, steering_deg, stopping_distance_m


def test_the_stopping_distance_by_hand():
    assert stopping_distance_m(20, rain=0, ice=0, slope=0) == pytest.approx(10 + 400 / 15.696)
    assert stopping_distance_m(20, rain=1, ice=1, slope=-0.05) == pytest.approx(10 + 400 / (19.62 * 0.2))


def test_the_steering_by_hand():
    assert steering_deg(0, 0.01) == pytest.approx(0.027 * 180 / np.pi)
    assert steering_deg(10, -0.01) == pytest.approx(-0.047 * 180 / np.pi)


def test_the_metric_wants_both_answers_right():
    metric = get_metric("compress.zoo.driving:drives_right")
    outputs = {"brake": np.array([[0.9], [0.9], [0.1], [0.6]]), "steering": np.array([[1.0], [3.1], [0.0], [0.0]])}
    target = np.array([[1, 2.5], [1, 1.0], [1, 0.0], [1, -2.0]])
    np.testing.assert_array_equal(metric.statistics(outputs, target), [1, 0, 0, 1])


def test_drives_are_of_several_lengths_and_end_where_the_car_is():
    lengths = set()
    for rows, target in samples()["validation"]:
        lengths.add(rows["track"].shape[1])
        np.testing.assert_allclose(rows["track"][:, -1], 0, atol=0.06)      # within half a metre
        assert (rows["moments"] == 1).all()
        assert set(np.unique(target[:, 0])) <= {0, 1}
    assert lengths == set(range(4, 13))
    speed = [-track[0, 1] * 10 / (len(track) - 1) / TICK_S for rows, _ in samples()["train"] for track in rows["track"]]
    brake = np.concatenate([target[:, 0] for _, target in samples()["train"]])
    assert min(speed) > 2
    assert max(speed) < 23
    assert np.corrcoef(speed, brake)[0, 1] > 0.3        # who is fast has to brake more often
    assert 0.2 < brake.mean() < 0.5
