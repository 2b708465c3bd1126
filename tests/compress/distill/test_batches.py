import itertools

import numpy as np
import pytest
import torch

from calibration import open_set
from compress.distill import batches as module
from compress.distill.batches import Batches
from compress.distill.loop import schedule
from runtimes.spec import Dim, TensorSpec

TEXT = TensorSpec(name="ids", dtype="int64", shape=(Dim("batch", 1, 1, 64), Dim("length", 1, 4, 8)), modality="text")


def numbered(lengths):
    """A set whose samples hold their own position; one feed for each of ``lengths``, 10 samples each."""
    feeds = []
    for index, length in enumerate(lengths):
        numbers = np.arange(10 * index, 10 * index + 10)
        feeds.append({"ids": np.repeat(numbers[:, None], length, axis=1), "target": numbers})
    return open_set(feeds, [TEXT])


def seen(batches, epoch, skip=0):
    return [batch.feed["ids"][:, 0].tolist() for batch in batches.epoch(epoch, skip)]


@pytest.mark.parametrize("window", [1 << 20, 400])
def test_an_epoch_has_every_sample_once_with_its_own_label(monkeypatch, window):
    monkeypatch.setattr(module, "WINDOW_BYTES", window)
    batches = Batches(numbered([3, 5, 3, 4, 4]), 4, seed=0, labels=True)
    assert (batches.only is None) == (window == 400)
    found = list(batches.epoch(0))
    assert len(found) == batches.per_epoch
    assert sorted(i for batch in found for i in batch.feed["ids"][:, 0].tolist()) == list(range(50))
    for batch in found:
        assert torch.equal(batch.feed["ids"][:, 0], batch.labels)
        assert len(batch.labels) <= 4


@pytest.mark.parametrize("window", [1 << 20, 400])
def test_the_order_follows_from_seed_and_epoch_and_can_be_entered_anywhere(monkeypatch, window):
    monkeypatch.setattr(module, "WINDOW_BYTES", window)
    data = numbered([3, 5, 3, 4, 4])
    batches = Batches(data, 4, seed=0)
    assert seen(batches, 1) == seen(Batches(data, 4, seed=0), 1)
    assert seen(batches, 1) != seen(batches, 0)
    assert seen(batches, 1) != seen(Batches(data, 4, seed=1), 1)
    for skip in range(batches.per_epoch + 1):
        assert seen(batches, 1, skip) == seen(batches, 1)[skip:]


def test_the_batch_axis_need_not_be_the_first():
    spec = TensorSpec(name="sound", dtype="float32", shape=(3, Dim("batch", 1, 1, 8)), batch_axis=1)
    data = open_set([{"sound": np.arange(15, dtype=np.float32).reshape(3, 5)}], [spec])
    columns = torch.cat([batch.feed["sound"] for batch in Batches(data, 2, seed=0).epoch(0)], dim=1)
    assert sorted(columns.T.tolist()) == np.arange(15.0).reshape(3, 5).T.tolist()


def test_the_learning_rate_rises_to_its_peak_and_falls_towards_zero():
    shares = [schedule(step, 100) for step in range(100)]
    np.testing.assert_allclose(shares[:6], [0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    np.testing.assert_allclose(shares[52], 0.5 * (1 + np.cos(np.pi * 47 / 95)))
    assert all(a > b for a, b in itertools.pairwise(shares[5:]))
    assert 0 < shares[-1] < 0.001
    assert schedule(0, 1) == 1.0
