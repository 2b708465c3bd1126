"""The commands of the whole chain: the demo, a recipe, its report."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from compress.commands.shared import EXISTING, common, show
from compress.progress import Progress
from compress.zoo import DEMO, MODELS


@click.command()
@click.argument("folder", type=EXISTING)
@click.option("--model", default=DEMO, show_default=True, help=f"Which of the models to train: {', '.join(MODELS)}.")
@click.option("--quick", is_flag=True, help="Train for seconds: to see the chain, not its figures.")
@click.option("--seed", default=0, show_default=True, help="Of the weights and of training.")
@common
def demo(folder: Path, model: str, quick: bool, seed: int, quiet: bool, as_json: bool) -> None:
    """Train the demo model and write it, its data and a recipe into FOLDER."""
    from compress.zoo import make

    progress = Progress(quiet=quiet)
    with progress.stage("train the demo"):
        record = make(model, folder, seed=seed, quick=quick, progress=progress.step)
    show(record.to_json(), as_json, lambda: record.describe())


@click.command()
@click.argument("recipe", type=EXISTING)
@click.option("--output", "-o", type=EXISTING, help="Folder for the results; default: out beside the recipe.")
@click.option("--max-drop", type=float, help="In place of the recipe's max_drop: the most that may be lost, in the "
              "metric's own unit.")
@click.option("--speedup", help="In place of its speedup: prune in rounds until the engine is so many times as fast as "
              "the original's in fp32; 'most' is as fast as --max-drop allows.")
@click.option("--rounds", type=int, help="In place of its rounds: the most rounds of pruning that --speedup takes.")
@common
def run(
    recipe: Path, output: Path | None, max_drop: float | None, speedup: str | None, rounds: int | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Run every stage of RECIPE that is not done yet; write the bundle and the report.

    With a speed-up it prunes, distils and quantizes in rounds, and keeps the one that the budget says; interrupted, the
    best so far is in the folder `best` of the results, and the same command goes on.

    Exit code 1: a device could not be reached or went away, or an engine that ships failed in the bench. The report
    says so, and the same command measures again.
    """
    import compress.pipeline
    from compress.recipe import read_recipe
    from compress.report import show as print_report

    progress = Progress(quiet=quiet)
    given = {"max_drop": max_drop, "speedup": None if speedup is None else _number(speedup), "rounds": rounds}
    instead = {name: value for name, value in given.items() if value is not None}
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in instead.items())
    result = compress.pipeline.run(
        read_recipe(recipe, instead), output=output, progress=progress, command=f"compress run {recipe}{flags}")
    if as_json:
        click.echo(json.dumps(result.record, indent=1, allow_nan=False))
    else:
        print_report(result.record)
    progress.say(f"{result.done} stages done, {result.reused} reused; report: {result.report}")
    if result.losses:
        lost = "; ".join(result.losses)
        click.echo(f"compress: {lost}; the rest was measured, and the same command measures again", err=True)
        sys.exit(1)


def _number(text: str) -> float | str:
    """A speed-up as a recipe has it; what is none is told by the recipe's own check."""
    try:
        return float(text)
    except ValueError:
        return text


@click.command()
@click.argument("record", type=EXISTING)
@click.option("--output", "-o", type=EXISTING, help="Folder for report.html; default: beside RECORD.")
@common
def report(record: Path, output: Path | None, quiet: bool, as_json: bool) -> None:
    """Write report.html from RECORD, a report.json, and print its tables."""
    from compress.report import read_record
    from compress.report import report as write
    from compress.report import show as print_report

    content = read_record(record)
    write(content, output or (record if record.is_dir() else record.parent))
    if as_json:
        click.echo(json.dumps(content, indent=1, allow_nan=False))
    else:
        print_report(content)
