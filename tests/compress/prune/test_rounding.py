"""What widths stay multiples of: the shapes of small networks, by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from click.testing import CliRunner
from torch import nn

import compress
from calibration import open_set, write
from compress.cli import cli
from compress.errors import CompressError
from compress.prune import PruneConfig, prune
from compress.prune.rounding import Rounding


def test_a_narrow_group_goes_in_four_steps() -> None:
    near = Rounding(multiple=16, exact=False)
    assert [near.of(units) for units in (1, 3, 4, 7, 8, 16, 24, 31, 32, 63, 64, 100)] == [
        1, 1, 1, 1, 2, 4, 4, 4, 8, 8, 16, 16]
    assert [Rounding(multiple=48, exact=False).of(units) for units in (20, 50, 191, 192)] == [4, 12, 24, 48]
    assert [Rounding(multiple=16).of(units) for units in (4, 100)] == [16, 16]
    assert [near.less(units) for units in (8, 31, 32, 64)] == [(), (), (4,), (8, 4)]
    assert Rounding(multiple=16).less(64) == ()


def layers(*widths):
    """Linear layers of these widths."""
    made = [layer for pair in itertools.pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*made[:-1])


def small():
    return layers(8, 16, 4)


def perceptron(tmp_path, *widths):
    """A model of such layers, and data for it."""
    model = compress.save(layers(*widths), tmp_path / "m.pt", example={"input": np.zeros((2, widths[0]), np.float32)})
    rows = np.random.default_rng(0).standard_normal((16, widths[0]), np.float32)
    return model, open_set([{"input": rows}], model.inputs)


def test_a_network_narrower_than_the_targets_multiple_shrinks_all_the_same(tmp_path) -> None:
    """8 x 16 + 16 x 4 MACs: 12 a hidden unit. Half needs 8 of 16 gone, in steps of 4 of OpenVINO's 16."""
    model, data = perceptron(tmp_path, 8, 16, 4)
    result = prune(model, data, PruneConfig(macs=0.5, target="openvino-cpu"))
    assert result.model.weights["0.weight"].shape == (8, 8)
    assert (result.macs_before, result.macs_after) == (192, 96)
    assert result.finer == {"0": 8}
    assert result.to_json()["finer"] == {"0": 8}


def test_an_explicit_multiple_is_obeyed(tmp_path) -> None:
    model, data = perceptron(tmp_path, 8, 16, 4)
    with pytest.raises(CompressError, match=r"0: it has 16 channels, no more than round_to=16\)"):
        prune(model, data, PruneConfig(macs=0.5, round_to=16, target="openvino-cpu"))
    assert prune(model, data, PruneConfig(macs=0.5, round_to=2)).finer == {}


@pytest.mark.parametrize(("macs", "left", "multiple"), [
    (0.51, 32, None), (0.6, 36, 4), (0.64, 40, 8), (0.26, 16, None)])
def test_what_is_wide_enough_keeps_to_the_targets_multiple_where_that_does_not_overshoot(
    tmp_path, macs: float, left: int, multiple: int | None,
) -> None:
    """64 hidden units of 12 MACs go in steps of 16; of what that is too much 8 and 4 are given back.

    60 % of 64 is 38.4: 32 and 4 fit, 40 do not. 51 % is 32.6: 32 is near enough. 64 % is 40.96: 40 fit.
    """
    model, data = perceptron(tmp_path, 8, 64, 4)
    result = prune(model, data, PruneConfig(macs=macs, target="openvino-cpu"))
    assert result.model.weights["0.weight"].shape == (left, 8)
    assert result.finer == ({} if multiple is None else {"0": multiple})
    assert result.macs_after == 12 * left


def test_where_a_goal_cannot_be_met_otherwise_widths_fall_below_the_targets_multiple(tmp_path) -> None:
    """64 units keep 6.4 at least: 16 in steps of 16, 8 in smaller ones."""
    model, data = perceptron(tmp_path, 8, 64, 4)
    result = prune(model, data, PruneConfig(macs=0.13, target="openvino-cpu"))
    assert result.model.weights["0.weight"].shape == (8, 8)
    assert result.finer == {"0": 8}
    with pytest.raises(CompressError, match=r"smallest share that can be reached is 12\.5%, .*\(round_near=16, max_"):
        prune(model, data, PruneConfig(macs=0.1, target="openvino-cpu"))
    with pytest.raises(CompressError, match=r"smallest share that can be reached is 25\.0%, .*\(round_to=16, max_"):
        prune(model, data, PruneConfig(macs=0.13, round_to=16))


def test_the_command_tells_which_widths_are_no_multiple(tmp_path) -> None:
    _, data = perceptron(tmp_path, 8, 16, 4)
    write(tmp_path / "data", data.first(16))
    shown = CliRunner().invoke(cli, [
        "prune", str(tmp_path / "m.pt"), "--data", str(tmp_path / "data"), "--macs", "0.5", "--target", "openvino-cpu",
        "--factory", "tests.compress.prune.test_rounding:small", "--quiet"], catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "no multiple of what the target's kernels like: 0 (of 8)" in shown.output
