"""One search for a mixture of precisions: what it knows, what it measures, and what it ends with whenever it ends."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from calibration import CalibrationSet
from compress.bench.everywhere import open_machine
from compress.complexity import count_model
from compress.errors import CompressError
from compress.evaluate import evaluate, groups_of
from compress.intervals import Estimate
from compress.ladder import torch_runner
from compress.metrics import Metric, drop_of
from compress.model import Model
from compress.quantize.budget import BudgetConfig, BudgetResult, PartChoice
from compress.quantize.choices import Choice
from compress.quantize.mixing import Guess, Point, best, guesses, search
from compress.quantize.parts import Layer, as_components, fine, layers_of, part_of_component, parts_of
from compress.quantize.probe import Effect, Probe
from compress.quantize.rig import Rig, Variant
from compress.quantize.scratch import Measurements, run_key
from compress.quantize.sensitivity import SensitivityConfig, spread
from compress.targets import Target

INT8_MACS = 0.5     # of the time of a multiply-accumulate in float, where no time was measured
SLOWER = 1.05       # times as long as in float, for it to be more than chance
TIE = 1e-6          # of the whole latency: at equal times int8 is taken, which is smaller


class Mixer:
    """``run`` searches, and returns in the end: the budget kept, the nearest to it, or the best at an interruption."""

    def __init__(
        self, model: Model, layers: tuple[Layer, ...], validation: CalibrationSet, *, metric: Metric,
        targets: Sequence[Target], config: BudgetConfig, reference: Model | None, choices: tuple[Choice, ...],
        scratch: Path | None, progress: Callable[[int, int, str], None] | None,
    ) -> None:  # fmt: skip
        self.model, self.layers, self.validation, self.metric = model, layers, validation, metric
        self.targets, self.config, self.choices = targets, config, choices
        self.scratch, self.progress = scratch, progress
        self.parts = parts_of(layers, fine(layers) if config.by == "auto" else config.by)
        self.components = as_components(model, self.parts)
        self.every = tuple(layer.path for layer in layers)
        self.float = next(number for number, choice in enumerate(choices) if choice.is_float)
        self.had = [{layer.path for layer in layers_of(choice.put(model, self.every))} for choice in choices]
        self.untimed: dict[str, str] = {}
        self.rigs: list[Rig] = []
        self.pure: dict[str, list[Variant]] = {}        # target -> the engine of each choice alone
        self.effects: dict[tuple[int, int], Effect] = {}    # of a part and a choice
        self.points: list[Point] = []
        self.guess: Guess | None = None
        self.slower: set[int] = set()                   # parts that a choice but float makes slower
        self._done = 0
        self._tell("the metric in float")
        self._groups = groups_of(validation)
        own = evaluate(torch_runner(dataclasses.replace(model, quantization=None)), validation, metric).per_sample
        self._reference = own if reference is None else evaluate(
            torch_runner(reference), validation, metric).per_sample  # fmt: skip
        self.in_float = self._drop(own).value

    def run(self) -> BudgetResult:
        complete = True
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compress-")))
            try:
                if self.config.when == "needed" and self._int8_keeps_it():
                    return self._result(complete=True)
                self._open(stack, folder)
                self._measure_pure()
                self._measure_parts()
                self.guess = self._guessed()
                self.points = [self._priced(point) for point in self.points]
                search(self.guess, self.limit, self.config.rounds, self._measured, self.points)
            except KeyboardInterrupt:
                complete = False
        return self._result(complete=complete)

    @property
    def limit(self) -> float:
        """The drop that is searched for: where float alone loses more than the budget, int8 may add as much to that."""
        whole = self.config.max_drop
        return whole if self.in_float <= whole else self.in_float + whole

    def _int8_keeps_it(self) -> bool:
        """Whether the model as it is keeps the budget, in torch; then that is the only point."""
        self._tell("the metric, as quantized")
        point = Point(name="as quantized", chosen=(0,) * len(self.parts), predicted_drop=0.0, predicted_ms={})
        point = self._scored(point, {}, {})
        if point.drop is not None:
            point = dataclasses.replace(point, predicted_drop=point.drop.value)
        if point.keeps(self.limit):
            self.points.append(point)
        return bool(self.points)

    def _open(self, stack: ExitStack, folder: Path) -> None:
        """A rig for each target that can be run from here; of the others the reason why not."""
        for target in self.targets:
            if target.reach == "ssh" and target.address is None:
                self.untimed[target.name] = "it has no address"
            elif target.reach == "local" and target.backend not in ("openvino", "onnxruntime"):
                self.untimed[target.name] = "its engines are built here, and run on its own device"
            else:
                try:
                    machine = open_machine(target, stack)
                except CompressError as error:
                    self.untimed[target.name] = str(error)
                    continue
                self.rigs.append(Rig(target, machine, self.components, self.validation, self.metric, folder))

    def _measure_pure(self) -> None:
        """Engines in one precision each: the time of every part in each, and the ends of the trade-off curve."""
        for rig in tuple(self.rigs):
            try:
                self.pure[rig.target.name] = [self._build(rig, choice.name, self._put(self._all(number)),
                                                          number == self.float)
                                              for number, choice in enumerate(self.choices)]  # fmt: skip
                rig.time(self.pure[rig.target.name], self.config.restarts,
                         lambda name=rig.target.name: self._tell(f"time on {name}"))  # type: ignore[misc]
            except CompressError as error:
                self.untimed[rig.target.name] = str(error)
                self.pure.pop(rig.target.name, None)
                self.rigs.remove(rig)
        for number, choice in enumerate(self.choices):
            self._tell(f"the metric, all {choice.name}")
            variants = {name: variants[number] for name, variants in self.pure.items()}
            point = Point(name=f"all {choice.name}", chosen=self._all(number), predicted_drop=0.0, predicted_ms={})
            times = {name: variant.latency_ms for name, variant in variants.items()}
            self.points.append(self._scored(point, variants, times))

    def _measure_parts(self) -> None:
        """What each part alone costs in each choice that is not float."""
        samples = spread(self.validation, self.config.samples)
        kept_by = SensitivityConfig(samples=self.config.samples)    # what else is set changes nothing here
        for number, choice in enumerate(self.choices):
            if choice.is_float:
                continue
            model = choice.put(self.model, self.every)
            own = {layer.path: layer for layer in layers_of(model)}
            layers = tuple(own.get(one.path, dataclasses.replace(one, nodes=(), results=())) for one in self.layers)
            key = "" if self.scratch is None else run_key(model, samples, self.metric, kept_by)
            file = None if self.scratch is None else self.scratch / f"parts-{number}.json"
            kept, probe = Measurements(file, key), None
            for at, part in enumerate(self.parts):
                self._tell(f"{part.name} in {choice.name}")
                if not self._has(at, number):
                    self.effects[at, number] = Effect(noise=math.inf, failure=f"nothing in it has {choice.name}")
                    continue
                effect = kept.get(part.paths)
                if effect is None:
                    probe = probe or Probe(model, layers, samples, self.metric)
                    effect = kept.keep(part.paths, probe.effect(part.paths))
                self.effects[at, number] = effect

    def _guessed(self) -> Guess:
        """Drops as the sum of what the parts cost, latencies as what they took in the engines of one precision.

        The noise of a part in the outputs is what adds up, since rounding errors are independent of each other; what it
        means for the metric is taken from the engine in which all parts are so. A part whose own drop is sure, and
        larger than that, costs that.
        """
        base = self.points[self.float].drop
        base_drop = base.value if base is not None else 0.0
        costs = [[0.0] * len(self.choices) for _ in self.parts]
        for number, choice in enumerate(self.choices):
            if choice.is_float:
                continue
            noises = [self.effects[at, number].noise for at in range(len(self.parts))]
            total = sum(noise for noise in noises if math.isfinite(noise))
            whole = self.points[number].drop
            lost = 10 * max(self.config.max_drop, 0.01) if whole is None else max(0.0, whole.value - base_drop)
            for at, noise in enumerate(noises):
                costs[at][number] = self._cost(self.effects[at, number], lost * noise / total if total else 0.0)
        added = {name: self._added_ms(variants) for name, variants in self.pure.items()}
        base_ms = {name: variants[0].latency_ms for name, variants in self.pure.items()}
        return Guess(costs=costs, times=self._times(added, base_ms), base_drop=base_drop, base_ms=base_ms,
                     added_ms=added)  # fmt: skip

    def _has(self, part: int, choice: int) -> bool:
        """Whether a part has layers that ``choice`` can be given to."""
        return choice == self.float or not self.had[choice].isdisjoint(self.parts[part].paths)

    def _all(self, choice: int) -> tuple[int, ...]:
        """All parts in ``choice``, but for those that cannot be: they are float."""
        return tuple(choice if self._has(part, choice) else self.float for part in range(len(self.parts)))

    def _cost(self, effect: Effect, share: float) -> float:
        if effect.failure is not None or not math.isfinite(effect.noise):
            return math.inf
        own = effect.drop.value if effect.drop is not None and effect.drop.low > 0 else 0.0
        return max(share, own)

    def _added_ms(self, variants: Sequence[Variant]) -> list[list[float]]:
        """Of each part and choice, what it adds to the latency of the engine in the first choice.

        A part of which a backend tells nothing in one of the engines is not known to be faster in either. What the
        parts do not explain of an engine's latency is shared among them evenly.
        """
        found = []
        for at in range(len(self.parts)):
            times = [variant.part_us(at) for variant in variants]
            known = [time for time in times if time is not None]
            is_known = len(known) == len(times)
            found.append([(time - known[0]) / 1e3 for time in known] if is_known else [0.0] * len(times))
        for number, variant in enumerate(variants):
            rest = variant.latency_ms - variants[0].latency_ms - sum(row[number] for row in found)
            for row in found:
                row[number] += rest / len(found)
        return found

    def _times(self, added: dict[str, list[list[float]]], base_ms: dict[str, float]) -> list[list[float]]:
        """What is made least: latencies over the targets, each as a share of the first choice's.

        A part goes into float for the sake of time only if it was clearly slower in all other choices, and into one
        behind the first only if it was clearly slower in that.
        """
        times = []
        if not self.pure:
            return [[macs * (INT8_MACS if number == 0 else 1.0) + TIE * (0 < number != self.float)
                     for number in range(len(self.choices))] for macs in self._macs()]  # fmt: skip
        for at in range(len(self.parts)):
            row = [sum(added[name][at][number] / base_ms[name] for name in self.pure)
                   for number in range(len(self.choices))]  # fmt: skip
            for number in range(1, len(self.choices)):
                if number != self.float and not self._is_slower(at, 0, number):
                    row[number] = max(row[number], row[0] + TIE)
            others = [number for number in range(len(self.choices)) if number != self.float and self._has(at, number)]
            if all(self._is_slower(at, number, self.float) for number in others):
                self.slower.add(at)
            else:
                row[self.float] = max(row[self.float], min(row[:self.float] + row[self.float + 1 :]) + TIE)
            times.append(row)
        return times

    def _is_slower(self, part: int, choice: int, than: int) -> bool:
        """Whether a part took longer in ``choice`` than in another one, over all targets that tell its time.

        By its median, and in most pairs of processes: a part of a few microseconds differs from itself by as much.
        """
        known = [variants for variants in self.pure.values()
                 if all(part in times for variant in variants for times in variant.parts_us)]  # fmt: skip

        def rounds(number: int) -> np.ndarray:
            shares = [[times[part] / variants[0].latency_ms for times in variants[number].parts_us]
                      for variants in known]  # fmt: skip
            return np.array([sum(one) for one in zip(*shares, strict=True)])

        own, other = rounds(choice), rounds(than)
        return len(own) > 0 and bool(np.median(own) > SLOWER * np.median(other) and np.mean(own > other) > 0.5)

    def _macs(self) -> list[float]:
        """The parts' multiply-accumulates, as shares of all."""
        marked = dataclasses.replace(self.model, components=self.components)
        macs = [0.0] * len(self.parts)
        for name, cost in count_model(marked).components.items():
            part = part_of_component(name)
            if part is not None:
                macs[part] += cost.macs
        return [one / (sum(macs) or 1.0) for one in macs]

    def _measured(self, point: Point) -> Point:
        """Build and measure a mixture beside the engine of the first choice, whose time corrects for drift."""
        self._tell(f"{point.name}: {sum(c == self.float for c in point.chosen)} of {len(self.parts)} in float")
        variants, times = {}, {}
        try:
            for rig in self.rigs:
                name, first = rig.target.name, self.pure[rig.target.name][0]
                is_float = all(choice == self.float for choice in point.chosen)
                variants[name] = self._build(rig, point.name, self._put(point.chosen), is_float)
                before = len(first.rounds_ms)
                rig.time([variants[name], first], self.config.restarts)
                del first.parts_us[self.config.restarts :]      # the record shows the times that parts were chosen by
                ratios = np.divide(variants[name].rounds_ms, first.rounds_ms[before:])
                assert self.guess is not None
                times[name] = float(np.median(ratios)) * self.guess.base_ms[name]
        except CompressError as error:
            return dataclasses.replace(point, failure=str(error))
        return self._scored(point, variants, times)

    def _scored(self, point: Point, variants: dict[str, Variant], times: dict[str, float]) -> Point:
        """``point`` with the drop of its engines, the largest of several targets; in torch where none runs."""
        drops: list[Estimate] = []
        try:
            for rig in self.rigs:
                drops.append(self._drop(rig.score(variants[rig.target.name])))
            if not drops:
                run = torch_runner(self._put(point.chosen))
                drops.append(self._drop(evaluate(run, self.validation, self.metric).per_sample))
        except CompressError as error:
            return dataclasses.replace(point, failure=str(error), latency_ms=times)
        return dataclasses.replace(point, drop=max(drops, key=lambda drop: drop.value), latency_ms=times)

    def _drop(self, scores: np.ndarray) -> Estimate:
        return drop_of(self.metric, self._reference, scores, self._groups)

    def _build(self, rig: Rig, name: str, model: Model, is_float: bool) -> Variant:
        return rig.build(name, model, (rig.target.half or rig.target.float) if is_float else None)

    def _put(self, chosen: Sequence[int]) -> Model:
        """The model with each part as chosen."""
        model = self.model
        for number, choice in enumerate(self.choices):
            paths = [path for part, own in zip(self.parts, chosen, strict=True) if own == number for path in part.paths]
            if paths:
                model = choice.put(model, paths)
        return model

    def _priced(self, point: Point) -> Point:
        assert self.guess is not None
        priced = self.guess.point(point.name, point.chosen)
        return dataclasses.replace(priced, drop=point.drop, latency_ms=point.latency_ms, failure=point.failure)

    def _tell(self, text: str) -> None:
        if self.progress:
            timing = len(self.choices) * self.config.restarts * len(self.targets)
            total = 1 + timing + len(self.choices) + (len(self.choices) - 1) * len(self.parts) + self.config.rounds
            self.progress(min(self._done, total), total, text)
        self._done += 1

    def _result(self, *, complete: bool) -> BudgetResult:
        found = best(self.points, self.limit)
        chosen = found.chosen if found is not None else (0,) * len(self.parts)
        known = {point.chosen for point in self.points}
        curve = [] if self.guess is None else [point for point in guesses(self.guess) if point.chosen not in known]
        met = found is not None and found.keeps(self.config.max_drop)
        return BudgetResult(
            model=self._put(chosen), best=found, points=(*self.points, *curve),
            parts=tuple(self._told(at, chosen) for at in range(len(chosen))), floats=(self.float,),
            outcome="met" if met else "not met", sentence=self._sentence(found, complete=complete),
            max_drop=self.config.max_drop, metric=self.metric.name, data=self.validation.digest,
            timed=tuple(self.pure), untimed=self.untimed, complete=complete,
        )  # fmt: skip

    def _told(self, at: int, chosen: Sequence[int]) -> PartChoice:
        part, first = self.parts[at], next(n for n, one in enumerate(self.choices) if not one.is_float)
        effect = self.effects.get((at, first))
        times = {
            name: {one.name: time for one, variant in zip(self.choices, variants, strict=True)
                   if variant.parts_us and (time := variant.part_us(at)) is not None}
            for name, variants in self.pure.items()
        }  # fmt: skip
        return PartChoice(
            name=part.name, components=part.components, layers=len(part.paths), choice=self.choices[chosen[at]].name,
            why=self._why(at, chosen), noise=None if effect is None or effect.noise == math.inf else effect.noise,
            drop=effect.drop.value if effect is not None and effect.drop is not None else None, times_us=times,
        )  # fmt: skip

    def _why(self, at: int, chosen: Sequence[int]) -> str:
        """Why a part is in float."""
        if chosen[at] != self.float:
            return ""
        if at in self.slower:
            return "slower in int8"
        if any(point.keeps(self.limit) and point.chosen[at] != self.float for point in self.points):
            return "the whole is faster so"
        return "int8 costs too much of the budget"

    def _sentence(self, found: Point | None, *, complete: bool) -> str:
        """What came of it, in one sentence."""
        began = "" if complete else "Interrupted: the best so far. "
        if found is None or found.drop is None:
            return f"{began}Nothing was measured: all parts are in int8, as they were."
        most, lost = f"{self.config.max_drop:g}", f"{found.drop.value:.4g}"
        floats = sum(choice == self.float for choice in found.chosen)
        parts = f"{floats} of {len(self.parts)} parts in float"
        for number in (one for one in range(1, len(self.choices)) if one != self.float and one in found.chosen):
            parts += f", {found.chosen.count(number)} with {self.choices[number].name}"
        alone = "nothing is left in int8, " if floats == len(self.parts) else ""
        if not found.keeps(self.limit):
            return (f"{began}Nothing that was tried keeps a drop of at most {most}. The nearest, with {parts}, loses "
                    f"{lost}.")  # fmt: skip
        if not found.keeps(self.config.max_drop):
            return (f"{began}No mixture keeps a drop of at most {most}, since the model in float alone loses "
                    f"{self.in_float:.4g}; chosen so that int8 adds at most {most} to that: {parts}, {alone}a drop of "
                    f"{lost}.")  # fmt: skip
        speed = ", ".join(f"{time:.3g} ms on {name}" for name, time in (found.latency_ms or {}).items())
        if not speed and len(self.points) == 1:
            speed = "nothing was timed, since that is enough"
        elif not speed:
            speed = "chosen by multiply-accumulates, since no target could be timed"
        return f"{began}{parts}: {alone}a drop of {lost}, where {most} is allowed; {speed}."
