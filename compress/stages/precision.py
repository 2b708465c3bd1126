"""The stages that look at int8 part by part: the budget, which leaves some in float, and the sensitivity of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.described import described
from compress.metrics import get_metric
from compress.quantize.budget import BudgetConfig
from compress.stages.engines import row_of
from compress.stages.filing import Filing
from compress.stages.measurements import machine_name
from compress.stages.models import ModelFile
from compress.targets import Target


def keep_budget(
    filing: Filing, model: ModelFile, original: ModelFile, scheme: str, targets: Sequence[Target]
) -> ModelFile:
    """The quantized ``model`` with as much in float as keeps the recipe's ``max_drop``, counted from ``original``.

    A recipe without a stage ``budget`` has one that is done where it is needed, and where it can be told: on a
    validation set with targets of the metric.
    """
    from compress.modelfile import write_model
    from compress.quantize.budget import budget

    config = filing.recipe.config("budget") or BudgetConfig(when="needed")
    config = dataclasses.replace(config, max_drop=filing.recipe.max_drop)
    validation, metric = filing.data("validation", model.load()), filing.recipe.metric
    found = get_metric(metric, described(model.load()))
    if config.when == "never":
        return model
    if not filing.recipe.has("budget") and validation.targets(found.output) is None:
        filing.progress.say(f"the budget is not looked at: data set {validation.name!r} has no targets")
        return model
    own = [target for target in targets if target.scheme == scheme]
    other = filing.recipe.has("prune") or filing.recipe.has("distill")      # else its own float is the original

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        result = budget(
            model.load(), validation, metric=found, targets=own, config=config,
            reference=original.load() if other else None, scratch=scratch, progress=filing.progress.step,
        )  # fmt: skip
        if not result.complete:
            filing.progress.say(result.sentence)
            raise KeyboardInterrupt
        write_model(result.model, into / "model.pt")
        return result.to_json()

    rows = {target.name: row_of(target) for target in own}
    settings = {**dataclasses.asdict(config), "metric": metric, "targets": rows, "machine": machine_name()}
    inputs = {"model": model.digest, "original": original.digest, "validation": validation.digest}
    artifact = filing.stage("budget", settings, inputs, build, scheme=scheme)
    return ModelFile(path=artifact.path / "model.pt", digest=artifact.digest)


def measure_sensitivity(filing: Filing, model: ModelFile, scheme: str) -> None:
    """What each part of the quantized ``model`` costs, where the recipe asks for it."""
    from compress.quantize.sensitivity import sensitivity

    config = filing.recipe.config("sensitivity")
    if config is None:
        return
    validation, metric = filing.data("validation", model.load()), filing.recipe.metric

    def build(into: Path, scratch: Path) -> dict[str, Any]:
        found = get_metric(metric, described(model.load()))
        result = sensitivity(
            model.load(), validation, metric=found if validation.targets(found.output) is not None else None,
            config=config, scratch=scratch, progress=filing.progress.step,
        )  # fmt: skip
        if not result.complete:
            raise KeyboardInterrupt     # what was found is kept for the next run
        return result.to_json()

    settings = {**dataclasses.asdict(config), "metric": metric}
    inputs = {"model": model.digest, "validation": validation.digest}
    filing.stage("sensitivity", settings, inputs, build, scheme=scheme)
