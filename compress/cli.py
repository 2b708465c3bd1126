"""The command line: parse, call one public function, print its result. Results go to stdout, progress to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from calibration.errors import CalibrationError
from compress.bench import BenchConfig
from compress.distill import DistillConfig
from compress.errors import CompressError
from compress.options import options_of
from compress.progress import Progress
from compress.prune import PruneConfig
from compress.quantize import QuantizeConfig
from compress.store import is_disk_full
from runtimes.errors import RuntimesError
from runtimes.spec import largest_batch

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.model import Model

F = TypeVar("F", bound=Callable[..., Any])
EXISTING = click.Path(path_type=Path)


class _Commands(click.Group):
    """The one place where an expected failure becomes one line on stderr and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (CompressError, CalibrationError, RuntimesError) as error:
            _fail(str(error))
        except KeyboardInterrupt:
            click.echo("compress: interrupted; what was finished is kept, the same command goes on", err=True)
            sys.exit(130)
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx is not None else "compress"
            _fail(f"{error.format_message()} See: {where} --help")
        except Exception as error:  # libraries in C++ say in words alone that a disk is full
            if not is_disk_full(error):
                if isinstance(error, OSError) and error.filename is not None:  # a path of the user's
                    _fail(f"{error.filename}: {error.strerror}")
                raise
            _fail(f"no space left on the disk ({error}): free some and run it again; what was finished is kept")


def _fail(message: str) -> None:
    click.echo(f"compress: {' '.join(message.split())}", err=True)
    sys.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="compress-edge", prog_name="compress")
def cli() -> None:
    """Make a multimodal PyTorch model small and fast for a device, and prove what the shipped file does there."""


def common(function: F) -> F:
    """Options every command has."""
    function = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)
    return click.option("--quiet", "-q", is_flag=True, help="Print no progress.")(function)


def model_options(function: F) -> F:
    """Options of every command that reads a model."""
    function = click.option("--factory", help="package.module:function that rebuilds the module; it will be called.")(
        function
    )
    function = click.option(
        "--trust-pickle", is_flag=True, help="Unpickle a module: runs code of whoever made the file."
    )(function)
    return click.option("--example", type=EXISTING, help="A feed (.npz), for a model that carries none.")(function)


def _read(model: Path, factory: str | None, trust_pickle: bool, example: Path | None) -> Model:
    from compress.loading import load

    feed = None
    if example is not None:
        from runtimes.arrays import read_arrays

        feed = read_arrays(example)
    return load(model, factory=factory, trust_pickle=trust_pickle, example=feed)


def _data(path: Path, model: Model) -> CalibrationSet:
    from calibration import open_set

    return open_set(path, model.inputs)


def _show(value: Any, as_json: bool, text: Callable[[], Any]) -> None:
    if as_json:
        click.echo(json.dumps(value, indent=1, allow_nan=False))
        return
    view = text()
    if isinstance(view, str):
        click.echo(view)
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a table in a file or a pipe is not cut to 80 columns
    console.print(view, highlight=False, markup=False)


def _written(path: Path, record: dict[str, Any], as_json: bool, sentence: str) -> None:
    _show({"output": str(path), **record}, as_json, lambda: f"{path}: {sentence}")


# --- the whole chain --------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("folder", type=EXISTING)
@click.option("--quick", is_flag=True, help="A tiny network, trained for seconds: to see the chain, not its figures.")
@click.option("--seed", default=0, show_default=True, help="Of the weights, the order and the questions of training.")
@common
def demo(folder: Path, quick: bool, seed: int, quiet: bool, as_json: bool) -> None:
    """Train the demo model and write it, its data and a recipe into FOLDER."""
    from compress.zoo.demo import make_demo

    progress = Progress(quiet=quiet)
    with progress.stage("train the demo"):
        record = make_demo(folder, seed=seed, quick=quick, progress=progress.step)
    _show(record.to_json(), as_json, lambda: record.describe())


@cli.command()
@click.argument("recipe", type=EXISTING)
@click.option("--output", "-o", type=EXISTING, help="Folder for the results; default: out beside the recipe.")
@common
def run(recipe: Path, output: Path | None, quiet: bool, as_json: bool) -> None:
    """Run every stage of RECIPE that is not done yet; write the bundle and the report."""
    import compress.pipeline
    from compress.report import show

    progress = Progress(quiet=quiet)
    result = compress.pipeline.run(recipe, output=output, progress=progress, command=f"compress run {recipe}")
    if as_json:
        click.echo(json.dumps(result.record, indent=1, allow_nan=False))
    else:
        show(result.record)
    progress.say(f"{result.done} stages done, {result.reused} reused; report: {result.report}")


@cli.command()
@click.argument("model", type=EXISTING)
@model_options
@common
def inspect(
    model: Path, factory: str | None, trust_pickle: bool, example: Path | None, quiet: bool, as_json: bool
) -> None:
    """Show what MODEL is made of, and what can be quantized and pruned, or why not."""
    from compress.inspection import inspect as look
    from compress.inspection import table

    found = look(_read(model, factory, trust_pickle, example), factory=factory)
    _show(found.to_json(), as_json, lambda: table(found))


# --- the stages -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model", type=EXISTING)
@click.option(
    "--data", type=EXISTING, required=True, help="Samples to rank and check with, such as the calibration set."
)
@click.option("--output", "-o", type=EXISTING, help="The model file to write; default: MODEL.pruned.pt.")
@options_of(PruneConfig)
@model_options
@common
def prune(
    model: Path, data: Path, output: Path | None, config: PruneConfig, factory: str | None, trust_pickle: bool,
    example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Remove the least important channels and attention heads of MODEL."""
    import compress
    from compress.modelfile import write_model

    loaded = _read(model, factory, trust_pickle, example)
    progress = Progress(quiet=quiet)
    with progress.stage("prune"):
        result = compress.prune(loaded, _data(data, loaded), config, factory=factory, progress=progress.step)
    path = output or model.with_suffix(".pruned.pt")
    write_model(result.model, path)
    share = result.macs_after / result.macs_before
    _written(path, result.to_json(), as_json, f"{share:.1%} of the MACs are left ({result.macs_after:,} a sample)")


@cli.command()
@click.argument("model", type=EXISTING)
@click.option("--teacher", type=EXISTING, required=True, help="The model to learn from: the original.")
@click.option("--data", type=EXISTING, required=True, help="The training set; labels are not needed.")
@click.option("--validation", type=EXISTING, help="A labelled set: the best epoch on it is kept.")
@click.option("--metric", default="accuracy", show_default=True, help="Its metric.")
@click.option("--output", "-o", type=EXISTING, help="The model file to write; default: MODEL.distilled.pt.")
@options_of(DistillConfig)
@common
def distill(
    model: Path, teacher: Path, data: Path, validation: Path | None, metric: str, output: Path | None,
    config: DistillConfig, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train MODEL towards its teacher; quantization-aware where MODEL is quantized."""
    import compress
    from compress.loading import load
    from compress.metrics import get_metric
    from compress.modelfile import write_model

    student = load(model)
    progress = Progress(quiet=quiet)
    with progress.stage("distill"):
        result = compress.distill(
            student, load(teacher), _data(data, student),
            validation=None if validation is None else _data(validation, student),
            metric=None if validation is None else get_metric(metric), config=config, progress=progress.step,
        )  # fmt: skip
    path = output or model.with_suffix(".distilled.pt")
    write_model(result.model, path)
    record = result.to_json()
    gained = f"{metric} {record['before']:.4f} -> {record['after']:.4f}" if record.get("after") is not None else "done"
    _written(path, record, as_json, gained)


@cli.command()
@click.argument("model", type=EXISTING)
@click.option(
    "--calibration", type=EXISTING, required=True, help="The calibration set: a folder of .npz by input name."
)
@click.option("--target", default="local", show_default=True, help="What it will run on; its row names the scheme.")
@click.option("--output", "-o", type=EXISTING, help="The model file to write; default: MODEL.int8.pt.")
@options_of(QuantizeConfig)
@model_options
@common
def quantize(
    model: Path, calibration: Path, target: str, output: Path | None, config: QuantizeConfig, factory: str | None,
    trust_pickle: bool, example: Path | None, quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Quantize MODEL to int8 with a calibration set."""
    import compress
    from compress.modelfile import write_model
    from compress.targets import get_target

    row = get_target(target)
    loaded = _read(model, factory, trust_pickle, example)
    progress = Progress(quiet=quiet)
    with progress.stage("quantize", row.scheme):
        result = compress.quantize(
            loaded, _data(calibration, loaded), scheme=row.scheme, config=config, progress=progress.step
        )
    path = output or model.with_suffix(".int8.pt")
    write_model(result.model, path)
    record = result.to_json()
    sentence = f"{record['int8']} operators in int8, {record['float']} in float, scheme {row.scheme}"
    _written(path, record, as_json, f"{sentence}, {record['samples']} calibration samples")


@cli.command()
@click.argument("model", type=EXISTING)
@click.option("--target", default="local", show_default=True, help="The target to build for.")
@click.option("--output", "-o", type=EXISTING, help="The engine's folder; default: MODEL.TARGET.")
@model_options
@common
def export(
    model: Path, target: str, output: Path | None, factory: str | None, trust_pickle: bool, example: Path | None,
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Build the engine of MODEL for a target."""
    import compress
    from compress.targets import get_target

    row = get_target(target)
    loaded = _read(model, factory, trust_pickle, example)
    path = output or model.with_suffix(f".{row.name}")
    with Progress(quiet=quiet).stage("export", row.name):
        engine = compress.export(loaded, row, path)
    record = {"target": row.name, "precision": engine.precision, "digest": engine.digest, "state": engine.state}
    _written(
        path,
        {**record, "notes": list(engine.notes)},
        as_json,
        f"{engine.precision} {engine.backend} engine, {engine.state}",
    )


@cli.command()
@click.argument("model", type=EXISTING)
@click.option("--data", type=EXISTING, required=True, help="Samples to compare on.")
@click.option("--target", default="local", show_default=True, help="The target whose engine is compared.")
@click.option("--samples", default=64, show_default=True, help="How many samples.")
@model_options
@common
def parity(
    model: Path, data: Path, target: str, samples: int, factory: str | None, trust_pickle: bool, example: Path | None,
    quiet: bool, as_json: bool,
) -> None:  # fmt: skip
    """Compare MODEL in torch, in ONNX and as the target's engine on the same feeds; exit code 1 if they disagree."""
    from compress.ladder import check
    from compress.parity import table
    from compress.targets import get_target

    loaded = _read(model, factory, trust_pickle, example)
    with Progress(quiet=quiet).stage("parity"):
        result = check(loaded, get_target(target), _data(data, loaded).take(samples))
    _show(result.to_json(), as_json, lambda: table(result))
    if not result.passed:
        sys.exit(1)


@cli.command("eval")
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

    progress = Progress(quiet=quiet)
    with progress.stage("eval"):
        if model.is_dir():
            with runtimes.load(model, target=target) as session:
                samples = open_set(data, session.inputs)
                result = evaluate(session.run, samples, get_metric(metric), progress=progress.step)
        else:
            from compress.ladder import torch_runner

            loaded = _read(model, factory, trust_pickle, example)
            result = evaluate(torch_runner(loaded), _data(data, loaded), get_metric(metric), progress=progress.step)
    record = result.to_json()
    low, high = record["interval"]
    _show(record, as_json, lambda: f"{metric} {record['value']:.4f} [{low:.4f}, {high:.4f}] over {record['n']} samples")


@cli.command()
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
    _show(record.to_json(), as_json, lambda: table(record))


@cli.command("bundle")
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

    loaded = _read(model, factory, trust_pickle, example)
    path = output or model.with_suffix(".bundle")
    with Progress(quiet=quiet).stage("bundle"), tempfile.TemporaryDirectory(prefix="compress-") as folder:
        rows = [get_target(target) for target in targets]
        engines = {row.name: compress.export(loaded, row, Path(folder) / row.name) for row in rows}
        made = compress.bundle(loaded, engines, _data(data, loaded).first(largest_batch(loaded.inputs, 4)), path)
    _written(path, {"digest": made.digest, "targets": list(engines)}, as_json, f"bundle for {', '.join(engines)}")


@cli.command()
@click.argument("record", type=EXISTING)
@click.option("--output", "-o", type=EXISTING, help="Folder for report.html; default: beside RECORD.")
@common
def report(record: Path, output: Path | None, quiet: bool, as_json: bool) -> None:
    """Write report.html from RECORD, a report.json, and print its tables."""
    from compress.report import read_record, show
    from compress.report import report as write

    content = read_record(record)
    write(content, output or (record if record.is_dir() else record.parent))
    if as_json:
        click.echo(json.dumps(content, indent=1, allow_nan=False))
    else:
        show(content)


@cli.command()
@common
def targets(quiet: bool, as_json: bool) -> None:
    """List the targets."""
    import dataclasses

    from compress.targets import targets as rows

    def table() -> Any:
        from rich.table import Table

        view = Table("target", "backend", "scheme", "float", "description", "verified")
        for row in rows().values():
            view.add_row(row.name, row.backend, row.scheme, row.float, row.description, row.verified)
        return view

    _show([dataclasses.asdict(row) for row in rows().values()], as_json, table)
