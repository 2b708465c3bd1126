import numpy as np
import pytest
import torch

from calibration import open_set
from compress.distill import batches as module
from compress.distill.batches import Batches
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
    batches = Batches(numbered([3, 5, 3, 4, 4]), 4, seed=0, labels={"output": np.arange(50)})
    assert (batches.only is None) == (window == 400)
    found = list(batches.epoch(0))
    assert len(found) == batches.per_epoch
    assert sorted(i for batch in found for i in batch.feed["ids"][:, 0].tolist()) == list(range(50))
    for batch in found:
        assert torch.equal(batch.feed["ids"][:, 0], batch.labels["output"])
        assert len(batch.labels["output"]) <= 4


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


def test_shares_of_a_set_are_equally_many_batches_and_together_all_of_it():
    data = numbered([3, 5, 3])                          # 20 samples of one length, 10 of another
    shares = [Batches(data, 3, seed=0, share=(which, 3)) for which in range(3)]
    assert [share.per_epoch for share in shares] == [3 + 2] * 3
    steps = [[len(ids) for ids in seen(share, 0)] for share in shares]
    assert steps[0] == steps[1] == steps[2]             # of 20 each has 7, of 10 each has 4
    found = [i for share in shares for ids in seen(share, 0) for i in ids]
    assert len(found) == 33
    assert set(found) == set(range(30))
    for batch in shares[2].epoch(0):
        assert batch.labels == {}
