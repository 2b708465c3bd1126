"""`compress bench`."""

from __future__ import annotations

from pathlib import Path

import click

from compress.bench import BenchConfig
from compress.commands.shared import EXISTING, common, show
from compress.options import options_of
from compress.progress import Progress


@click.command()
@click.argument("bundle", type=EXISTING)
@click.option("--target", default="local", show_default=True, help="The target to measure on.")
@click.option("--data", type=EXISTING, help="The validation set; without it accuracy is not measured.")
@click.option("--metric", default="accuracy", show_default=True, help="A metric's name, or package.module:function.")
@click.option("--controls", type=EXISTING, help="The float controls; default: the folder controls beside BUNDLE.")
@options_of(BenchConfig)
@common
def bench(
    bundle: Path, target: str, data: Path | None, metric: str, controls: Path | None, config: BenchConfig, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Measure latency and accuracy of BUNDLE's engine beside its float controls."""
    from compress.bench import table
    from compress.bench.bundled import bench_bundle
    from compress.targets import get_target

    progress = Progress(quiet=quiet)
    with progress.stage("bench"):
        record = bench_bundle(
            bundle,
            get_target(target),
            data=data,
            metric=metric,
            controls=controls,
            config=config,
            progress=progress.step,
        )
    show(record.to_json(), as_json, lambda: table(record))
