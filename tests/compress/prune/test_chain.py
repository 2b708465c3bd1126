"""Pruning a captioner: its decoder is ranked and checked on its own steps, and the smaller model keeps its chain."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from calibration import open_set
from compress.model import Model
from compress.program import model_runner
from compress.prune import PruneConfig, prune
from compress.prune.forward import call, tensors
from compress.steps import graph_feeds
from tests.compress import captioner


@pytest.fixture(scope="module")
def model() -> Model:
    return captioner.model()


def test_feeds_of_each_graph_are_those_of_the_chain(model: Model) -> None:
    image = captioner.pictures(3)
    feeds = graph_feeds(model, {"image": image})
    np.testing.assert_array_equal(feeds["encoder"][0]["image"], image)
    assert max(map(len, captioner.captions(captioner.network(), image))) == 8
    assert [feed["past_key"].shape[2] for feed in feeds["decoder"]] == [0, 4, 7]
    calls = {"encoder": captioner.GRAPHS["encoder"], "decoder": captioner.GRAPHS["decoder"]}
    found = call(captioner.network(), calls, tensors(feeds))
    assert set(found) == {"encoder/0", *(f"decoder/{run}{n}" for run in ("", "1/", "2/") for n in range(3))}
    memory = captioner.network().encode(torch.from_numpy(image))["memory"]
    torch.testing.assert_close(found["encoder/0"], memory)


def test_the_smaller_captioner_captions(model: Model) -> None:
    """What joins the caption and the picture shrinks; the width of the cache, and what feeds it, stays."""
    data = open_set([{"image": captioner.pictures(24)}], model.inputs, name="pictures")
    result = prune(model, data, PruneConfig(macs=0.95, round_to=2, samples=24))
    assert (result.model.chain, set(result.removed)) == (model.chain, {"join"})
    assert [spec.describe() for spec in result.model.inputs] == [spec.describe() for spec in model.inputs]
    assert result.model.graphs["decoder"].inputs == model.graphs["decoder"].inputs
    small = result.model.module
    assert isinstance(small, captioner.Captioner)
    image = captioner.pictures(5)
    np.testing.assert_array_equal(
        model_runner(result.model)({"image": image})["caption"], captioner.padded(captioner.captions(small, image)))
