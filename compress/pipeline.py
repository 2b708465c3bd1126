"""Run a recipe: the order of the stages on one page.

    load -> prune, distill -> (per scheme) quantize, distill, sensitivity, budget
            in rounds, where the recipe asks for a speed-up (compress.stages.search)
         -> (per target) engines and their float controls -> parity -> bench -> bundle -> report

Every stage's result is an artifact of the store, filed by what it was made from; a stage whose artifact is there is not
done again, so a run that was killed goes on where it was. :mod:`compress.stages` says what each stage reads and writes.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.bench.record import BenchRecord
from compress.bundle import refuse_strangers
from compress.described import described
from compress.errors import CompressError
from compress.evaluate import try_metric
from compress.metrics import get_metric
from compress.progress import Progress
from compress.prune.config import SPARSE_BACKENDS
from compress.recipe import Recipe, read_recipe
from compress.report import report
from compress.stages.engines import build_engines
from compress.stages.filing import Filing
from compress.stages.measurements import compare, measure_parity, measure_speed
from compress.stages.models import ModelFile, load_model, transform
from compress.stages.precision import keep_budget, measure_sensitivity
from compress.stages.results import record_of, write_bundle
from compress.stages.search import search, timed_of
from compress.store import Store
from compress.targets import Target, get_target

if TYPE_CHECKING:
    from compress.model import Model


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """``done`` and ``reused`` count stages; ``record`` is report.json's content.

    ``losses`` says what became of each device that was lost or not reached, and of each engine that ships and failed
    in the bench: their rows have no figures, or fewer.
    """

    output: Path
    report: Path
    bundle: Path | None
    record: Mapping[str, Any]
    done: int
    reused: int
    losses: tuple[str, ...] = ()


def run(
    recipe: Path | Recipe, *, output: Path | None = None, progress: Progress | None = None, command: str | None = None
) -> RunResult:
    """Run every stage of a recipe that is not done yet, and write the bundle and the report.

    Args:
        recipe: a recipe or its file.
        output: the folder of the store, the bundle and the report; ``out`` beside the recipe by default.
        progress: told what goes on; silent by default.
        command: what the user typed, for the report.

    Raises:
        CompressError, CalibrationError, RuntimesError: as the stages do; what was finished stays.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise CompressError(
            f"{recipe.path}: a recipe runs in one process, and torchrun started {processes}: run it without torchrun, "
            "or distil alone in several (torchrun -m compress distill), and let the recipe begin with what that made")
    output = output or recipe.path.parent / "out"
    targets = [get_target(name) for name in recipe.targets]
    progress = progress or Progress(quiet=True)
    recipe = _suited(recipe, targets, progress)
    get_metric(recipe.metric)  # an unknown name is refused before any work, as is a file the bundle would replace
    refuse_strangers(output / "bundle")
    with Store(output / "store") as store:
        filing = Filing(recipe=recipe, store=store, progress=progress)
        original = load_model(filing)
        _try_metric(filing, original.load())
        shipped, quantized, settled = original, dict[str, ModelFile](), dict[str, str]()
        if recipe.budget.speedup is not None:
            shipped, quantized, settled = _searched(filing, original, targets, output, command)
        for stage in recipe.on_float if recipe.budget.speedup is None else ():
            shipped = transform(filing, stage, shipped, original)
        for scheme in dict.fromkeys(target.scheme for target in targets) if recipe.on_int8 else ():
            if settled.get(scheme) == "fp32":
                continue                    # int8 is slower there, or loses too much
            if scheme not in quantized:
                quantized[scheme] = shipped
                for stage in recipe.on_int8:
                    quantized[scheme] = transform(filing, stage, quantized[scheme], original, scheme)
            measure_sensitivity(filing, quantized[scheme], scheme)
            if scheme not in settled or recipe.has("budget"):
                quantized[scheme] = keep_budget(filing, quantized[scheme], original, scheme, targets)
        bundle = None
        if recipe.has("export"):
            builds = build_engines(filing, targets, original, shipped, quantized)
            measure_parity(filing, builds, shipped, quantized)
            for stage in recipe.stages:
                if stage.name == "bench":
                    measure_speed(filing, builds, shipped, dataclasses.replace(stage.config, max_drop=recipe.max_drop))
            bundle = write_bundle(filing, builds, shipped, output)
        if recipe.comparisons is not None:
            compare(filing, recipe.comparisons, shipped)
        record = record_of(filing, original, output, bundle, command)
        paths = report(record, output)
    return RunResult(
        output=output, report=paths.html, bundle=bundle, record=record, done=filing.done, reused=filing.reused,
        losses=_losses(record),
    )  # fmt: skip


def _try_metric(filing: Filing, model: Model) -> None:
    """Refuse a metric that reads texts where there are none, or other outputs or targets, before hours are spent.

    A validation set without targets is for a stage that needs them to refuse.
    """
    from compress.ladder import torch_runner

    metric, validation = get_metric(filing.recipe.metric, described(model)), filing.data("validation", model)
    if validation.labels or validation.targets() is not None:
        try_metric(torch_runner(model), validation, metric)


def _suited(recipe: Recipe, targets: Sequence[Target], progress: Progress) -> Recipe:
    """The recipe whose prune stage suits all targets, where it names none.

    Widths stay multiples of what all their rows say, unless it says how to round. A goal in latency is measured on the
    first that can be timed from here.

    Raises:
        CompressError: if sparse weights are asked for and no target has kernels for them, or one without them drives
            a goal in latency, or a goal in latency is asked for and no target can be timed.
    """
    stages = []
    for stage in recipe.stages:
        if stage.name == "prune" and stage.config.target is None:
            given: dict[str, Any] = {}
            if stage.config.round_to is None and stage.config.round_near is None:
                given["round_near"] = math.lcm(*(target.multiple for target in targets))
            if stage.config.sparsity is not None:
                timed = stage.config.by_latency or recipe.budget.speedup is not None
                _check_sparsity(recipe, targets, timed_of(targets)[0] if timed else (), progress)
            if stage.config.by_latency:
                given["target"] = _timed_on(targets, progress)
            stage = dataclasses.replace(stage, config=dataclasses.replace(stage.config, **given))
        stages.append(stage)
    return dataclasses.replace(recipe, stages=tuple(stages))


def _timed_on(targets: Sequence[Target], progress: Progress) -> str:
    first, *others = timed_of(targets)[0]
    if others:
        progress.say(f"prune: its goal in latency is measured on {first.name} alone, the first of the targets that can "
                     "be timed from here; give the prune stage a target for another")
    return first.name


def _check_sparsity(recipe: Recipe, targets: Sequence[Target], timed: Sequence[Target], progress: Progress) -> None:
    """``timed`` are those that a goal in latency is measured on."""
    dense = [target for target in targets if target.backend not in SPARSE_BACKENDS]
    told = ", ".join(f"{target.name!r} runs on {target.backend}" for target in dense)
    if len(dense) == len(targets):
        raise CompressError(f"{recipe.path}: prune: sparsity is of use on TensorRT alone, and {told}: it would cost "
                            "accuracy and gain nothing: leave it out")
    drives = next((target.name for target in timed if target in dense), None)
    if drives is not None:
        raise CompressError(f"{recipe.path}: prune: sparsity is of use on TensorRT alone, and the goal in latency "
                            f"would be measured on {drives!r}: give a goal such as macs, or leave sparsity out")
    if dense:
        progress.say(f"prune: sparsity gains nothing on all targets: {told}, whose engines get the same weights")


def _searched(
    filing: Filing, original: ModelFile, targets: Sequence[Target], output: Path, command: str | None
) -> tuple[ModelFile, dict[str, ModelFile], dict[str, str]]:
    """The models of the round that a search keeps, and by scheme the precision that ships, where that is settled.

    On an interruption the report of what there is is written.
    """
    try:
        best = search(filing, original, targets, output)
    except KeyboardInterrupt:
        if "search" in filing.sections:
            report(record_of(filing, original, output, None, command), output)
            filing.progress.say(f"interrupted: the best so far is in {output / 'best'}; the same command goes on")
        raise
    assert best.made is not None
    settled: dict[str, str] = {
        target.scheme: best.ships[target.name] for target in targets if target.name in best.ships}
    quantized = {scheme: model for scheme, model in best.made.quantized.items() if settled[scheme] == "int8"}
    return best.made.shipped, quantized, settled


def _losses(record: Mapping[str, Any]) -> tuple[str, ...]:
    if "bench" not in record:
        return ()
    bench = BenchRecord.from_json(record["bench"])
    return (*bench.losses, *bench.failures)
