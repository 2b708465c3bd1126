"""Goals in latency. A stand-in for the target tells times that follow from the sizes of the weights."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from calibration import CalibrationSet, open_set
from compress.errors import CompressError
from compress.model import Model
from compress.prune import PruneConfig, prune
from compress.prune.allocation import steps
from compress.prune.branches import Branch
from compress.prune.channels import Place
from compress.prune.costs import Costs, Item, Resource
from compress.prune.groups import Edit, Group
from compress.prune.latency import Measured, Prices, solve
from compress.prune.rounding import Rounding
from compress.prune.structured import Ranked
from compress.saving import export_model

WIDTHS = (16, 64, 96, 64, 4)
ONE = Rounding(multiple=1)


class Net(nn.Module):
    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = layer(x).relu()
        return self.layers[-1](x)


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return export_model(Net().eval(), name="net", example={"x": np.zeros((2, 16), np.float32)})


@pytest.fixture(scope="module")
def data(model: Model) -> CalibrationSet:
    x = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    return open_set([{"x": x}], model.inputs, name="noise")


class StandIn:
    """1 ms, and 1 ms for every 10,000 weights: of a layer what its weights are, with 20 % that no layer tells."""

    built: list[str]

    def __init__(self, target: Any, machine: Any, components: dict[str, str], *_: Any) -> None:
        self.target, self.machine, self.components = target, machine, components
        type(self).built = []

    def build(self, name: str, model: Model, precision: str) -> Any:
        assert precision == "fp32"
        self.built.append(name)
        own = {int(number.split("-")[0]): model.weights[f"{path}.weight"].numel() / 10
               for number, path in self.components.items() if f"{path}.weight" in model.weights}
        return SimpleNamespace(rounds_ms=[], latency_ms=1 + sum(own.values()) / 1e3,
                               part_us=lambda number: 0.8 * own[number] if number in own else None)

    def time(self, variants: list[Any], rounds: int) -> None:
        for variant in variants:
            variant.rounds_ms += [variant.latency_ms] * rounds


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    latency = importlib.import_module("compress.prune.latency")     # compress.prune is the function
    monkeypatch.setattr(latency, "Rig", StandIn)
    monkeypatch.setattr(latency, "open_machine", lambda *_: SimpleNamespace(name="here", threads=1))
    return StandIn


WHOLE = 1 + sum(a * b for a, b in itertools.pairwise(WIDTHS)) / 1e4     # 2.3568 ms


def test_the_whole_is_as_fast_as_was_asked_and_hardly_faster(
    model: Model, data: CalibrationSet, stand_in: type[StandIn]
) -> None:
    result = prune(model, data, PruneConfig(speedup=1.5, target="onnxruntime-cpu", round_to=8))
    assert result.timed is not None
    assert result.timed.original_ms == pytest.approx(WHOLE)
    assert 1.5 <= result.timed.speedup < 1.65
    weights = sum(value.numel() for name, value in result.model.weights.items() if name.endswith("weight"))
    assert result.timed.pruned_ms == pytest.approx(1 + weights / 1e4)
    assert all(group.after % 8 == 0 for group in result.groups)
    assert result.to_json()["latency"]["speedup"] == result.timed.speedup
    assert result.check < 1e-4


def test_a_latency_in_milliseconds(model: Model, data: CalibrationSet, stand_in: type[StandIn]) -> None:
    result = prune(model, data, PruneConfig(max_latency_ms=2.0, importance="magnitude"))
    assert result.timed is not None
    assert 1.85 < result.timed.pruned_ms <= 2.0


def test_the_table_is_kept(
    model: Model, data: CalibrationSet, stand_in: type[StandIn], tmp_path: Path
) -> None:
    config = PruneConfig(speedup=1.3, target="onnxruntime-cpu")
    first = prune(model, data, config, tables=tmp_path)
    assert stand_in.built[:4] == ["original", "70%", "40%", "10%"]
    (file,) = tmp_path.iterdir()
    assert [engine["shares"][0] for engine in json.loads(file.read_text())["engines"]] == [1, 0.75, 0.5, 0.25]
    second = prune(model, data, config, tables=tmp_path)
    assert stand_in.built == ["original", *(f"mixture {n + 1}" for n in range(len(stand_in.built) - 1))]
    assert second.groups == first.groups
    file.write_text("{")                         # a damaged one is measured again
    assert prune(model, data, config, tables=tmp_path).groups == first.groups
    assert json.loads(file.read_text())["engines"]


def test_what_cannot_be_reached_says_how_fast_it_can_be(
    model: Model, data: CalibrationSet, stand_in: type[StandIn]
) -> None:
    # at 8 channels a layer 16 x 8 + 8 x 16 + 16 x 8 + 8 x 4 weights are left: 1.0416 ms
    with pytest.raises(CompressError, match=r"cannot prune to 3 times as fast on onnxruntime-cpu: the best that was "
                                            r"measured is 2.26 times, or 1.04 ms where the original takes 2.36 ms"):
        prune(model, data, PruneConfig(speedup=3, target="onnxruntime-cpu", round_to=8))


def test_a_target_that_cannot_be_timed_is_refused(model: Model, data: CalibrationSet) -> None:
    with pytest.raises(CompressError, match="target 'rpi5' has no address, so nothing can be timed on it"):
        prune(model, data, PruneConfig(speedup=2, target="rpi5"))
    with pytest.raises(CompressError, match="engines for target 'rtx' are built here and run on its own device"):
        prune(model, data, PruneConfig(speedup=2, target="rtx"))


@pytest.mark.parametrize(("settings", "message"), [
    ({"speedup": 1.0}, "speedup=1.0 must be above 1"),
    ({"max_latency_ms": 0.0}, "max_latency_ms=0.0 must be above 0"),
    ({"speedup": 2.0, "macs": 0.5}, "macs and speedup are goals of different kinds"),
    ({"speedup": 2.0, "max_latency_ms": 1.0}, "speedup and max_latency_ms are goals"),
])
def test_goals_in_latency_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        PruneConfig(**settings)  # type: ignore[arg-type]


def ranked(scores: list[np.ndarray]) -> Ranked:
    """Two groups of four units, each of a layer of its own; the second's layer costs three times as much."""
    groups = [Group(name=name, kind="channels", units=4, edits=(
        Edit(path=name, role="in", index=((0,), (1,), (2,), (3,))),)) for name in "ab"]
    widths = {Place("a", "in"): 4, Place("b", "in"): 4}
    macs = Resource(name="macs", items=(Item(10, (Place("a", "in"),)), Item(30, (Place("b", "in"),))))
    return Ranked(module=nn.Identity(), calls={}, few={}, groups=tuple(groups), scores=tuple(scores),
                  costs=Costs(groups, widths, [macs]), goals={}, skipped={})


def test_prices_are_read_between_what_was_measured() -> None:
    table = [Measured(shares=(1, 1), latency_ms=10, layers_ms={0: 2, 1: 6}),
             Measured(shares=(0.5, 0.5), latency_ms=6, layers_ms={0: 1, 1: 4})]
    prices = Prices(ranked([np.zeros(4)] * 2), table)
    # the layers tell 1 + 2 of the 4 ms that are saved: each group saves a third more than its layers say
    assert prices.saving_ms(0, 0.5) == pytest.approx(4 / 3)
    assert prices.saving_ms(1, 0.5) == pytest.approx(8 / 3)
    assert prices.saving_ms(1, 0.75) == pytest.approx(4 / 3)
    assert prices.saving_ms(0, 1.0) == 0


def test_prices_without_a_profile_follow_the_work() -> None:
    table = [Measured(shares=(1, 1), latency_ms=10, layers_ms={}),
             Measured(shares=(0.5, 0.5), latency_ms=6, layers_ms={})]
    prices = Prices(ranked([np.zeros(4)] * 2), table)
    assert (prices.saving_ms(0, 0.5), prices.saving_ms(1, 0.5)) == (pytest.approx(1), pytest.approx(3))


def test_the_least_missed_units_that_save_enough() -> None:
    prices = SimpleNamespace(saving_ms=lambda group, share: (1 - share) * (4, 12)[group])
    own = ranked([np.array([1.0, 1.0, 1.0, 1.0]), np.array([2.5, 2.5, 9.0, 9.0])])
    ladder = [steps(group, scores, ONE, 0.75) for group, scores in zip(own.groups, own.scores, strict=True)]
    # a unit of the first saves 1 ms and is missed by 1, of the second 3 ms for 2.5 and then 9
    assert solve(own, ladder, prices, 3.0) == ([(), (0,)], 3.0)  # type: ignore[arg-type]
    assert solve(own, ladder, prices, 4.0) == ([(0,), (0,)], 4.0)  # type: ignore[arg-type]
    assert solve(own, ladder, prices, 8.0) == ([(0, 1), (0, 1)], 8.0)  # type: ignore[arg-type]
    assert solve(own, ladder, prices, 13.0) is None  # type: ignore[arg-type]


def with_a_branch(missed: float) -> Ranked:
    """As :func:`ranked`, whose first group is all within a branch."""
    own = ranked([np.ones(4), np.full(4, 3.0)])
    branch = Branch(last=("a",), tensors=("a.weight",), modules=("a", "between"))
    whole = Group(name="a", kind="blocks", units=1, edits=(), branch=branch)
    ((place, _),) = whole.sides
    groups = (*own.groups, whole)
    macs = Resource(name="macs", items=(Item(10, (Place("a", "in"), place)), Item(30, (Place("b", "in"),))))
    return dataclasses.replace(own, groups=groups, scores=(*own.scores, np.array([missed])),
                               costs=Costs(groups, {**own.costs.widths, place: 1}, [macs]))


def test_a_branch_saves_what_all_of_its_layers_take() -> None:
    table = [Measured(shares=(1, 1, 1), latency_ms=10, layers_ms={0: 2, 1: 6, 2: 1}),     # a, b, and what is between
             Measured(shares=(0.5, 0.5, 1), latency_ms=6, layers_ms={0: 1, 1: 4, 2: 1})]
    prices = Prices(with_a_branch(1.0), table)
    assert prices.saving_ms(2, 0.0) == 3
    assert prices.saving_ms(2, 1.0) == 0
    assert prices.saving_ms(0, 0.5) == pytest.approx(4 / 3)
    blind = [dataclasses.replace(engine, layers_ms={}) for engine in table]
    assert Prices(with_a_branch(1.0), blind).saving_ms(2, 0.0) == pytest.approx(10 / 4)   # a quarter of the work


@pytest.mark.parametrize(("missed", "saving", "expected"), [
    (2.5, 3.0, ([(), (), (0,)], 5.0)),           # 5 ms for 2.5, where 3 units of the first are 3 ms for 3
    (3.5, 3.0, ([(0, 1, 2), (), ()], 3.0)),
    (2.5, 8.0, ([(), (0,), (0,)], 8.0)),         # and what is in it saves nothing beside
])
def test_a_branch_goes_alone_or_in_parts(missed: float, saving: float, expected: object) -> None:
    own = with_a_branch(missed)
    prices = SimpleNamespace(saving_ms=lambda group, share: (1 - share) * (4, 12, 5)[group])
    ladder = [steps(group, scores, ONE, 0.75) for group, scores in zip(own.groups, own.scores, strict=True)]
    assert solve(own, ladder, prices, saving, max_share=1.0) == expected  # type: ignore[arg-type]
    assert solve(own, ladder, prices, 15.0, max_share=1.0) is None  # type: ignore[arg-type]  # 5 and 9
    found = solve(own, ladder, prices, saving, max_share=0.9)  # type: ignore[arg-type]
    assert found is not None
    assert found[0][2] == ()                     # the only branch there is, of which 0.9 may go


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(16, 32), nn.Linear(32, 4)
        self.up, self.down = (nn.ModuleList(nn.Linear(a, b) for _ in range(3)) for a, b in ((32, 128), (128, 32)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + down(up(x).relu())
        return self.leave(x)


def test_branches_compete_for_a_latency(stand_in: type[StandIn]) -> None:
    torch.manual_seed(0)
    module = Residual().eval()
    with torch.no_grad():
        module.down[1].weight.mul_(1e-3)
        module.down[1].bias.zero_()
    model = export_model(module, name="residual", example={"x": np.zeros((2, 16), np.float32)})
    x = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    config = PruneConfig(speedup=1.45, target="onnxruntime-cpu", structures=("blocks", "channels"), round_to=8)
    result = prune(model, open_set([{"x": x}], model.inputs, name="noise"), config)
    assert result.timed is not None
    # 1 ms and 2.5216 for the weights; the branch that adds nothing has 0.8192 of them
    assert result.timed.original_ms == pytest.approx(1 + (16 * 32 + 32 * 4 + 3 * 2 * 32 * 128) / 1e4)
    assert result.timed.speedup >= 1.45
    after = {(group.kind, group.name): group.after for group in result.groups}
    assert after["blocks", "down.1"] == 0
    assert after["channels", "up.1"] == 128      # which went with it
    assert {after["blocks", "down.0"], after["blocks", "down.2"]} == {1}


@pytest.mark.slow
def test_engines_are_built_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    latency = importlib.import_module("compress.prune.latency")
    monkeypatch.setattr(latency, "RESTARTS", 1)
    monkeypatch.setattr(latency, "ROUNDS", 3)
    torch.manual_seed(0)
    whole = export_model(Net((256, 2048, 2048, 8)).eval(), name="wide", example={"x": np.zeros((2, 256), np.float32)})
    x = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    result = prune(whole, open_set([{"x": x}], whole.inputs, name="noise"),
                   PruneConfig(speedup=1.4, target="onnxruntime-cpu", importance="magnitude"), tables=tmp_path)
    assert result.timed is not None
    assert result.timed.speedup >= 1.4
    assert result.macs_after < result.macs_before
    assert all(group.after % 16 == 0 for group in result.groups)
