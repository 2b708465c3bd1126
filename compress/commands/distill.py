"""The command that distils: a function of the same name, in one process or in several."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from compress.commands.shared import EXISTING, common, read_data, writable, written
from compress.distill import DistillConfig
from compress.options import options_of
from compress.progress import Progress


@click.command()
@click.argument("model", type=EXISTING)
@click.option("--teacher", type=EXISTING, required=True, help="The model to learn from: the original, or any other "
              "with the same inputs and outputs.")
@click.option("--data", type=EXISTING, required=True, help="The training set; labels are not needed.")
@click.option("--validation", type=EXISTING, help="A labelled set: the best epoch on it is kept.")
@click.option("--metric", default="accuracy", show_default=True, help="Its metric.")
@click.option("--output", "-o", type=EXISTING, help="The model file to write; default: MODEL.distilled.pt.")
@click.option("--scratch", type=EXISTING, help="A folder for checkpoints: a run that was killed goes on from there "
              "when the same command is given again. Default: OUTPUT.scratch, removed at the end.")
@options_of(DistillConfig)
@common
def distill(
    model: Path, teacher: Path, data: Path, validation: Path | None, metric: str, output: Path | None,
    scratch: Path | None, config: DistillConfig, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train MODEL towards its teacher; quantization-aware where MODEL is quantized.

    In several processes: torchrun --nproc-per-node 2 -m compress distill MODEL ...
    """
    import compress
    from compress.described import described
    from compress.distill.workers import first_of_torchrun
    from compress.loading import load
    from compress.metrics import get_metric
    from compress.modelfile import write_model

    student, first = load(model), first_of_torchrun()
    path = writable(output or model.with_suffix(".distilled.pt"))
    progress = Progress(quiet=quiet or not first)
    kept = scratch or path.with_name(f"{path.name}.scratch")
    try:
        with progress.stage("distill"):
            result = compress.distill(
                student, load(teacher), read_data(data, student),
                validation=None if validation is None else read_data(validation, student),
                metric=None if validation is None else get_metric(metric, described(student)), config=config,
                scratch=kept, progress=progress.step,
            )  # fmt: skip
    except KeyboardInterrupt:
        progress.say(f"the same command goes on from the last checkpoint, in {kept}")
        raise
    if not first:
        return
    write_model(result.model, path)
    if scratch is None:
        shutil.rmtree(kept, ignore_errors=True)
    record = result.to_json()
    gained = f"{metric} {record['before']:.4f} -> {record['after']:.4f}" if record.get("after") is not None else "done"
    written(path, record, as_json, gained)
