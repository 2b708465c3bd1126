"""Mixed precision under a budget: on networks whose sensitive layer is known, with engines that are really run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import runtimes.measure
from calibration import open_set
from compress.bench.agent import AgentError
from compress.bench.machines import Machine, this_machine
from compress.errors import CompressError
from compress.export import export, has_int8
from compress.intervals import Estimate
from compress.ladder import torch_runner
from compress.metrics import Metric
from compress.model import Model
from compress.modelfile import read_model, write_model
from compress.quantize import mixer, quantize, rig
from compress.quantize.budget import BudgetConfig, BudgetResult, PartChoice, budget
from compress.quantize.choices import Float, Int4Weights
from compress.quantize.mixing import Point
from compress.quantize.parts import layers_of
from compress.quantize.probe import Probe
from compress.targets import Target, get_target
from compress.weights import with_weights
from tests.compress.quantize import networks
from tests.compress.quantize.towers import METRIC, labelled, poisoned, quantized, right, towers

BOARD = dataclasses.replace(get_target("rpi5"), scheme="x86-vnni")     # without an address: its time is not known
QUICK = {**rig.TIMING, "warmup_s": 0.0, "duration_s": 0.0, "min_runs": 3}


def here(name: str = "openvino-cpu") -> Target:
    return dataclasses.replace(get_target(name), scheme="x86-vnni")


def mixed(model: Model, *targets: Target, metric: Metric = METRIC, **given: Any) -> BudgetResult:
    config = BudgetConfig(**{"max_drop": 0.0, "restarts": 1, **given.pop("config", {})})
    return budget(model, labelled(), metric=metric, targets=targets or (BOARD,), config=config, **given)


def by_name(result: BudgetResult) -> dict[str, PartChoice]:
    return {part.name: part for part in result.parts}


def kept(model: Model) -> tuple[str, ...]:
    assert model.quantization is not None
    return model.quantization.keep_float


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs run in this process, and for three runs each."""
    def agent(job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        folder.mkdir(parents=True, exist_ok=True)
        return runtimes.measure.measure({**job, "threads": 1, "result": str(folder / "result.json")})

    def opened(target: Target, stack: ExitStack) -> Machine:
        return this_machine(agent)

    monkeypatch.setattr(mixer, "open_machine", opened)
    monkeypatch.setattr(rig, "TIMING", QUICK)


def timed_as(monkeypatch: pytest.MonkeyPatch, times_us: Mapping[str, Sequence[float]]) -> None:
    """The parts of an engine take these times, by its name; a mixture takes 90 ms, the others 100."""
    def time(self: rig.Rig, variants: Sequence[rig.Variant], rounds: int, told: Any = None) -> None:
        for variant in variants:
            name = variant.measured.candidate.name
            variant.rounds_ms += [90.0 if name.startswith("round") else 100.0] * rounds
            variant.parts_us += [dict(enumerate(times_us.get(name, ())))] * rounds

    monkeypatch.setattr(rig.Rig, "time", time)


def test_the_poisoned_layer_alone_goes_into_float() -> None:
    """The board is not measured, so that mixtures are scored in torch and chosen for by multiply-accumulates."""
    found = mixed(poisoned("read"))
    assert found.outcome == "met"
    assert found.complete
    assert kept(found.model) == ("read",)
    assert {name: part.choice for name, part in by_name(found).items()} == {
        "see": "int8", "read": "float", "join": "int8", "spare": "int8",
    }  # fmt: skip
    assert by_name(found)["read"].why == "int8 costs too much of the budget"
    assert found.untimed == {"rpi5": "it has no address"}
    assert found.timed == ()
    assert found.best is not None
    assert found.best.drop is not None
    assert found.best.drop.value == 0.0
    assert found.sentence == ("1 of 4 parts in float: a drop of 0, where 0 is allowed; chosen by multiply-accumulates, "
                              "since no target could be timed.")
    quantization = found.model.quantization
    assert quantization is not None
    assert "question" not in quantization.ranges["forward"]     # nothing reads it in int8 any more
    # What the choice promises is what the model does.
    data = labelled()
    (feed,), target = data.batches(len(data)), data.targets()
    assert target is not None
    assert right(torch_runner(found.model)(feed), target).mean() == 1.0
    assert right(torch_runner(poisoned("read"))(feed), target).mean() < 0.9


def test_all_int8_where_that_keeps_the_budget() -> None:
    found = mixed(quantized())
    assert (found.outcome, kept(found.model)) == ("met", ())
    assert found.best is found.points[0]
    assert found.best.name == "all int8"


def test_where_int8_alone_is_enough_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    found = mixed(quantized(), here(), config={"when": "needed"})       # no engine: openvino-cpu would run here
    assert found.best is not None
    assert (found.outcome, found.best.name, kept(found.model), found.timed) == ("met", "as quantized", (), ())
    assert found.sentence == ("0 of 4 parts in float: a drop of 0, where 0 is allowed; nothing was timed, since that "
                              "is enough.")
    assert [point.name for point in found.points] == ["as quantized"]
    searched = mixed(poisoned("read"), config={"when": "needed"})
    assert kept(searched.model) == ("read",)


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("target", [pytest.param("openvino-cpu", marks=pytest.mark.slow), "onnxruntime-cpu"])
def test_engines_are_built_timed_and_scored(target: str) -> None:
    found = mixed(poisoned("read"), here(target))
    assert found.timed == (target,)
    assert found.outcome == "met"
    assert "read" in kept(found.model)
    whole = found.points[0]
    assert whole.drop is not None
    assert whole.drop.value > 0.1
    assert whole.latency_ms is not None
    assert whole.latency_ms[target] > 0
    told = {part.name for part in found.parts if set(part.times_us[target]) == {"int8", "float"}}
    assert {"see", "read"} <= told


@pytest.mark.usefixtures("in_process")
def test_weights_alone_where_they_are_clearly_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """``read`` is poisoned in int8, which its weights alone are not; ``see`` is as fast in int8; ``join`` is faster."""
    timed_as(monkeypatch, {"int8": [10.0, 10.0, 50.0, 5.0], "int4 weights": [10.0, 11.0, 20.0, 5.0],
                           "float": [40.0, 140.0, 80.0, 5.0]})  # fmt: skip
    found = mixed(poisoned("read"), here("onnxruntime-cpu"), config={"int4": "always"})
    parts = by_name(found)
    order = [part.name for part in found.parts]
    assert found.outcome == "met"
    assert parts["read"].choice == "int4 weights"
    chosen = {name: part.choice for name, part in parts.items()}
    assert "float" not in chosen.values()
    assert chosen[order[2]] == "int4 weights"
    assert found.model.quantization is not None
    assert set(found.model.quantization.weight_only.int4) == {
        name for name, choice in chosen.items() if choice == "int4 weights"}
    assert " with int4 weights: a drop of 0" in found.sentence
    assert [point.name for point in found.points[:3]] == ["all int8", "all int4 weights", "all float"]
    assert mixed(poisoned("read"), config={"int4": "auto"}).points[1].name == "all float"   # no token by token here


def test_a_part_without_weights_of_its_own_has_no_int4() -> None:
    """A convolution is int8 or float."""
    model = networks.quantized(networks.Everything)
    layers = layers_of(Int4Weights().put(model, [layer.path for layer in layers_of(model)]))
    assert [layer.path for layer in layers] == ["tokens", "plain", "head.0", "head.2"]
    own = Int4Weights().put(model, ["plain"])
    assert own.quantization is not None
    assert model.quantization is not None
    assert own.quantization.weight_only.int4 == ("plain",)
    missing = set(model.quantization.ranges["forward"]) - set(own.quantization.ranges["forward"])
    assert len(missing) == 1        # what it alone reads


@pytest.mark.usefixtures("in_process")
def test_a_part_that_is_slower_in_int8_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    timed_as(monkeypatch, {"int8": [10.0, 20.0, 50.0, 5.0], "float": [20.0, 40.0, 30.0, 5.0]})
    found = mixed(quantized(), here("onnxruntime-cpu"))
    parts = by_name(found)
    assert {name: part.choice for name, part in parts.items()} == {
        "see": "int8", "read": "int8", "join": "float", "spare": "int8",
    }  # fmt: skip
    assert parts["join"].why == "slower in int8"
    assert parts["join"].times_us == {"onnxruntime-cpu": {"int8": 50.0, "float": 30.0}}


@pytest.mark.slow
@pytest.mark.usefixtures("in_process")
def test_targets_of_one_scheme_share_a_mixture() -> None:
    found = mixed(poisoned("read"), here("openvino-cpu"), here("onnxruntime-cpu"), BOARD)
    assert found.timed == ("openvino-cpu", "onnxruntime-cpu")
    assert set(found.untimed) == {"rpi5"}
    assert found.best is not None
    assert set(found.best.latency_ms or ()) == {"openvino-cpu", "onnxruntime-cpu"}
    assert "read" in kept(found.model)


def test_a_target_whose_engines_do_not_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def agent(job: Mapping[str, Any], folder: Path, timeout_s: float) -> dict[str, Any]:
        raise AgentError("there is no such device")

    monkeypatch.setattr(mixer, "open_machine", lambda target, stack: this_machine(agent))
    found = mixed(poisoned("read"), here())
    assert found.untimed == {"openvino-cpu": "there is no such device"}
    assert kept(found.model) == ("read",)


def test_a_target_that_cannot_be_reached_or_is_built_for_only_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(target: Target, stack: ExitStack) -> Machine:
        raise CompressError("kitchen: no route to host")

    monkeypatch.setattr(mixer, "open_machine", lost)
    away = dataclasses.replace(BOARD, name="board", address="pi@kitchen")
    rtx = dataclasses.replace(get_target("rtx"), scheme="x86-vnni")
    found = mixed(poisoned("read"), away, rtx)
    assert found.untimed == {"board": "kitchen: no route to host",
                             "rtx": "its engines are built here, and run on its own device"}


def damaged() -> Model:
    """A model that is wrong in float already: it reads no question."""
    return quantize(with_weights(towers(), {**towers().weights, "read.weight": torch.zeros(4, 4)}), labelled(),
                    scheme="x86-vnni").model  # fmt: skip


def test_a_budget_that_nothing_can_meet_since_float_does_not() -> None:
    """Of the damaged model int8 may still add as much as the budget, and adds nothing."""
    found = mixed(damaged(), reference=towers(), config={"max_drop": 0.01})
    assert (found.outcome, kept(found.model)) == ("not met", ())
    assert found.best is not None
    assert found.best.drop is not None
    lost = found.best.drop.value
    assert lost > 0.1
    assert found.sentence == (
        f"No mixture keeps a drop of at most 0.01, since the model in float alone loses {lost:.4g}; chosen so that "
        f"int8 adds at most 0.01 to that: 0 of 4 parts in float, a drop of {lost:.4g}."
    )
    assert found.to_json()["outcome"] == "not met"
    soon = mixed(damaged(), reference=towers(), config={"max_drop": 0.01, "when": "needed"})
    assert (soon.outcome, [point.name for point in soon.points]) == ("not met", ["as quantized"])


def test_a_budget_that_nothing_can_meet_ends_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every engine is a little wrong, however much of it is float."""
    drop = mixer.Mixer._drop

    def worse(self: mixer.Mixer, scores: np.ndarray) -> Estimate:
        found = drop(self, scores)
        return found if not hasattr(self, "in_float") else dataclasses.replace(found, value=found.value + 0.05)

    monkeypatch.setattr(mixer.Mixer, "_drop", worse)
    found = mixed(poisoned("read"), config={"max_drop": 0.01})
    assert found.outcome == "not met"
    assert found.best is not None
    assert found.best.drop is not None
    assert found.best.drop.value == min(point.drop.value for point in found.points if point.drop) == 0.05
    assert found.sentence.startswith("Nothing that was tried keeps a drop of at most 0.01. The nearest, with ")


def test_nothing_is_left_in_int8_where_all_of_it_costs_too_much(tmp_path: Path) -> None:
    def picky(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        """Right where the outputs are float's to the fifth place."""
        return np.asarray(np.abs(outputs["output"] * 4096 - np.round(outputs["output"] * 4096)).max(1) < 0.01, float)

    data = labelled()
    (feed,) = data.batches(len(data))
    rounded = {name: np.round(value * 4096) / 4096 for name, value in feed.items()}

    rounded_set = open_set([{**rounded, "target": data.targets()}], towers().inputs, name="rounded")
    found = budget(quantized(), rounded_set, metric=Metric(name="picky", statistics=picky), targets=[BOARD],
                            config=BudgetConfig(max_drop=0.0, rounds=4))  # fmt: skip
    used = {name: part.choice for name, part in by_name(found).items() if name != "spare"}
    assert set(used.values()) == {"float"}
    everything = Float().put(quantized(), ["see", "read", "join", "spare"])
    assert not has_int8(everything)
    write_model(everything, tmp_path / "model.pt")
    again = read_model(tmp_path / "model.pt")
    assert again.quantization == everything.quantization
    assert export(again, here(), tmp_path / "engine").precision == "fp32"


def test_interrupted_it_ends_with_the_best_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: mixer.Mixer, point: Point) -> Point:
        raise KeyboardInterrupt

    monkeypatch.setattr(mixer.Mixer, "_measured", stop)
    found = mixed(poisoned("read"), config={"max_drop": 0.05})
    assert not found.complete
    assert found.outcome == "met"
    assert found.best is not None
    assert found.best.name == "all float"
    assert found.sentence.startswith("Interrupted: the best so far. 4 of 4 parts in float: nothing is left in int8")
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["complete"] is False


def test_interrupted_before_anything_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: mixer.Mixer, stack: ExitStack, folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(mixer.Mixer, "_open", stop)
    found = mixed(poisoned("read"))
    assert (found.complete, found.best, kept(found.model)) == (False, None, ())
    assert found.sentence == "Interrupted: the best so far. Nothing was measured: all parts are in int8, as they were."
    assert found.to_json()["best"] is None


def test_what_the_parts_cost_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = mixed(poisoned("read"), scratch=tmp_path)

    def measured(self: Probe, paths: Sequence[str]) -> None:
        raise AssertionError

    monkeypatch.setattr(Probe, "effect", measured)
    again = mixed(poisoned("read"), scratch=tmp_path)
    assert again.to_json() == first.to_json()


def test_a_metric_that_fails_on_a_mixture_rules_it_out() -> None:
    def fails(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        if (right(outputs, target) == 0).any():
            raise ValueError("wrong")
        return right(outputs, target)

    found = mixed(poisoned("read"), metric=Metric(name="mine", statistics=fails))
    assert "metric 'mine' failed on 32 samples: ValueError: wrong" in str(found.points[0].failure)
    assert kept(found.model) == ("read",)


def test_a_metric_that_fails_in_float_is_an_error() -> None:
    def fails(outputs: dict[str, np.ndarray], target: np.ndarray) -> np.ndarray:
        raise ValueError("no such class")

    with pytest.raises(CompressError, match=r"data set 'labelled', samples 0 to 31: metric 'mine' failed on 32 "
                                            r"samples: ValueError: no such class \(sample 0 fails by itself\)"):
        mixed(quantized(), metric=Metric(name="mine", statistics=fails))


def test_blocks() -> None:
    found = mixed(poisoned("read"), config={"by": "block"})
    assert set(by_name(found)) == {"see", "read", "join", "spare"}


def test_progress_ends_where_it_said() -> None:
    told: list[tuple[int, int]] = []
    mixed(poisoned("read"), progress=lambda done, total, text: told.append((done, total)))
    assert told[0][0] == 0
    assert all(done <= total for done, total in told)


def test_what_cannot_be_chosen_for_is_refused() -> None:
    with pytest.raises(CompressError, match="model 'towers' is not quantized: run compress quantize first"):
        mixed(towers())
    with pytest.raises(CompressError, match="no target is given: latency is that of a target"):
        budget(quantized(), labelled(), metric=METRIC, targets=[])
    with pytest.raises(CompressError, match=r"scheme 'x86-vnni', target 'rtx' runs 'tensorrt': quantize the float"):
        mixed(quantized(), get_target("rtx"))
    nothing = Float().put(quantized(), ["see", "read", "join", "spare"])
    with pytest.raises(CompressError, match="no layer of model 'towers' runs in int8"):
        mixed(nothing)
    with pytest.raises(CompressError, match="when is 'never': then there is nothing to do; leave the budget out"):
        mixed(quantized(), config={"when": "never"})


@pytest.mark.parametrize(("settings", "message"), [
    ({"max_drop": -0.1}, "max_drop is -0.1: it must be finite and not negative"),
    ({"by": "tower"}, "by is 'tower': expected one of auto, layer, block"),
    ({"when": "late"}, "when is 'late': expected one of always, needed, never"),
    ({"samples": 1}, "samples is 1: it must be at least 2"),
    ({"rounds": 0}, "rounds is 0: it must be at least 1"),
    ({"restarts": 0}, "restarts is 0: it must be at least 1"),
])  # fmt: skip
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CompressError, match=message):
        BudgetConfig(**settings)
