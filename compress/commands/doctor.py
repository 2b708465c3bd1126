"""``compress doctor``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from compress.commands.shared import EXISTING, common, model_options, show
from compress.progress import Progress


@click.command()
@click.argument("model", type=EXISTING)
@click.option(
    "--target", "targets", multiple=True, help="What it is to run on; several may be named. Default: this machine."
)
@click.option("--data", type=EXISTING, help="A data set: its first samples are looked at beside the example.")
@model_options
@common
def doctor(
    model: Path, targets: tuple[str, ...], data: Path | None, factory: str | None, trust_pickle: bool,
    example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Say what will work with MODEL and what will not; exit code 1 if something blocks it."""
    import compress
    from compress.doctor.table import table

    feed = None
    if example is not None:
        from runtimes.arrays import read_arrays

        feed = read_arrays(example)
    progress = Progress(quiet=quiet)
    with progress.stage("doctor"):
        diagnosis = compress.doctor(
            model, targets, example=feed, factory=factory, trust_pickle=trust_pickle, data=data, progress=progress.step
        )
    show(diagnosis.to_json(), as_json, lambda: table(diagnosis))
    if diagnosis.blocked:
        sys.exit(1)
