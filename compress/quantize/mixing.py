"""The search behind a budget: which parts go into float so that the drop is kept and the measured latency is least.

The drop of a mixture is guessed as the sum of what its parts cost, its latency as what the parts took in engines of one
precision each. Both are guesses: what the solver picks is built and measured, the guess of the budget is moved, and the
solver asked again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compress.errors import CompressError
from compress.intervals import Estimate, verdict
from compress.quantize.knapsack import choose

CLOSE = 0.02        # of the costliest mixture: bounds that are nearer are one


@dataclass(frozen=True, kw_only=True)
class Point:
    """A mixture: the choice of each part, what was guessed of it, and what was measured.

    ``drop`` is in the metric's own unit; ``latency_ms`` by target, None and empty where nothing was measured. ``share``
    is the guess of its time that the solver made least, which decides where no latency is known.
    """

    name: str
    chosen: tuple[int, ...]
    predicted_drop: float
    predicted_ms: Mapping[str, float]
    share: float = 0.0
    drop: Estimate | None = None
    latency_ms: Mapping[str, float] | None = None
    failure: str | None = None

    def keeps(self, max_drop: float) -> bool:
        """Whether its measured drop is at most ``max_drop``."""
        return self.drop is not None and self.drop.value <= max_drop

    def to_json(self, names: Sequence[str], floats: Sequence[int], max_drop: float) -> dict[str, Any]:
        drop = None
        if self.drop is not None:
            drop = {"points": 100 * self.drop.value, "interval": [100 * self.drop.low, 100 * self.drop.high],
                    "n": self.drop.n, "verdict": verdict(self.drop, max_drop)}  # fmt: skip
        return {
            "name": self.name, "float": [name for name, c in zip(names, self.chosen, strict=True) if c in floats],
            "predicted": {"points": 100 * self.predicted_drop, "latency_ms": dict(self.predicted_ms)}, "drop": drop,
            "latency_ms": None if self.latency_ms is None else dict(self.latency_ms), "failure": self.failure,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Guess:
    """What is known of the parts before any mixture is built.

    Attributes:
        costs: of each part, what each of its choices adds to the drop.
        times: of each part and choice, its time as a share of the whole int8 engine's, summed over the targets.
        base_drop: of the model in float, beside what drops are counted from.
        base_ms: latency of the int8 engine, by target.
        added_ms: by target, of each part and choice what it adds to ``base_ms``.
    """

    costs: Sequence[Sequence[float]]
    times: Sequence[Sequence[float]]
    base_drop: float
    base_ms: Mapping[str, float]
    added_ms: Mapping[str, Sequence[Sequence[float]]]

    def cost(self, chosen: Sequence[int]) -> float:
        return sum(self.costs[part][choice] for part, choice in enumerate(chosen))

    def point(self, name: str, chosen: tuple[int, ...]) -> Point:
        latency = {target: base + sum(self.added_ms[target][part][choice] for part, choice in enumerate(chosen))
                   for target, base in self.base_ms.items()}  # fmt: skip
        share = sum(self.times[part][choice] for part, choice in enumerate(chosen))
        return Point(name=name, chosen=chosen, predicted_drop=self.base_drop + self.cost(chosen), predicted_ms=latency,
                     share=share)  # fmt: skip


def search(
    guess: Guess, max_drop: float, rounds: int, measure: Callable[[Point], Point], known: list[Point]
) -> None:
    """Measure fast mixtures of falling cost, until one keeps ``max_drop`` and one that costs little more does not.

    First comes the fastest of all, then what the guess says just keeps the budget, then what lies between.

    Args:
        rounds: how many mixtures are measured at most.
        measure: fills in what was measured; what it raises ends the search.
        known: what was measured before, to which each mixture is added as it is measured.
    """
    low, low_drop, high = 0.0, guess.base_drop, guess.cost(_solved(guess, math.inf))
    whole, bound, number = high, math.inf, 0
    while number < rounds:
        chosen = _solved(guess, bound)
        point = next((one for one in known if one.chosen == chosen), None)
        if point is None:
            number += 1
            point = measure(guess.point(f"round {number}", chosen))
            known.append(point)
        guessed = max_drop - guess.base_drop
        if point.keeps(max_drop):
            if bound == math.inf:
                return
            assert point.drop is not None
            low, low_drop = bound, point.drop.value
            bound = (low + high) / 2
        else:
            first, high = bound == math.inf, guess.cost(chosen)
            bound = guessed if first and low < guessed < high else _between(low, low_drop, high, point, max_drop)
        if high - low <= CLOSE * whole:
            return


def best(points: Sequence[Point], max_drop: float) -> Point | None:
    """The fastest of those that keep the budget; else the one that drops least; None where no drop is known.

    Of several targets it is the one with the least sum of latencies, each as a share of the slowest there.
    """
    def time(point: Point) -> float:
        return sum((point.latency_ms or point.predicted_ms)[target] / most for target, most in slowest.items())

    kept = [point for point in points if point.keeps(max_drop)]
    if not kept:
        scored = [point for point in points if point.drop is not None]
        return min(scored, key=lambda point: point.drop.value if point.drop else math.inf, default=None)
    slowest = {target: max((point.latency_ms or point.predicted_ms)[target] for point in kept)
               for target in kept[0].predicted_ms}  # fmt: skip
    return min(kept, key=time if slowest else lambda point: point.share)


def guesses(guess: Guess, shares: Sequence[float] = (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)) -> list[Point]:
    """The fastest mixtures as far as they are guessed, from the one that costs nothing to the fastest of all."""
    whole = guess.cost(_solved(guess, math.inf))
    found = dict.fromkeys(_solved(guess, share * whole) for share in shares)
    return [guess.point("guess", chosen) for chosen in found]


def _between(low: float, low_drop: float, high: float, point: Point, max_drop: float) -> float:
    """Where the drop would be the budget on a line through what is known below and ``point`` at ``high``."""
    share = 0.5
    if point.drop is not None and point.drop.value > low_drop:
        share = (max_drop - low_drop) / (point.drop.value - low_drop)
    return low + min(max(share, 0.1), 0.9) * (high - low)


def _solved(guess: Guess, bound: float) -> tuple[int, ...]:
    found = choose(guess.times, guess.costs, bound)
    if found is None:
        raise CompressError(f"no choice of precisions costs at most {bound:g}: give every part one that costs nothing")
    return found
