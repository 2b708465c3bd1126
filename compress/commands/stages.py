"""The commands of single stages, each a function of the same name."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from compress.commands.shared import (
    EXISTING,
    common,
    model_options,
    read_data,
    read_model,
    read_sets,
    show,
    writable,
    written,
)
from compress.errors import CompressError
from compress.options import options_of
from compress.progress import Progress
from compress.prune import PruneConfig
from compress.quantize import QuantizeConfig


@click.command()
@click.argument("model", type=EXISTING)
@model_options
@common
def inspect(
    model: Path, factory: str | None, trust_pickle: bool, example: Path | None, quiet: bool, as_json: bool
) -> None:
    """Show what MODEL is made of, and what can be quantized and pruned, or why not."""
    from compress.inspection import inspect as look
    from compress.inspection import table

    found = look(read_model(model, factory, trust_pickle, example), factory=factory)
    show(found.to_json(), as_json, lambda: table(found))


@click.command()
@click.argument("model", type=EXISTING)
@click.option(
    "--data", type=EXISTING, required=True, help="Samples to rank and check with, such as the calibration set."
)
@click.option("--output", "-o", type=EXISTING, help="The model file to write; default: MODEL.pruned.pt.")
@click.option(
    "--tables", type=EXISTING, help="A folder to keep what was timed for a goal in latency: another goal on that "
    "target needs no other engines for it."
)
@click.option(
    "--corpus", type=EXISTING, help="With --vocabulary: a text file, or a folder of .txt, whose tokens are used too."
)
@click.option("--validation", type=EXISTING, help="With --sensitivity: the labelled set that --metric is told on.")
@click.option("--metric", help="With --validation: whose drop is told; without one the outputs' signal over noise.")
@options_of(PruneConfig)
@model_options
@common
def prune(
    model: Path, data: Path, output: Path | None, tables: Path | None, corpus: Path | None, validation: Path | None,
    metric: str | None, config: PruneConfig, factory: str | None, trust_pickle: bool, example: Path | None, quiet: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Remove the least important channels, attention heads and hidden units of MODEL, and tokens that no data uses."""
    import compress
    from compress.commands.precision import curves_view
    from compress.described import described
    from compress.metrics import get_metric
    from compress.modelfile import write_model

    if (validation is None) != (metric is None) or (metric is not None and not config.sensitivity):
        raise CompressError("prune: --validation and --metric go together, with --sensitivity")
    loaded = read_model(model, factory, trust_pickle, example)
    path = writable(output or model.with_suffix(".pruned.pt"))
    progress = Progress(quiet=quiet)
    with progress.stage("prune"):
        result = compress.prune(
            loaded, read_data(data, loaded), config, factory=factory, tables=tables, corpus=corpus,
            validation=None if validation is None else read_data(validation, loaded),
            metric=None if metric is None else get_metric(metric, described(loaded)), progress=progress.step,
        )
    write_model(result.model, path)
    share = result.macs_after / result.macs_before
    told = f"{share:.1%} of the MACs are left ({result.macs_after:,} a sample)"
    if (timed := result.timed) is not None:
        told += (f"; {timed.original_ms:.3g} -> {timed.pruned_ms:.3g} ms on {timed.target}, "
                 f"{timed.speedup:.2f} times as fast")
    if result.groups and result.gave_nothing:
        told += f"\nas large as before: {', '.join(result.gave_nothing)}; --json says why"
    if result.finer:
        told += "\nno multiple of what the target's kernels like: " + ", ".join(
            f"{name} (of {multiple})" for name, multiple in result.finer.items())
    for one in result.vocabularies:
        told += (f"\n{one.name}: {one.after:,} of {one.before:,} rows are left, {one.covered:.2%} of the data's tokens"
                 f"{'; as many outputs of ' + ', '.join(one.heads) if one.heads else ''}")
    for merge in result.merged:
        told += (f"\n{merge.name}: {merge.before} tokens in the first of {merge.blocks} blocks, {merge.after} at last"
                 + ("" if merge.sqnr_db is None else f"; {merge.sqnr_db:.1f} dB of signal over noise in the outputs"))
    record = {"output": str(path), **result.to_json()}
    show(record, as_json, lambda: curves_view(record, f"{path}: {told}"))


@click.command()
@click.argument("model", type=EXISTING)
@click.option(
    "--calibration", type=EXISTING, required=True, help="The calibration set: a folder of .npz by input name; for "
    "several graphs with the inputs of all, or a folder GRAPH in it for each."
)
@click.option("--target", default="local", show_default=True, help="What it will run on; its row names the scheme.")
@click.option("--output", "-o", type=EXISTING, help="The file to write; default: MODEL.int8.pt, of an ONNX .onnx.")
@click.option(
    "--statistics", type=EXISTING, help="A folder to keep what the samples showed: a killed run goes on, and other "
    "ranges need no other pass over the samples."
)
@click.option(
    "--max-drop", type=float, help="Accuracy budget, in the metric's own unit: leave in float what costs more than "
    "that, and what is slower in int8. Takes --validation."
)
@click.option("--validation", type=EXISTING, help="The labelled set that --max-drop is measured on.")
@click.option("--metric", default="accuracy", show_default=True, help="Its metric.")
@options_of(QuantizeConfig)
@model_options
@common
def quantize(
    model: Path, calibration: Path, target: str, output: Path | None, statistics: Path | None, max_drop: float | None,
    validation: Path | None, metric: str, config: QuantizeConfig, factory: str | None, trust_pickle: bool,
    example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize MODEL to int8 with a calibration set: all of it, or as much as keeps an accuracy budget.

    The search for a budget that is interrupted with Ctrl-C writes the best so far; the exit code is 130.
    """
    import compress
    from compress.commands.precision import keep_to
    from compress.metrics import get_metric
    from compress.modelfile import write_model
    from compress.onnxmodel import OnnxModel, needs_module, write_onnx_model
    from compress.quantize.budget import BudgetConfig
    from compress.report.floats import floats
    from compress.targets import get_target

    if (max_drop is None) != (validation is None):
        raise CompressError("--max-drop and --validation go together: give both, or neither")
    within = None if max_drop is None else BudgetConfig(max_drop=max_drop)
    row = get_target(target)
    loaded = read_model(model, factory, trust_pickle, example)
    if within is not None:
        get_metric(metric)      # an unknown one is refused before any work
        needs_module(loaded, "--max-drop", "parts of it are switched between int8 and float to see what each costs")
    path = writable(output or model.with_suffix(".int8.onnx" if isinstance(loaded, OnnxModel) else ".int8.pt"))
    progress = Progress(quiet=quiet)
    with progress.stage("quantize", row.scheme):
        result = compress.quantize(
            loaded, read_sets(calibration, loaded), scheme=row.scheme, config=config, statistics=statistics,
            progress=progress.step,
        )
    if within is not None and validation is not None:
        keep_to(within, result.model, validation, metric, [row], path, result.to_json(), progress, as_json)
        return
    if isinstance(result.model, OnnxModel):
        write_onnx_model(result.model, path)
    else:
        write_model(result.model, path)
    record = result.to_json()
    alone = f", {record['weights']} with their weights alone" if record["weights"] else ""
    sentence = f"{record['int8']} operators in int8{alone}, {record['float']} in float, scheme {row.scheme}"
    found = floats(record["operators"])
    found += [f"calibration: {finding['text']}" for finding in record["coverage"].get("findings", ())]
    written(path, record, as_json, "\n".join([f"{sentence}, {record['samples']} calibration samples", *found]))


@click.command()
@click.argument("model", type=EXISTING)
@click.option("--target", default="local", show_default=True, help="The target to build for.")
@click.option("--graph", help="Which graph, where MODEL has several.")
@click.option("--output", "-o", type=EXISTING, help="The engine's folder; default: MODEL.TARGET or MODEL.GRAPH.TARGET.")
@model_options
@common
def export(
    model: Path, target: str, graph: str | None, output: Path | None, factory: str | None, trust_pickle: bool,
    example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Build the engine of MODEL for a target."""
    import compress
    from compress.targets import get_target

    row = get_target(target)
    loaded = read_model(model, factory, trust_pickle, example)
    path = output or model.with_suffix(f".{row.name}" if graph is None else f".{graph}.{row.name}")
    with Progress(quiet=quiet).stage("export", row.name):
        engine = compress.export(loaded, row, path, graph=graph)
    record = {"target": row.name, "precision": engine.precision, "digest": engine.digest, "state": engine.state}
    written(
        path,
        {**record, "notes": list(engine.notes)},
        as_json,
        f"{engine.precision} {engine.backend} engine, {engine.state}",
    )


@click.command()
@click.argument("model", type=EXISTING)
@click.option("--data", type=EXISTING, required=True, help="Samples to compare on.")
@click.option("--target", default="local", show_default=True, help="The target whose engine is compared.")
@click.option("--graph", help="Compare this graph alone, where MODEL has several.")
@click.option("--samples", default=64, show_default=True, help="How many samples.")
@model_options
@common
def parity(
    model: Path, data: Path, target: str, graph: str | None, samples: int, factory: str | None, trust_pickle: bool,
    example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare MODEL in torch, in ONNX and as the target's engine on the same feeds; exit code 1 if they disagree."""
    from compress.export import only
    from compress.ladder import check
    from compress.parity import table
    from compress.targets import get_target

    loaded = read_model(model, factory, trust_pickle, example)
    with Progress(quiet=quiet).stage("parity"):
        sets = read_sets(data, loaded)
        if isinstance(sets, dict):      # of each graph its own, which no chain joins
            sets, loaded = sets[next(iter(only(loaded, graph).graphs))], only(loaded, graph)
        result = check(loaded, get_target(target), sets.take(samples), graph=graph)
    show(result.to_json(), as_json, lambda: table(result))
    if not result.passed:
        sys.exit(1)


@click.command("eval")
@click.argument("model", type=EXISTING)
@click.option("--data", type=EXISTING, required=True, help="A labelled set.")
@click.option("--metric", default="accuracy", show_default=True, help="A metric's name, or package.module:function.")
@click.option("--target", help="For a bundle: whose engine; default: the first that runs here.")
@model_options
@common
def eval_(
    model: Path, data: Path, metric: str, target: str | None, factory: str | None, trust_pickle: bool,
    example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Score MODEL, a model file or a bundle, on a labelled set."""
    import runtimes
    from calibration import open_set
    from compress.evaluate import evaluate
    from compress.metrics import get_metric
    from runtimes import read_bundle

    progress = Progress(quiet=quiet)
    with progress.stage("eval"):
        if model.is_dir():
            with runtimes.load(model, target=target) as session:
                samples, found = open_set(data, session.inputs), get_metric(metric, read_bundle(model))
                result = evaluate(session.run, samples, found, progress=progress.step)
        else:
            from compress.described import described
            from compress.ladder import torch_runner

            loaded = read_model(model, factory, trust_pickle, example)
            found = get_metric(metric, described(loaded))
            result = evaluate(torch_runner(loaded), read_data(data, loaded), found, progress=progress.step)
    record = result.to_json()
    low, high = record["interval"]
    show(record, as_json, lambda: f"{metric} {record['value']:.4f} [{low:.4f}, {high:.4f}] over {record['n']} samples")
