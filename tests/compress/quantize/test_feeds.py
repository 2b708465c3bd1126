"""What each graph is run on: samples as they are given, a decoder's steps, and no more than memory holds."""

from __future__ import annotations

import numpy as np
import pytest

from calibration import open_set
from compress.quantize import feeds
from compress.quantize.feeds import feeds_of, kept_feeds
from compress.quantize.samples import samples_of
from tests.compress import captioner
from tests.compress.quantize.networks import TwoReaders, make
from tests.compress.quantize.recovered import data_of, noise
from tests.compress.quantize.test_graphs import samples, towers


def test_each_graph_takes_the_inputs_that_it_names() -> None:
    model = towers()
    found = list(feeds_of(model, samples_of(model, samples(model), 20), 16))
    assert [(place, places, {name: [sorted(feed) for feed in given] for name, given in by_graph.items()})
            for place, places, by_graph in found] == [
        (place, 2, {name: [[own]]}) for name, own in (("image", "image"), ("text", "tokens"), ("marker", "marker"))
        for place in (0, 1)
    ]  # fmt: skip
    assert [given["image"][0]["image"].shape[0] for _, _, given in found if "image" in given] == [16, 4]


def test_a_decoder_is_run_on_some_of_its_own_steps() -> None:
    model = captioner.model()
    data = open_set([{"image": captioner.pictures(3)}], model.inputs, name="pictures")
    ((_, _, found),) = feeds_of(model, samples_of(model, data, 3), 8)
    assert [sorted(feed) for feed in found["encoder"]] == [["image"]]
    assert found["decoder"][0]["past_key"].shape[2] == 0
    assert len(found["decoder"]) > 1
    assert found["decoder"][-1]["past_key"].shape[2] > 1


def test_all_samples_are_kept_where_there_is_room_and_some_from_all_over_where_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make(TwoReaders)
    x = noise(64, 4)
    given = samples_of(model, data_of(model, x), 64)
    every = kept_feeds(model, given)["forward"]
    np.testing.assert_array_equal(np.concatenate([feed["x"] for feed in every]), x)
    # x, left(x) and right(x) of 8 samples in either program: 8 feeds of 2 * 8 * (4 + 3 + 3) * 4 bytes
    monkeypatch.setattr(feeds, "MEMORY", 4 * 2 * 8 * 10 * 4)
    some = kept_feeds(model, given)["forward"]
    np.testing.assert_array_equal(np.stack([feed["x"] for feed in some]), x.reshape(8, 8, 4)[::2])
    monkeypatch.setattr(feeds, "MEMORY", 1)
    (one,) = kept_feeds(model, given)["forward"]
    np.testing.assert_array_equal(one["x"], x[:8])
