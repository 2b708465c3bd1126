"""The commands that look at int8 part by part: what each costs, and what stays in float under a budget."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compress.commands.shared import EXISTING, common, model_options, read_data, read_model, read_sets, show, writable
from compress.errors import CompressError
from compress.options import options_of
from compress.progress import Progress
from compress.quantize.budget import BudgetConfig
from compress.quantize.sensitivity import SensitivityConfig

if TYPE_CHECKING:
    from compress.model import Model
    from compress.targets import Target

INTERRUPTED = 130


@click.command()
@click.argument("model", type=EXISTING)
@click.option("--data", type=EXISTING, required=True, help="Samples to look at, labelled where there is a metric.")
@click.option("--metric", help="Whose drop is told; without one, only the outputs' signal over noise.")
@click.option("--calibration", type=EXISTING, help="Quantize MODEL first, with this calibration set.")
@click.option("--target", default="local", show_default=True, help="With --calibration: its row names the scheme.")
@options_of(SensitivityConfig)
@model_options
@common
def sensitivity(
    model: Path, data: Path, metric: str | None, calibration: Path | None, target: str, config: SensitivityConfig,
    factory: str | None, trust_pickle: bool, example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Show what each component, modality and layer of MODEL costs alone in int8, and gives back alone in float.

    Interrupted with Ctrl-C, it shows what was found so far; the exit code is 130.
    """
    import compress
    from compress.described import described
    from compress.metrics import get_metric

    progress = Progress(quiet=quiet)
    loaded = _quantized(read_model(model, factory, trust_pickle, example), calibration, target, progress)
    with progress.stage("sensitivity"):
        result = compress.sensitivity(
            loaded, read_data(data, loaded), config=config, progress=progress.step,
            metric=None if metric is None else get_metric(metric, described(loaded)),
        )  # fmt: skip
    record = result.to_json()
    show(record, as_json, lambda: sensitivity_view(record))
    if not result.complete:
        sys.exit(INTERRUPTED)


@click.command()
@click.argument("model", type=EXISTING)
@click.option("--validation", type=EXISTING, required=True, help="The labelled set that the drop is measured on.")
@click.option("--metric", default="accuracy", show_default=True, help="Its metric.")
@click.option("--target", "targets", multiple=True, default=("local",), show_default=True,
              help="What it will run on; may be given several times, for rows of one scheme.")  # fmt: skip
@click.option("--reference", type=EXISTING, help="The model the drop is counted from; default: MODEL in float.")
@click.option("--output", "-o", type=EXISTING, help="The model file to write; default: MODEL.mixed.pt.")
@options_of(BudgetConfig)
@common
def budget(
    model: Path, validation: Path, metric: str, targets: tuple[str, ...], reference: Path | None, output: Path | None,
    config: BudgetConfig, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Leave in float what costs the quantized MODEL more than --max-drop, and what is slower in int8.

    Interrupted with Ctrl-C, it writes the best so far; the exit code is 130.
    """
    from compress.loading import load
    from compress.targets import get_target

    loaded = load(model)
    keep_to(
        config, loaded, validation, metric, [get_target(target) for target in targets],
        writable(output or model.with_suffix(".mixed.pt")), {}, Progress(quiet=quiet), as_json,
        reference=None if reference is None else load(reference),
    )  # fmt: skip


def keep_to(
    config: BudgetConfig, model: Model, validation: Path, metric: str, targets: Sequence[Target], path: Path,
    record: dict[str, Any], progress: Progress, as_json: bool, *, reference: Model | None = None,
) -> None:  # fmt: skip
    """Search, write the best to ``path``, and show the trade-off; ``record`` is what quantization told before."""
    import compress
    from compress.described import described
    from compress.metrics import get_metric
    from compress.modelfile import write_model
    from compress.report.floats import floats

    with progress.stage("budget"):
        result = compress.budget(
            model, read_data(validation, model), metric=get_metric(metric, described(model)), targets=targets,
            config=config, reference=reference, progress=progress.step,
        )  # fmt: skip
    write_model(result.model, path)
    found = result.to_json()
    whole = {"output": str(path), **record, "budget": found}
    told = "\n".join([f"{path}: {result.sentence}", *floats(record.get("operators", ()))])
    show(whole, as_json, lambda: budget_view(found, told))
    if not result.complete:
        sys.exit(INTERRUPTED)


def sensitivity_view(record: dict[str, Any]) -> Any:
    """The tables of a record of :func:`compress.sensitivity`."""
    import msgspec
    from rich.console import Group

    from compress.report.precision import change, decibels, sensitivity_tables
    from compress.report.summaries import SensitivitySummary

    found = msgspec.convert(record, SensitivitySummary)
    whole = f"all in int8: {decibels(found.everything)}"
    if found.metric is not None:
        whole += f", {found.metric} {change(found.everything, found.metric)}"
    return Group(*sensitivity_tables(found), f"{whole}; {found.samples} samples")


def curves_view(record: dict[str, Any], sentence: str) -> Any:
    """The tables of the sensitivity in a record of :func:`compress.prune`, where it has one, and the sentence."""
    if "sensitivity" not in record:
        return sentence
    import msgspec
    from rich.console import Group

    from compress.report.pruning import curve_tables
    from compress.report.summaries import PruneCurves

    return Group(*curve_tables(msgspec.convert(record["sensitivity"], PruneCurves)), sentence)


def budget_view(record: dict[str, Any], sentence: str) -> Any:
    """The trade-off of a record of :func:`compress.budget`."""
    import msgspec
    from rich.console import Group

    from compress.report.precision import budget_table
    from compress.report.summaries import BudgetSummary

    found = msgspec.convert(record, BudgetSummary)
    untimed = [f"{target} was not timed: {why}" for target, why in found.untimed.items()]
    return Group(budget_table(found), *untimed, sentence)


def _quantized(model: Model, calibration: Path | None, target: str, progress: Progress) -> Model:
    if calibration is None:
        return model
    if model.quantization is not None:
        raise CompressError(f"model {model.name!r} is quantized already: leave --calibration out")
    import compress
    from compress.targets import get_target

    row = get_target(target)
    with progress.stage("quantize", row.scheme):
        return compress.quantize(
            model, read_sets(calibration, model), scheme=row.scheme, progress=progress.step
        ).model
