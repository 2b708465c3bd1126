"""A recipe under one budget: what is tried next, what is kept, and a run of it that is interrupted and goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import calibration
import compress
from compress.errors import CompressError
from compress.modelfile import read_model
from compress.recipe import Budget
from compress.stages import models, search
from compress.stages.rounds import measure
from compress.stages.search import Round, faster, kept, next_step, path_to, sentence
from compress.targets import get_target
from tests.said import Said

MOST = Budget(max_drop=0.01, speedup="most")


def figures(speedup: float, points: float) -> dict[str, Any]:
    return {"latency_ms": 1 / speedup, "speedup": speedup, "drop": {"points": points}}


def done(number: int, began: int | None, asked: float, speedup: float, points: float, macs: int = 0) -> Round:
    """A round as it would have been measured on one target."""
    measured = {"openvino-cpu": {"int8": figures(speedup, points)}}
    return Round(number=number, began=began, asked=asked, ships={"openvino-cpu": "int8"},
                 figures={"measured": measured, "macs": macs or round(1000 / speedup)})  # fmt: skip


FIRST = done(0, None, 1.0, 2.0, 0.1)


# --- what is tried next -----------------------------------------------------------------------------------------------


def test_it_goes_on_from_the_smallest_that_keeps_the_drop() -> None:
    assert next_step([], MOST) == (None, 1.0)
    assert next_step([FIRST], MOST) == (0, 1.5)
    second = done(1, 0, 1.5, 2.9, 0.4)
    assert next_step([FIRST, second], MOST) == (1, 1.5)


def test_it_goes_half_as_far_where_too_much_was_lost_or_a_round_failed() -> None:
    over = done(2, 1, 1.5, 4.0, 1.2)
    rounds = [FIRST, done(1, 0, 1.5, 2.9, 0.4), over]
    start, asked = next_step(rounds, MOST) or (None, 0.0)
    assert (start, asked) == (1, pytest.approx(1.5**0.5))
    rounds.append(Round(number=3, began=1, asked=1.5**0.5, failure="no"))
    start, asked = next_step(rounds, MOST) or (None, 0.0)
    assert (start, asked) == (1, pytest.approx(1.5**0.25))
    rounds.append(done(4, 1, 1.5**0.25, 3.1, 2.0))
    assert next_step(rounds, MOST) is None                 # 1.5 ** 0.125 is 1.052


def test_it_prunes_for_what_is_missing_and_stops_where_it_is_reached() -> None:
    budget = dataclasses.replace(MOST, speedup=4.0)
    start, asked = next_step([FIRST, done(1, 0, 1.5, 3.2, 0.4)], budget) or (None, 0.0)
    assert (start, asked) == (1, pytest.approx(1.03 * 4 / 3.2))
    assert next_step([FIRST, done(1, 0, 1.5, 3.99, 0.4)], budget) == (1, 1.08)
    assert next_step([FIRST, done(1, 0, 1.5, 4.0, 0.4)], budget) is None
    assert next_step([done(0, None, 1.0, 4.5, 0.1)], budget) is None
    assert next_step([FIRST, done(1, 0, 1.5, 4.0, 1.4)], budget) is not None       # too much was lost


def test_it_stops_where_pruning_makes_it_no_faster_and_behind_the_last_round() -> None:
    slow = done(1, 0, 1.5, 2.03, 0.2, macs=300)
    assert next_step([FIRST, slow], MOST) is None
    two = [FIRST, done(1, 0, 1.5, 2.9, 0.4), done(2, 1, 1.5, 4.0, 0.5)]
    assert next_step(two, dataclasses.replace(MOST, rounds=2)) is None
    assert next_step(two, dataclasses.replace(MOST, rounds=3)) == (2, 1.5)


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_fastest_that_keeps_the_drop() -> None:
    rounds = [FIRST, done(1, 0, 1.5, 3.0, 0.4), done(2, 1, 1.5, 4.0, 1.1), done(3, 1, 1.2, 2.9, 0.1)]
    assert kept(rounds, MOST) is rounds[1]
    assert kept(rounds, dataclasses.replace(MOST, max_drop=0.02)) is rounds[2]
    assert sentence(rounds[1], rounds, MOST) == (
        "kept: 3 times as fast as the original's fp32 engine with a drop of 0.004, round 1 of 3")
    assert sentence(FIRST, rounds[:1], MOST).endswith("2 times as fast as the original's fp32 engine with a drop of "
                                                      "0.001, without pruning")  # fmt: skip


def test_the_least_drop_of_those_that_are_fast_enough() -> None:
    rounds = [FIRST, done(1, 0, 1.5, 3.2, 0.4), done(2, 1, 1.5, 3.0, 0.2), done(3, 1, 1.5, 3.5, 0.9)]
    budget = dataclasses.replace(MOST, speedup=3.0)
    assert kept(rounds, budget) is rounds[2]
    assert sentence(rounds[2], rounds, budget).endswith("round 2 of 3 (3 times was asked for)")
    budget = dataclasses.replace(MOST, speedup=5.0)
    assert kept(rounds, budget) is rounds[3]
    rounds.append(done(4, 3, 1.5, 5.2, 3.0))
    assert sentence(rounds[3], rounds, budget) == (
        "5 times as fast was not reached within a drop of 0.01: the fastest that keeps it is 3.5 times as fast as the "
        "original's fp32 engine with a drop of 0.009, round 3 of 4; round 4 was 5.2 times as fast, at 0.03; allow a "
        "larger drop, more rounds, or train longer")


def test_one_precision_ships_for_all_targets_of_a_scheme() -> None:
    targets = [get_target(name) for name in ("openvino-cpu", "onnxruntime-cpu", "rpi5")]
    measured = {
        "openvino-cpu": {"fp32": figures(1.5, 0.2), "int8": figures(3.0, 0.4)},
        "onnxruntime-cpu": {"fp32": figures(1.4, 0.2), "int8": figures(1.2, 0.5)},
        "rpi5": {"fp32": figures(1.5, 0.2), "int8": figures(3.0, 0.4)},
    }
    assert targets[0].scheme == targets[1].scheme != targets[2].scheme
    assert faster(measured, targets, 0.01) == {"openvino-cpu": "fp32", "onnxruntime-cpu": "fp32", "rpi5": "int8"}
    measured["onnxruntime-cpu"]["int8"] = figures(1.45, 0.5)
    assert faster(measured, targets, 0.01)["openvino-cpu"] == "int8"
    assert faster(measured, targets, 0.0045)["openvino-cpu"] == "fp32"       # 0.5 points on one of the two
    assert faster(measured, targets, 0.001)["openvino-cpu"] == "fp32"        # neither keeps it, it drops least


def test_of_those_that_drop_as_much_the_faster_counts() -> None:
    measured = {"openvino-cpu": {"fp32": figures(1.5, 16.4), "int8": figures(1.75, 16.4)}}
    assert faster(measured, [get_target("openvino-cpu")], 0.01) == {"openvino-cpu": "int8"}
    rounds = [FIRST, done(1, 0, 1.5, 3.0, 0.1), done(2, 1, 1.5, 4.0, 0.1)]
    assert kept(rounds, dataclasses.replace(MOST, speedup=2.5)) is rounds[2]


def test_the_stages_that_led_to_what_ships() -> None:
    def stage(name: str, number: int, scheme: str | None = None) -> dict[str, Any]:
        return {"stage": name, "round": number, "target_scheme": scheme}

    def ran(number: int) -> list[dict[str, Any]]:
        return [stage("prune", number), stage("distill", number), stage("quantize", number, "x86"),
                stage("distill", number, "x86"), stage("measure", number), stage("parts", number, "x86")]  # fmt: skip

    rounds = [
        dataclasses.replace(done(number, began, 1.5, 2.0, 0.1), stages=ran(number))
        for number, began in enumerate((None, 0, 0, 2))
    ]
    rounds[0] = dataclasses.replace(rounds[0], stages=ran(0)[2:])
    assert path_to(rounds[3], rounds) == [*ran(2)[:2], *ran(3)[:4]]
    assert path_to(rounds[0], rounds) == ran(0)[2:4]


def test_targets_that_cannot_be_timed_are_told() -> None:
    timed, untimed = search.timed_of([get_target(name) for name in ("onnxruntime-cpu", "rtx")])
    assert [target.name for target in timed] == ["onnxruntime-cpu"]
    assert untimed == {"rtx": "its engines are built here, and run on its own device"}


def test_the_target_that_gained_least_drives_the_next_round() -> None:
    targets = [get_target(name) for name in ("openvino-cpu", "onnxruntime-cpu", "rpi5")]
    gains = {"openvino-cpu": (1.0, 4.0), "onnxruntime-cpu": (2.0, 3.0), "rpi5": (2.5, 1.0)}
    measured = {name: {"fp32": {"speedup": fp32}, "int8": {"speedup": int8}} for name, (fp32, int8) in gains.items()}
    start = Round(number=1, began=0, asked=1.5, figures={"measured": measured},
                  ships={"openvino-cpu": "int8", "onnxruntime-cpu": "int8", "rpi5": "fp32"})
    assert [target.name for target in search.slowest_first(start, targets)] == [
        "rpi5", "onnxruntime-cpu", "openvino-cpu"]      # 2.5, 3 and 4 times as fast by what ships there


def test_no_target_can_be_timed(small: ModuleType, small_files: Path, tmp_path: Path) -> None:
    recipe = written(small, small_files, target=["rtx", "rpi5"])
    with pytest.raises(CompressError, match=r"none of the targets can be timed from here \(rtx: its engines are built "
                                            r"here, and run on its own device; rpi5: it has no address\)"):
        compress.run(recipe, output=tmp_path / "out")


def test_what_cannot_be_scored_is_refused_before_any_work(
    small: ModuleType, small_files: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "unlabelled"
    calibration.write(folder, small.samples(8, 3)[0])
    data = {"calibration": "calibration/", "train": "train/", "validation": str(folder)}
    with pytest.raises(CompressError, match="data set 'validation' has no targets"):
        compress.run(written(small, small_files, data=data), output=tmp_path / "out")
    assert [one["stage"] for one in small.stages(tmp_path / "out").values()] == ["load"]


# --- a run ------------------------------------------------------------------------------------------------------------


def written(small: ModuleType, files: Path, **changes: Any) -> Path:
    stages = [{"prune": {"samples": 32, "round_to": 4}}, {"distill": {"epochs": 1, "batch_size": 32}},
              {"quantize": {"samples": 64}}, {"distill": {"epochs": 1, "batch_size": 32}}, {"export": {}}]  # fmt: skip
    given = {"target": "onnxruntime-cpu", "stages": stages, "speedup": "most", "rounds": 2, "max_drop": 0.5}
    path: Path = small.write_recipe(files, "search.yaml", **{**given, **changes})
    return path


@pytest.fixture
def by_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small model's time is all overhead: prune and measure it by its multiply-accumulates."""
    pruned = models._prune

    def prune(filing: Any, config: Any, model: Any, *rest: Any) -> Any:
        config = dataclasses.replace(config, speedup=None, target=None, macs=1 / config.speedup)
        return pruned(filing, config, model, *rest)

    def measured(filing: Any, original: Any, made: Any, targets: Any) -> dict[str, Any]:
        from compress.complexity import count_model

        found = measure(filing, original, made, targets)
        gain = count_model(original.load()).total.macs / found["macs"]
        for own in found["measured"].values():
            own["fp32"]["speedup"], own["int8"]["speedup"] = gain, 2 * gain
        return found

    monkeypatch.setattr(models, "_prune", prune)
    monkeypatch.setattr(search, "measure", measured)
    monkeypatch.setattr("compress.stages.rounds.TIMING", compress.BenchConfig(
        restarts=1, warmup_s=0.0, duration_s=0.01, min_runs=3, threads=1, peaks=False))  # fmt: skip


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on(
    small: ModuleType, small_files: Path, tmp_path: Path, by_macs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, said = written(small, small_files), Said()
    distilled = models._distill

    def interrupted(filing: Any, config: Any, model: Any, *rest: Any) -> Any:
        if sum(stage["stage"] == "prune" for stage in filing.stages) == 2:
            raise KeyboardInterrupt
        return distilled(filing, config, model, *rest)

    out = tmp_path / "out"
    monkeypatch.setattr(models, "_distill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compress.run(recipe, output=out, progress=said)
    monkeypatch.setattr(models, "_distill", distilled)
    record = json.loads((out / "report.json").read_text())
    assert (record["search"]["complete"], record["search"]["kept"]) == (False, 1)
    assert len(record["search"]["rounds"]) == 2
    assert f"the best so far is in {out / 'best'}; the same command goes on" in said.sentences[-1]
    assert sorted(path.name for path in (out / "best").iterdir()) == ["best.json", "float.pt", "x86-vnni.pt"]
    assert read_model(out / "best/x86-vnni.pt").quantization is not None
    before = small.stages(out)

    result = compress.run(recipe, output=out)
    after = small.stages(out)
    assert {key: after[key]["created"] for key in before} == {key: one["created"] for key, one in before.items()}
    found = result.record["search"]
    assert (found["complete"], found["kept"], found["outcome"]) == (True, 2, "met")
    assert [(one["number"], one["began"], one["failure"]) for one in found["rounds"]] == [
        (0, None, None), (1, 0, None), (2, 1, None)]  # fmt: skip
    speeds = [one["speedup"] for one in found["rounds"]]
    assert speeds == sorted(speeds)
    for own in found["rounds"][2]["measured"]["onnxruntime-cpu"].values():
        assert sum(own["components_us"].values()) == pytest.approx(1000 * own["latency_ms"])
    assert found["rounds"][2]["components"]["seen"]["modality"] == "sensor"
    parts = found["rounds"][2]["parts"]["x86-vnni"]
    assert {part["kind"] for part in parts} == {"component", "modality"}
    assert [(stage["stage"], stage.get("target_scheme"), stage.get("round")) for stage in result.record["stages"]] == [
        ("prune", None, 1), ("distill", None, 1), ("prune", None, 2), ("distill", None, 2),
        ("quantize", "x86-vnni", 2), ("distill", "x86-vnni", 2), ("export", None, None), ("parity", None, None),
    ]  # fmt: skip
    assert result.bundle is not None
    shipped = read_model(out / "best/float.pt")
    assert result.record["stages"][2]["summary"]["macs_after"] == found["rounds"][2]["macs"]
    assert sum(value.numel() for value in shipped.weights.values()) < 5000
    assert 'id="search"' in (out / "report.html").read_text()

    again = compress.run(recipe, output=out)
    assert again.done == 0
    assert again.record["search"] == {**found, "rounds": again.record["search"]["rounds"]}


def test_a_round_that_fails_is_told_and_the_best_is_kept(
    small: ModuleType, small_files: Path, tmp_path: Path, by_macs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prune(*_: Any) -> Any:
        raise CompressError("cannot prune to so much")

    monkeypatch.setattr(models, "_prune", prune)
    result = compress.run(written(small, small_files), output=tmp_path / "out")
    found = result.record["search"]
    assert [one["failure"] for one in found["rounds"]] == [None, "cannot prune to so much", "cannot prune to so much"]
    assert (found["kept"], found["complete"]) == (0, True)
    assert [engine["precision"] for engine in result.record["stages"][-2]["summary"]["built"]][-1] == "int8"


@pytest.mark.slow
def test_int8_that_is_slower_is_not_shipped(
    small: ModuleType, small_files: Path, tmp_path: Path, by_macs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = search.measure

    def slow(*given: Any) -> dict[str, Any]:
        found = fast(*given)
        for own in found["measured"].values():
            own["int8"]["speedup"] /= 4
        return found

    monkeypatch.setattr(search, "measure", slow)
    result = compress.run(written(small, small_files, rounds=1), output=tmp_path / "out")
    assert result.record["search"]["rounds"][1]["ships"] == {"onnxruntime-cpu": "fp32"}
    assert [stage["stage"] for stage in result.record["stages"]] == ["prune", "distill", "export", "parity"]
    assert result.record["stages"][2]["summary"]["built"][-1]["precision"] == "fp32"
