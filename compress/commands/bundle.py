"""`compress bundle`."""

from __future__ import annotations

from pathlib import Path

import click

from compress.commands.shared import EXISTING, common, model_options, read_data, read_model, written
from compress.progress import Progress
from runtimes.spec import largest_batch


@click.command("bundle")
@click.argument("model", type=EXISTING)
@click.option(
    "--target", "targets", multiple=True, default=["local"], show_default=True, help="May be given several times."
)
@click.option("--data", type=EXISTING, required=True, help="Real samples, for the golden feed.")
@click.option("--output", "-o", type=EXISTING, help="The bundle's folder; default: MODEL.bundle.")
@model_options
@common
def bundle_(
    model: Path, targets: tuple[str, ...], data: Path, output: Path | None, factory: str | None, trust_pickle: bool,
    example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Build MODEL's engines and write the bundle that a device app opens."""
    import tempfile

    import compress
    from compress.targets import get_target

    loaded = read_model(model, factory, trust_pickle, example)
    path = output or model.with_suffix(".bundle")
    with Progress(quiet=quiet).stage("bundle"), tempfile.TemporaryDirectory(prefix="compress-") as folder:
        rows = [get_target(target) for target in targets]
        engines = {row.name: compress.export(loaded, row, Path(folder) / row.name) for row in rows}
        made = compress.bundle(loaded, engines, read_data(data, loaded).first(largest_batch(loaded.inputs, 4)), path)
    written(path, {"digest": made.digest, "targets": list(engines)}, as_json, f"bundle for {', '.join(engines)}")
