"""Values and drops of metrics that are means and of those that are not, and their intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from compress.errors import CompressError
from compress.intervals import mean_interval, paired_drop
from compress.metrics import Metric, drop_of, get_metric, value_of

RATIO = Metric(name="ratio", statistics=lambda said, target: said, value=lambda sums: sums[..., 0] / sums[..., 1])


def test_a_mean_of_scores_is_as_it_was() -> None:
    rng = np.random.default_rng(0)
    reference, candidate = (rng.random(100) < 0.9).astype(float), (rng.random(100) < 0.8).astype(float)
    groups = np.arange(100) // 2
    accuracy = get_metric("accuracy")
    assert value_of(accuracy, reference, groups) == mean_interval(reference, groups)
    assert drop_of(accuracy, reference, candidate, groups) == paired_drop(reference, candidate, groups)


def test_a_ratio_of_equal_weights_has_the_interval_of_its_mean() -> None:
    """The same groups are drawn for both, so the bootstrap of the mean is that of the ratio to the bit or nearly."""
    scores = np.random.default_rng(1).random(60)
    groups = np.arange(60) // 3
    mean, ratio = mean_interval(scores, groups), value_of(RATIO, np.stack([scores, np.ones(60)], axis=1), groups)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((mean.value, mean.low, mean.high), rel=1e-12)
    assert ratio.method == "bootstrap"


def test_the_bootstrap_of_a_ratio_against_its_analytic_spread() -> None:
    """The delta method's standard error of a ratio of means, for many samples."""
    rng = np.random.default_rng(2)
    words = rng.integers(2, 12, 4000).astype(float)
    edits = rng.binomial(words.astype(int), 0.1).astype(float)
    found = value_of(RATIO, np.stack([edits, words], axis=1))
    rate = edits.sum() / words.sum()
    spread = np.sqrt(((edits - rate * words) ** 2).mean() / 4000) / words.mean()
    assert found.value == pytest.approx(rate)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * spread, rel=0.05)


def test_the_drop_of_an_error_is_how_much_it_rose() -> None:
    wer = get_metric("wer")
    before, after = np.tile([1.0, 10.0], (50, 1)), np.tile([1.0, 10.0], (50, 1))
    after[:5, 0] = 3
    drop = drop_of(wer, before, after)
    assert drop.value == pytest.approx(10 / 500)
    assert 0 <= drop.low < drop.value < drop.high
    assert drop_of(wer, after, before).value == pytest.approx(-10 / 500)
    mse = get_metric("mse")
    assert drop_of(mse, np.ones(30), np.full(30, 3.0)).value == 2.0


def test_pairs_are_kept_together() -> None:
    """Both engines have the same hard samples: their drop is far surer than either value."""
    rng = np.random.default_rng(3)
    hard = rng.random(200) < 0.3
    before = np.stack([np.where(hard, 5.0, 0.0), np.full(200, 10.0)], axis=1)
    after = before + np.stack([rng.random(200) < 0.02, np.zeros(200)], axis=1)
    drop, value = drop_of(get_metric("wer"), before, after), value_of(get_metric("wer"), before)
    assert drop.high - drop.low < (value.high - value.low) / 5


def test_engines_that_never_differ_are_not_certain() -> None:
    """Wilson's bound at no difference seen, of 1 for a share: as for accuracy."""
    same = np.tile([0.0, 10.0], (100, 1))
    drop = drop_of(get_metric("wer"), same, same)
    bound = 1.959964**2 / (100 + 1.959964**2)
    assert (drop.low, drop.high) == pytest.approx((-bound, bound), rel=1e-6)
    accuracy = drop_of(get_metric("accuracy"), np.ones(100), np.ones(100))
    assert accuracy.high == pytest.approx(bound, rel=0.02)
    own = np.stack([np.arange(100.0), np.ones(100)], axis=1)    # values of single samples from 0 to 99
    assert drop_of(RATIO, own, own).high == pytest.approx(99 * bound, rel=1e-6)


def test_groups_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    edits = np.repeat(rng.integers(0, 3, 40), 5).astype(float)
    statistics = np.stack([edits, np.full(200, 10.0)], axis=1)
    alone, grouped = (value_of(get_metric("wer"), statistics, groups) for groups in (None, np.arange(200) // 5))
    assert grouped.high - grouped.low > 1.8 * (alone.high - alone.low)


def test_engines_are_compared_on_the_same_samples() -> None:
    with pytest.raises(CompressError, match=r"shape \(4, 2\) of the reference and \(5, 2\) of the candidate cannot be"):
        drop_of(get_metric("wer"), np.ones((4, 2)), np.ones((5, 2)))
    with pytest.raises(CompressError, match="1 samples in 1 groups: an interval needs at least two"):
        value_of(get_metric("wer"), np.ones((1, 2)))


@pytest.mark.parametrize(("value", "message"), [
    (lambda sums: 1 / 0, "metric 'own' makes no value of its 4 samples: ZeroDivisionError"),
    (lambda sums: "high", "metric 'own' makes no value of its 4 samples: ValueError"),
    (lambda sums: sums[..., 0] * np.nan, "metric 'own' makes nan of its 4 samples: it must be finite"),
])  # fmt: skip
def test_a_metric_that_makes_no_number(value: Callable[..., Any], message: str) -> None:
    metric = Metric(name="own", statistics=lambda outputs, target: np.ones((len(target), 2)), value=value)
    with pytest.raises(CompressError, match=message):
        value_of(metric, np.ones((4, 2)))
    with pytest.raises(CompressError, match=message):
        drop_of(metric, np.ones((4, 2)), np.ones((4, 2)))
