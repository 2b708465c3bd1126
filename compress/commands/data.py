"""`compress data`: a data set from pictures, sounds and texts."""

from __future__ import annotations

from pathlib import Path

import click

from calibration.converting import ConvertConfig
from compress.commands.shared import EXISTING, common, model_options, read_model, written
from compress.options import options_of
from compress.progress import Progress

SHOWN = 10      # samples that were left out, on the terminal; --json has them all


@click.command()
@click.argument("source", type=EXISTING)
@click.option("--model", type=EXISTING, required=True, help="The model that the data is for.")
@click.option("--output", "-o", type=EXISTING, required=True, help="The data set's folder.")
@click.option("--processing", type=EXISTING, help="A JSON file, in place of the model's own processing.")
@options_of(ConvertConfig)
@model_options
@common
def data(
    source: Path, model: Path, output: Path, processing: Path | None, config: ConvertConfig, factory: str | None,
    trust_pickle: bool, example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Turn SOURCE, a folder or file of raw samples, into a data set by the model's own processing."""
    from compress.data import make_data

    loaded = read_model(model, factory, trust_pickle, example)
    progress = Progress(quiet=quiet)
    with progress.stage("data"):
        result = make_data(source, loaded, output, config, processing=processing)
    for line in result.skipped[:SHOWN]:
        progress.say(f"left out: {line}")
    if len(result.skipped) > SHOWN:
        progress.say(f"and {len(result.skipped) - SHOWN} more")
    left_out = f", {len(result.skipped)} left out" if result.skipped else ""
    written(output, result.to_json(), as_json, f"{result.samples} samples ({result.form}){left_out}")
