"""Widths by measured latency: what each group's layers take on the target at several widths, and the best mixture.

Every group is narrowed to the same share in a few engines, which are built for the target and timed in fresh processes,
in turn; the backend's profile tells the time of each layer. That is the table: what a group costs at any width is read
between its measured ones. The widths that lose the least importance within a latency are a multiple-choice knapsack,
solved as a whole. What is chosen is built and timed beside the original, and the prediction corrected, until it holds.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration import CalibrationSet
from compress.bench.everywhere import open_machine
from compress.distill.checkpoint import model_digest
from compress.errors import CompressError
from compress.model import Model
from compress.prune import PruneConfig, TimedPrune
from compress.prune.allocation import most_branches, steps
from compress.prune.structured import Pruned, Ranked, cut_module, within
from compress.quantize.knapsack import choose
from compress.quantize.rig import Rig, Variant
from compress.store import atomic_write
from compress.targets import Target, get_target
from runtimes.hashing import json_digest

SHARES = (0.7, 0.4)                              # of its units that each group keeps in the engines of the table
RESTARTS = 3                                     # processes an engine is timed in
ROUNDS = 5                                       # mixtures that are built and timed
CHOICES = 24                                     # widths of a group that are looked at
BEGIN = 40                                       # percent of the progress that finding and ranking groups was
CLOSE = 1.04                                     # of the limit: a latency that far below it is near enough

Export = Callable[[Pruned], Model]
Units = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One engine of the table: the share of its units that each group keeps, and what its layers take."""

    shares: tuple[float, ...]                    # of each group
    latency_ms: float
    layers_ms: Mapping[int, float]               # number of a layer -> its time, where the profile tells it

    def to_json(self) -> dict[str, Any]:
        return {"shares": list(self.shares), "latency_ms": self.latency_ms,
                "layers_ms": {str(number): time for number, time in self.layers_ms.items()}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Measured:
        return cls(shares=tuple(map(float, record["shares"])), latency_ms=float(record["latency_ms"]),
                   layers_ms={int(number): float(time) for number, time in record["layers_ms"].items()})


def prune_to_latency(
    ranked: Ranked, original: Model, data: CalibrationSet, config: PruneConfig, export: Export,
    tables: Path | None = None, progress: Callable[[int, int, str], None] | None = None,
) -> tuple[Model, Pruned, TimedPrune]:
    """The model that loses the least importance of those that are as fast as ``config`` asks for, timed beside the
    original.

    Args:
        ranked: what can be pruned.
        original: what speed-ups are against: its float32 engine.
        data: its first sample is what is timed.
        export: makes a model of a smaller module.
        tables: a folder in which what was measured is kept, for other goals on the same target.
        progress: called with the percent done, 100, and what is being done.

    Raises:
        CompressError: if the target cannot be run from here, or it cannot be made as fast; says how fast it can be.
    """
    target = get_target(config.target or "local")
    tell = progress or (lambda done, of, what: None)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compress-")))
        rig = _rig(target, stack, ranked, original, data, folder)
        whole = rig.build("original", original, "fp32")
        ladder = [steps(group, scores, config.rounding, config.max_share)
                  for group, scores in zip(ranked.groups, ranked.scores, strict=True)]
        table = _table(rig, whole, ranked, original, ladder, config, export, tables, tell)
        if not whole.rounds_ms:
            rig.time([whole], RESTARTS)
        return _search(rig, whole, ranked, ladder, Prices(ranked, table), config, export, tell)


def _rig(
    target: Target, stack: ExitStack, ranked: Ranked, original: Model, data: CalibrationSet, folder: Path,
) -> Rig:
    if target.reach == "ssh" and target.address is None:
        raise CompressError(f"target {target.name!r} has no address, so nothing can be timed on it: give it one "
                            f"(compress targets add), or give macs as the goal")
    if target.reach == "local" and target.backend not in ("openvino", "onnxruntime"):
        raise CompressError(f"engines for target {target.name!r} are built here and run on its own device, so nothing "
                            "can be timed: give macs as the goal")
    components = {f"{number}-0": path for number, path in enumerate(layers_of(ranked))}
    return Rig(target, open_machine(target, stack), components, data, None, folder)


def layers_of(ranked: Ranked) -> list[str]:
    """The paths of all layers that a group changes, of attention, whose heads are one, and of what a branch has."""
    found = {edit.path for group in ranked.groups for edit in group.edits if not edit.tensor}
    found |= {path for group in ranked.groups if group.branch is not None for path in group.branch.modules}
    return sorted(found | {path for group in ranked.groups for path in group.attention})


def _table(
    rig: Rig, whole: Variant, ranked: Ranked, original: Model, ladder: Sequence[Sequence[Units]], config: PruneConfig,
    export: Export, tables: Path | None, tell: Callable[[int, int, str], None],
) -> list[Measured]:
    """Engines with every group at the same share of its units, the whole one first; from ``tables`` where they are."""
    key = json_digest({
        "model": model_digest(original), "target": dataclasses.asdict(rig.target), "machine": rig.machine.name,
        "threads": rig.machine.threads, "rounding": str(config.rounding), "max_share": config.max_share,
        "groups": [[group.name, group.units] for group in ranked.groups], "layers": layers_of(ranked),
        "torch": torch.__version__})
    file = None if tables is None else tables / f"{key.removeprefix('sha256:')[:32]}.json"
    if file is not None and file.is_file():
        try:
            return [Measured.from_json(record) for record in json.loads(file.read_text(encoding="utf-8"))["engines"]]
        except (ValueError, KeyError, TypeError):          # a damaged file costs time, nothing else
            pass
    variants = [(tuple(1.0 for _ in ranked.groups), whole)]
    for number, share in enumerate((*SHARES, 1 - config.max_share)):
        tell(BEGIN + 5 * number, 100, "engines for the table of latencies")
        chosen = [() if group.branch is not None else _to_share(group.units, own, share)
                  for group, own in zip(ranked.groups, ladder, strict=True)]
        left = tuple(1 - len(units) / group.units for group, units in zip(ranked.groups, chosen, strict=True))
        if left != variants[-1][0]:
            variants.append((left, rig.build(f"{share:.0%}", export(cut_module(ranked, chosen)), "fp32")))
    tell(BEGIN + 15, 100, "times for the table of latencies")
    rig.time([variant for _, variant in variants], RESTARTS)
    made = [_measured(left, variant, len(layers_of(ranked))) for left, variant in variants]
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps({"key": key, "engines": [one.to_json() for one in made]}))
    return made


def _to_share(units: int, own: Sequence[Units], share: float) -> Units:
    taken: list[int] = []
    for step in own:
        if units - len(taken) - len(step) < share * units - 0.5 * len(step):
            break
        taken += step
    return tuple(sorted(taken))


def _measured(shares: tuple[float, ...], variant: Variant, layers: int) -> Measured:
    times = {number: variant.part_us(number) for number in range(layers)}
    return Measured(shares=shares, latency_ms=variant.latency_ms,
                    layers_ms={number: time / 1e3 for number, time in times.items() if time is not None})


class Prices:
    """What each group costs at a share of its units, in milliseconds; ``fixed`` is what no group changes."""

    def __init__(self, ranked: Ranked, table: Sequence[Measured]) -> None:
        """A layer of two groups is half of each. What the profile does not explain of an engine's latency is shared
        among the groups as what it explains, or as the multiply-accumulates where it explains nothing. Of a branch all
        that its layers take goes with it, or its share of the work."""
        number = {path: at for at, path in enumerate(layers_of(ranked))}
        owners: dict[int, list[int]] = {}
        for at, group in enumerate(ranked.groups):
            if group.branch is not None:
                continue
            names = {edit.path for edit in group.edits if not edit.tensor}
            for path in names.union(group.attention):
                owners.setdefault(number[path], []).append(at)
        whole = table[0]
        own = np.zeros((len(table), len(ranked.groups)))
        for row, engine in enumerate(table):
            for layer, groups in owners.items():
                if layer in engine.layers_ms and layer in whole.layers_ms:
                    own[row, groups] += engine.layers_ms[layer] / len(groups)
        own = np.minimum(own, own[0])
        work = np.array([ranked.costs.share(at, ["macs"]) * group.units for at, group in enumerate(ranked.groups)])
        saved = np.zeros_like(own)
        for row, engine in enumerate(table[1:], 1):
            told = own[0] - own[row]
            if told.sum() <= 0:
                told = work * (1 - np.array(engine.shares))
            saved[row] = told * max(0.0, whole.latency_ms - engine.latency_ms) / max(float(told.sum()), 1e-12)
        self.whole_ms = whole.latency_ms
        self._points = []
        for at in range(len(ranked.groups)):
            found = sorted({engine.shares[at]: saved[row, at] for row, engine in enumerate(table)}.items())
            shares, savings = np.array([share for share, _ in found]), np.array([saving for _, saving in found])
            # a smaller width saves no less: what noise says otherwise is not believed
            self._points.append((shares, np.maximum.accumulate(savings[::-1])[::-1]))
        for at, group in enumerate(ranked.groups):
            if group.branch is not None:         # what its layers take in the whole engine
                time = (sum(whole.layers_ms.get(number[path], 0.0) for path in group.branch.modules)
                        or ranked.costs.share(at, ["macs"]) * whole.latency_ms)
                self._points[at] = np.array([0.0, 1.0]), np.array([time, 0.0])

    def saving_ms(self, group: int, share: float) -> float:
        """What is saved where ``group`` keeps this share of its units."""
        shares, savings = self._points[group]
        return float(np.interp(share, shares, savings))


def solve(
    ranked: Ranked, ladder: Sequence[Sequence[Units]], prices: Prices, saving_ms: float, max_share: float = 0.9,
) -> tuple[list[Units], float] | None:
    """The units to remove that are missed least of those that save ``saving_ms``, and what they save; None if none do.

    Where a branch goes, what is in it is left whole: there is nothing more to be saved in it.
    """
    options: list[list[Units]] = []
    for own in ladder:
        every = max(1, math.ceil(len(own) / CHOICES))
        lengths = sorted({0, *range(0, len(own) + 1, every), len(own)})
        options.append([tuple(unit for step in own[:length] for unit in step) for length in lengths])
    missed = [[float(scores[list(units)].sum()) for units in mine]
              for scores, mine in zip(ranked.scores, options, strict=True)]
    savings = [[prices.saving_ms(at, 1 - len(units) / ranked.groups[at].units) for units in mine]
               for at, mine in enumerate(options)]
    most = [max(mine) for mine in savings]
    if sum(most) < saving_ms:
        return None
    limits = _limits(ranked, max_share)
    while True:
        chosen = choose(missed, [[top - saving for saving in mine] for top, mine in zip(most, savings, strict=True)],
                        sum(most) - saving_ms, limits)
        if chosen is None:
            return None
        gone = [at for at, number in enumerate(chosen) if number and ranked.groups[at].branch is not None]
        if ranked.allowed(gone):
            break
        limits.append((gone, len(gone) - 1))
    units = [tuple(sorted(mine[number])) for mine, number in zip(options, chosen, strict=True)]
    return units, sum(mine[number] for mine, number in zip(savings, chosen, strict=True))


def _limits(ranked: Ranked, max_share: float) -> list[tuple[list[int], int]]:
    """How many branches may go, and that nothing else of one does that goes."""
    branches = [(at, group.branch) for at, group in enumerate(ranked.groups) if group.branch is not None]
    found = [([at for at, _ in branches], most_branches(ranked.groups, max_share))] if branches else []
    for at, branch in branches:
        tensors = set(branch.tensors)
        found += [([at, other], 1) for other, group in enumerate(ranked.groups) if within(group, tensors)
                  or (group.branch is not None and set(group.branch.tensors) < tensors)]
    return found


def _least(ranked: Ranked, ladder: Sequence[Sequence[Units]], max_share: float) -> list[Units]:
    """All that may go, with as many branches as may, the least important first."""
    branches = [at for at, group in enumerate(ranked.groups) if group.branch is not None]
    gone: list[int] = []
    for at in sorted(branches, key=lambda at: float(ranked.scores[at].sum())):
        if len(gone) < most_branches(ranked.groups, max_share) and ranked.allowed([*gone, at]):
            gone.append(at)
    tensors = {key for branch in ranked.branches(gone) for key in branch.tensors}
    return [() if within(group, tensors) or (group.branch is not None and at not in gone)
            else tuple(sorted(unit for step in own for unit in step))
            for at, (group, own) in enumerate(zip(ranked.groups, ladder, strict=True))]


def _search(
    rig: Rig, whole: Variant, ranked: Ranked, ladder: Sequence[Sequence[Units]], prices: Prices, config: PruneConfig,
    export: Export, tell: Callable[[int, int, str], None],
) -> tuple[Model, Pruned, TimedPrune]:
    best: tuple[Model, Pruned, TimedPrune] | None = None
    fastest, tried, scale = 1.0, set[tuple[Units, ...]](), 1.0
    for number in range(ROUNDS):
        limit = config.limit_ms(whole.latency_ms)
        needed = max(0.0, whole.latency_ms - limit)
        found = solve(ranked, ladder, prices, needed * scale, config.max_share)
        if found is None:                        # the table says that it cannot be: the least there is shows it
            least = _least(ranked, ladder, config.max_share)
            found = least, sum(prices.saving_ms(at, 1 - len(units) / ranked.groups[at].units)
                               for at, units in enumerate(least))
        units, predicted = found
        if tuple(units) in tried:
            break
        tried.add(tuple(units))
        tell(60 + 8 * number, 100, f"mixture {number + 1}")
        pruned = cut_module(ranked, units)
        model = export(pruned)
        variant = rig.build(f"mixture {number + 1}", model, "fp32")
        rig.time([whole, variant], RESTARTS)
        limit = config.limit_ms(whole.latency_ms)
        fastest = max(fastest, whole.latency_ms / variant.latency_ms)
        timed = TimedPrune(target=rig.target.name, original_ms=whole.latency_ms, pruned_ms=variant.latency_ms,
                           predicted_ms=prices.whole_ms - predicted, rounds=number + 1)
        saved = whole.latency_ms - variant.latency_ms
        if variant.latency_ms <= limit and (best is None or variant.latency_ms > best[2].pruned_ms):
            best = model, pruned, timed
        if best is not None and limit <= CLOSE * variant.latency_ms and variant.latency_ms <= limit:
            break
        scale = predicted / max(saved, 0.05 * predicted, 1e-9)
    if best is None:
        asked = f"{config.speedup:g} times as fast" if config.speedup else f"as fast as {config.max_latency_ms:g} ms"
        raise CompressError(
            f"cannot prune to {asked} on {rig.target.name}: the best that was measured is {fastest:.2f} times, or "
            f"{whole.latency_ms / fastest:.3g} ms where the original takes {whole.latency_ms:.3g} ms "
            f"(max_share={config.max_share:g}): ask for less, allow more structures, or list less in protect")
    return best
