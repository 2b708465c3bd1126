"""What every command shares: its options, how it reads a model and a data set, and how it prints a result."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compress.errors import CompressError

if TYPE_CHECKING:
    from calibration import CalibrationSet
    from compress.model import Model

F = TypeVar("F", bound=Callable[..., Any])
EXISTING = click.Path(path_type=Path)


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


def read_model(model: Path, factory: str | None, trust_pickle: bool, example: Path | None) -> Model:
    from compress.loading import load

    feed = None
    if example is not None:
        from runtimes.arrays import read_arrays

        feed = read_arrays(example)
    return load(model, factory=factory, trust_pickle=trust_pickle, example=feed)


def read_data(path: Path, model: Model) -> CalibrationSet:
    from compress.data import open_data

    return open_data(path, model)


def read_sets(path: Path, model: Model) -> CalibrationSet | dict[str, CalibrationSet]:
    """One set for all graphs of ``model``, or graph name -> its own, where ``path`` holds folders named as they are."""
    from compress.export import only

    if len(model.graphs) == 1 or not any((path / name).is_dir() for name in model.graphs):
        return read_data(path, model)
    return {name: read_data(path / name, only(model, name)) for name in model.graphs}


def writable(path: Path) -> Path:
    """``path``, a file that a long command writes at its end: what can be known to fail then fails before.

    Raises:
        CompressError: if there is no such folder, it cannot be written to, or ``path`` is a folder.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise CompressError(f"cannot write {path}: {folder} is no folder: make it, or give another --output")
    if path.is_dir():
        raise CompressError(f"cannot write {path}: it is a folder: give a file as --output")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CompressError(f"cannot write {path}: the folder {folder} is read-only: give another --output")
    return path


def show(value: Any, as_json: bool, text: Callable[[], Any]) -> None:
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


def written(path: Path, record: dict[str, Any], as_json: bool, sentence: str) -> None:
    show({"output": str(path), **record}, as_json, lambda: f"{path}: {sentence}")
