"""A recipe under one budget: prune further and further, recover in between, and keep what the budget says.

    round 0: quantize, distill                          -> engines, timed and scored
    round 1: prune, distill, quantize, distill          -> engines, timed and scored
    round 2: the same, from the float model of round 1  -> ...

A round that loses too much is left, and the next one goes half as far from the last that did not. All that a round
makes is an artifact, so a run that was killed goes on in the round, and in the epoch, where it was. What the budget
keeps so far is in the folder ``best``, from the first round on.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.described import described
from compress.errors import CompressError
from compress.evaluate import targets_of
from compress.metrics import get_metric
from compress.recipe import Budget
from compress.stages.filing import Filing
from compress.stages.models import ModelFile
from compress.stages.rounds import Made, make, measure
from compress.store import atomic_folder, is_disk_full
from compress.targets import Target

STEP = 1.5          # times as fast as the round it begins with: what a round prunes to at most
SMALLEST = 1.08     # as little is not worth a round
ROOM = 1.03         # what is pruned for beyond a speed-up that is asked for, since times vary
GAIN = 1.02         # a round that is no faster than this, beside the one it began with, is the last
FORMAT = {"format": "compress.best", "version": 1}


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a round was asked for, and what came of it; ``failure`` says why nothing did.

    ``ships`` is by target the precision that would ship, as :func:`faster` chooses. Of these ``speedup`` is the least
    over the targets, ``drop`` the largest, in the metric's own unit: above 0 is worse. ``stages`` are those it ran, as
    the report tells them.
    """

    number: int
    began: int | None                   # the round whose float model it pruned; None for the original
    asked: float                        # times as fast as that one, in fp32
    made: Made | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    ships: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[dict[str, Any]] = ()
    failure: str | None = None

    @property
    def speedup(self) -> float:
        return min(float(self.figures["measured"][target][form]["speedup"]) for target, form in self.ships.items())

    @property
    def drop(self) -> float:
        return max(_points(self.figures["measured"][target][form]) for target, form in self.ships.items()) / 100

    def keeps(self, max_drop: float) -> bool:
        return self.failure is None and self.drop <= max_drop

    def to_json(self) -> dict[str, Any]:
        told = {} if self.failure else {
            "speedup": self.speedup, "points": 100 * self.drop, "ships": dict(self.ships), **self.figures}
        stages = [{key: stage.get(key) for key in ("stage", "target_scheme", "seconds", "reused", "summary")}
                  for stage in self.stages]
        return {"number": self.number, "began": self.began, "asked": self.asked, "failure": self.failure, **told,
                "stages": stages}


def search(filing: Filing, original: ModelFile, targets: Sequence[Target], output: Path) -> Round:
    """The round that keeps ``recipe.budget`` best, or comes nearest; what every round gave is the section ``search``.

    Raises:
        CompressError: if no target can be timed from here, the validation set has no targets, or round 0 fails.
        KeyboardInterrupt: when interrupted, with the section written as far as it is known.
    """
    budget, rounds = filing.recipe.budget, list[Round]()
    timed, untimed = timed_of(targets)
    model = original.load()
    targets_of(filing.data("validation", model), get_metric(filing.recipe.metric, described(model)).output)
    before = len(filing.stages)
    best: Round | None = None
    try:
        while (step := next_step(rounds, budget)) is not None:
            began, asked = step
            done = _round(filing, original, rounds, began, asked, timed)
            rounds.append(done)
            filing.progress.say(told(done, budget))
            if best is not (best := kept(rounds, budget)):
                _keep(best, output / "best")
    finally:
        complete = next_step(rounds, budget) is None
        del filing.stages[before:]
        if best is not None:
            low = {target.scheme for target in timed if best.ships[target.name] == "int8"}
            filing.stages += [stage for stage in path_to(best, rounds) if stage["target_scheme"] in (None, *low)]
            filing.sections["search"] = {
                "metric": filing.recipe.metric, "max_drop": budget.max_drop, "complete": complete,
                "speedup": None if budget.speedup == "most" else budget.speedup,
                "outcome": "met" if met(best, budget) else "not met", "sentence": sentence(best, rounds, budget),
                "kept": best.number, "targets": [target.name for target in timed], "untimed": untimed,
                "rounds": [one.to_json() for one in rounds],
            }
    assert best is not None
    filing.progress.say(filing.sections["search"]["sentence"])
    return best


def next_step(rounds: Sequence[Round], budget: Budget) -> tuple[int | None, float] | None:
    """The round to begin with and how much faster to make it; None where nothing is left to try.

    From the smallest model that keeps the drop it goes on by ``STEP``, or by what is missing of the speed-up asked for;
    by the square root of what was tried from there before and lost too much.
    """
    if not rounds:
        return None, 1.0
    if len(rounds) > budget.rounds:
        return None
    good = [one for one in rounds if one.keeps(budget.max_drop)]
    if budget.speedup != "most" and any(met(one, budget) for one in good):
        return None
    start = min(good, key=lambda one: one.figures["macs"])
    if start.began is not None and start.speedup < GAIN * rounds[start.began].speedup:
        return None
    tried = [one.asked for one in rounds if one.began == start.number]
    factor = math.sqrt(min(tried)) if tried else STEP
    if budget.speedup != "most" and budget.speedup is not None:
        factor = min(factor, max(SMALLEST, ROOM * budget.speedup / start.speedup))
    return (start.number, factor) if factor >= SMALLEST else None


def kept(rounds: Sequence[Round], budget: Budget) -> Round:
    """The fastest round that keeps the drop, or of those that are as fast as asked the one that drops least.

    The original's own engine in fp32, which drops nothing, is among what round 0 can ship.
    """
    good = [one for one in rounds if one.keeps(budget.max_drop)]
    enough = [one for one in good if met(one, budget)] if budget.speedup != "most" else []
    if enough:
        return min(enough, key=lambda one: (one.drop, -one.speedup))
    return max(good, key=lambda one: one.speedup)


def met(one: Round, budget: Budget) -> bool:
    """Whether a round is all that was asked for."""
    asked = 0.0 if budget.speedup == "most" or budget.speedup is None else budget.speedup
    return one.keeps(budget.max_drop) and one.speedup >= asked


def faster(measured: Mapping[str, Mapping[str, Any]], targets: Sequence[Target], max_drop: float) -> dict[str, str]:
    """Target -> the precision that would ship, one for all targets of a scheme.

    The fastest on the slowest of them, among those that keep the drop; where none does, the one that drops least.

    Args:
        measured: target -> precision -> its figures, of :func:`compress.stages.rounds.measure`.
    """
    chosen: dict[str, str] = {}
    for scheme in dict.fromkeys(target.scheme for target in targets):
        own = [target.name for target in targets if target.scheme == scheme]
        drops = {form: max(_points(measured[name][form]) for name in own) for form in measured[own[0]]}
        gains = {form: min(measured[name][form]["speedup"] for name in own) for form in drops}
        good = [form for form, points in drops.items() if points <= 100 * max_drop]
        best = max(good, key=gains.__getitem__) if good else min(drops, key=lambda form: (drops[form], -gains[form]))
        chosen |= dict.fromkeys(own, best)
    return chosen


def slowest_first(start: Round, targets: Sequence[Target]) -> list[Target]:
    """``targets`` by how little what ships of ``start`` has gained there: the first drives the next round's pruning."""
    measured = start.figures["measured"]
    return sorted(targets, key=lambda target: float(measured[target.name][start.ships[target.name]]["speedup"]))


def path_to(last: Round, rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """The stages that led to what ``last`` ships: all of its own, those on the float model of the rounds before it."""
    one, found = last, [stage for stage in last.stages if stage["stage"] not in ("measure", "parts")]
    while one.began is not None:
        one = rounds[one.began]
        found = [stage for stage in one.stages if stage["stage"] in ("prune", "distill")
                 and stage["target_scheme"] is None] + found
    return found


def sentence(best: Round, rounds: Sequence[Round], budget: Budget) -> str:
    """What was reached, beside what was asked for."""
    where = f"round {best.number} of {len(rounds) - 1}" if best.number else "without pruning"
    reached = f"{best.speedup:.3g} times as fast as the original's fp32 engine with a drop of {_drop(best)}, {where}"
    if budget.speedup == "most":
        return f"kept: {reached}"
    if met(best, budget):
        return f"kept: {reached} ({budget.speedup:g} times was asked for)"
    others = [one for one in rounds if one.failure is None and one.speedup > best.speedup]
    over = max(others, key=lambda one: one.speedup, default=None)
    more = "" if over is None else f"; round {over.number} was {over.speedup:.3g} times as fast, at {_drop(over)}"
    return (f"{budget.speedup:g} times as fast was not reached within a drop of {budget.max_drop:g}: the fastest that "
            f"keeps it is {reached}{more}; allow a larger drop, more rounds, or train longer")


def told(one: Round, budget: Budget) -> str:
    if one.failure is not None:
        return f"round {one.number} failed: {one.failure}"
    over = "" if one.keeps(budget.max_drop) else f", over the budget of {budget.max_drop:g}"
    return f"round {one.number}: {one.speedup:.3g} times as fast, a drop of {_drop(one)}{over}"


def _points(figures: Mapping[str, Any]) -> float:
    return float(figures["drop"]["points"])


def _drop(one: Round) -> str:
    return f"{one.drop:.4f}".rstrip("0").rstrip(".")


def _round(
    filing: Filing, original: ModelFile, rounds: Sequence[Round], began: int | None, asked: float,
    targets: Sequence[Target],
) -> Round:
    """One round; a failure of any but the first is its result."""
    number, before = len(rounds), len(filing.stages)
    start = rounds[began].made if began is not None else None
    drives = targets if began is None else slowest_first(rounds[began], targets)
    figures: Mapping[str, Any] = {}
    ships: dict[str, str] = {}
    made, failure = None, None
    try:
        made = make(filing, original, original if start is None else start.shipped, asked, drives)
        figures = measure(filing, original, made, targets)
        ships = faster(figures["measured"], targets, filing.recipe.max_drop)
    except CompressError as error:
        if number == 0 or is_disk_full(error):
            raise
        made, failure = None, str(error)
    return Round(
        number=number, began=began, asked=asked, made=made, figures=figures, ships=ships, failure=failure,
        stages=[{**stage, "round": number} for stage in filing.stages[before:]])


def timed_of(targets: Sequence[Target]) -> tuple[list[Target], dict[str, str]]:
    """The targets whose engines can be timed from here, and why the others cannot.

    Raises:
        CompressError: if there is none.
    """
    untimed = {}
    for target in targets:
        if target.reach == "ssh" and target.address is None:
            untimed[target.name] = "it has no address"
        elif target.reach == "local" and target.backend not in ("openvino", "onnxruntime"):
            untimed[target.name] = "its engines are built here, and run on its own device"
    timed = [target for target in targets if target.name not in untimed]
    if not timed:
        reasons = "; ".join(f"{name}: {why}" for name, why in untimed.items())
        raise CompressError(f"speedup is measured, and none of the targets can be timed from here ({reasons}): add one "
                            "that can be, or give prune a goal such as macs and leave speedup out")
    return timed, untimed


def _keep(best: Round, folder: Path) -> None:
    """The model files of a round, which any command takes, whatever becomes of the run."""
    assert best.made is not None
    with atomic_folder(folder) as into:
        shutil.copyfile(best.made.shipped.path, into / "float.pt")
        for scheme, model in best.made.quantized.items():
            shutil.copyfile(model.path, into / f"{scheme}.pt")
        (into / "best.json").write_text(json.dumps({**FORMAT, **best.to_json()}, indent=1) + "\n", encoding="utf-8")
