"""`compress bench`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from compress.bench import BenchConfig
from compress.commands.shared import EXISTING, common, show
from compress.options import options_of
from compress.progress import Progress


@click.command()
@click.argument("bundle", type=EXISTING)
@click.option("--target", "targets", multiple=True, default=("local",), show_default=True,
              help="A target to measure on; may be given several times.")  # fmt: skip
@click.option("--emulate", is_flag=True, help="Emulate the targets that are other machines: accuracy, and no time.")
@click.option("--data", type=EXISTING, help="The validation set; without it accuracy is not measured.")
@click.option("--metric", default="accuracy", show_default=True, help="A metric's name, or package.module:function.")
@click.option("--controls", type=EXISTING, help="The float controls; default: the folder controls beside BUNDLE.")
@click.option("--output", type=EXISTING, help="The record's file; default: bench.json beside BUNDLE.")
@options_of(BenchConfig)
@common
def bench(
    bundle: Path, targets: tuple[str, ...], emulate: bool, data: Path | None, metric: str, controls: Path | None,
    output: Path | None, config: BenchConfig, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Measure latency and accuracy of BUNDLE's engines, each on its target, beside their float controls.

    The record is written after every process. Exit code 1: a device could not be reached or went away, or an engine
    that ships failed; the rows say why.
    """
    from compress.bench import table
    from compress.bench.bundled import bench_bundle
    from compress.targets import get_target

    progress = Progress(quiet=quiet)
    with progress.stage("bench"):
        record = bench_bundle(
            bundle,
            [get_target(name) for name in targets],
            data=data,
            metric=metric,
            controls=controls,
            config=config,
            emulate=emulate,
            output=output,
            progress=progress.step,
        )
    show(record.to_json(), as_json, lambda: table(record))
    if not record.complete or record.failures:
        click.echo(f"compress: {'; '.join((*record.losses, *record.failures))}; the rest was measured", err=True)
        sys.exit(1)
