"""Curves of what pruning each part alone costs, of networks whose every output is added up by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import compress
from calibration import CalibrationSet, open_set, write
from compress.cli import cli
from compress.errors import CompressError
from compress.metrics import get_metric
from compress.model import Input, Model
from compress.prune import PruneConfig, prune
from compress.prune.curves import PartCurve
from tests.compress import captioner

CONFIG = PruneConfig(macs=0.9, round_to=1, importance="magnitude", sensitivity=True)


class Two(nn.Module):
    """Sums of two branches: hidden unit ``i`` of the first adds ``i + 1`` times its input, of the second ten times."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
                                   for _ in range(2))
        with torch.no_grad():
            for branch, scale in ((self.first, 1.0), (self.second, 10.0)):
                branch[0].weight.copy_(torch.ones(4, 1))  # type: ignore[operator]
                branch[2].weight.copy_(scale * torch.tensor([[1.0, 2, 3, 4]]))  # type: ignore[operator]

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        total: Tensor = self.first(image) + self.second(text)
        return total


def build() -> Two:
    return Two()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return compress.save(
        Two(), tmp_path / "two.pt", example={"image": np.ones((2, 1), np.float32), "text": np.ones((2, 1), np.float32)},
        inputs={"image": Input(modality="image"), "text": Input(modality="text")},
        factory="tests.compress.prune.test_curves:build")


def samples(model: Model, **more: Any) -> CalibrationSet:
    """Inputs of 1 and 2, so that outputs are 10 and 100 times as large."""
    ones = np.array([[1.0], [2.0]], np.float32)
    return open_set([{"image": ones, "text": ones, **more}], model.inputs, name="ones")


def test_noise_of_each_part_alone(model: Model) -> None:
    """The least weights go first: 1, then 1 + 2, then 1 + 2 + 3 of the 10 + 100 that an input of 1 gives."""
    result = prune(model, samples(model), CONFIG)
    assert result.curves is not None
    found = {(one.kind, one.name): one for one in result.curves.parts}
    assert list(found) == [("component", "first"), ("component", "second"), ("modality", "image"), ("modality", "text"),
                           ("group", "first.0"), ("group", "second.0")]
    for name, lost in (("first", [1, 3, 6]), ("second", [10, 30, 60])):
        part = found["component", name]
        assert part.modality == {"first": "image", "second": "text"}[name]
        assert part.groups == (f"{name}.0",)
        np.testing.assert_allclose([point.effect.noise for point in part.points], np.square(lost) / 110**2, rtol=1e-5)
        assert [point.kept for point in part.points] == [0.75, 0.5, 0.25]
        # each unit is 2 of the 16 multiply-accumulates
        np.testing.assert_allclose([point.macs for point in part.points], [14 / 16, 12 / 16, 10 / 16])
        other = found["group", f"{name}.0"]
        assert other.points == part.points
    assert found["modality", "image"].points == found["component", "first"].points
    record = result.to_json()["sensitivity"]
    assert (record["metric"], record["samples"]) == (None, 2)
    assert record["parts"][0]["points"][0]["sqnr_db"] == pytest.approx(20 * np.log10(110))


def test_the_metric_of_each_part_alone(model: Model) -> None:
    """Half of the first branch is 3 and 6 less than the right 110 and 220: 22.5 in the mean of the squares."""
    labelled = samples(model, target=np.array([[110.0], [220.0]], np.float32))
    result = prune(model, samples(model), CONFIG, validation=labelled, metric=get_metric("mse"))
    assert result.curves is not None
    assert (result.curves.metric, result.curves.whole) == ("mse", pytest.approx(0.0))
    first, second = (one for one in result.curves.parts if one.kind == "component")
    assert drops(first) == pytest.approx([2.5, 22.5, 90])
    assert drops(second) == pytest.approx([250, 2250, 9000])


def drops(part: PartCurve) -> list[float]:
    return [point.effect.drop.value for point in part.points if point.effect.drop is not None]


def test_the_network_is_whole_again(model: Model) -> None:
    plain, with_curves = (prune(model, samples(model), config).model
                          for config in (dataclasses.replace(CONFIG, sensitivity=False), CONFIG))
    assert {name: value.tolist() for name, value in plain.weights.items()} == {
        name: value.tolist() for name, value in with_curves.weights.items()}


def test_a_decoder_is_looked_at_on_its_own_steps() -> None:
    model = captioner.model()
    data = open_set([{"image": captioner.pictures(16)}], model.inputs, name="pictures")
    result = prune(model, data, PruneConfig(macs=0.95, round_to=2, samples=16, sensitivity=True))
    assert result.curves is not None
    (join,) = (one for one in result.curves.parts if one.kind == "group")
    assert (join.name, join.modality) == ("join", "image + text")
    noise = [point.effect.noise for point in join.points]
    assert 0 < noise[0] < noise[1] < noise[2] < 1


def test_it_is_refused_where_there_is_nothing_to_look_at(model: Model) -> None:
    with pytest.raises(CompressError, match="sensitivity looks at channels and heads, of which a vocabulary or"):
        PruneConfig(vocabulary="used", sensitivity=True)
    with pytest.raises(CompressError, match="data set 'ones' has no targets"):
        prune(model, samples(model), CONFIG, metric=get_metric("mse"))


def test_the_command_shows_them(model: Model, tmp_path: Path) -> None:
    ones = np.array([[1.0], [2.0]], np.float32)
    write(tmp_path / "data", {"image": ones, "text": ones})
    arguments = ["prune", str(tmp_path / "two.pt"), "--data", str(tmp_path / "data"), "--factory",
                 "tests.compress.prune.test_curves:build", "--macs", "0.9", "--round-to", "1", "--importance",
                 "magnitude", "--sensitivity", "--quiet"]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "75 % kept" in shown.output
    assert "40.8 dB" in shown.output                 # of 1 of 110
    assert "88 / 75 / 62 %" in shown.output
    refused = CliRunner().invoke(cli, [*arguments, "--metric", "mse"])
    assert refused.exit_code == 2
    assert "--validation and --metric go together, with --sensitivity" in refused.output
