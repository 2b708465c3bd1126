"""Driving: its physics by hand, its metric, what the locations show."""

import dataclasses

import numpy as np
import pytest

from calibration import open_set
from compress.metrics import get_metric
from compress.modelfile import read_model
from compress.zoo.driving import DRIVING, TICK_S, samples, steering_deg, stopping_distance_m
from compress.zoo.reference import make_reference


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


def test_a_mask_goes_with_what_it_is_of():
    assert DRIVING.modalities == {"image": ("image",), "track": ("track", "moments"), "road": ("road",)}


def test_each_output_has_targets_of_its_own_and_scores(tmp_path):
    few = {name: [(rows, target) for rows, target in parts[:2]] for name, parts in samples().items()}
    few = {name: [({key: array[:8] for key, array in rows.items()}, target[:8]) for rows, target in parts]
           for name, parts in few.items()}  # fmt: skip
    fit = dataclasses.replace(DRIVING.fit, epochs=1)
    record = make_reference(dataclasses.replace(DRIVING, samples=lambda: few, fit=fit), tmp_path)
    assert list(record.scores) == [
        "accuracy/brake", "precision/brake", "recall/brake", "f1/brake", "mse/steering"
    ]  # fmt: skip
    assert list(record.baselines) == ["image alone", "track alone", "road alone", "majority answer"]
    data = open_set(tmp_path / "validation", read_model(tmp_path / "model.pt").inputs)
    both = np.concatenate([target for _, target in few["validation"]])
    np.testing.assert_array_equal(data.targets(), both)
    np.testing.assert_array_equal(data.targets("brake"), both[:, 0])
    np.testing.assert_array_equal(data.targets("steering"), both[:, 1])
