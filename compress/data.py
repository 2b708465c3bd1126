"""Data sets from raw samples: pictures, sounds and texts become a model's feeds by the model's own processing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from calibration import CalibrationSet, open_set
from calibration.columns import RawInput
from calibration.converting import ConvertConfig, Converted, Wanted, convert, open_raw
from calibration.writing import MANIFEST
from compress.errors import CompressError
from compress.model import Model, ModelProcessing
from compress.processing import Source, read_processing
from runtimes.errors import RuntimesError
from runtimes.hashing import bytes_digest, json_digest
from runtimes.processing import FOLDER, Processing, Processor
from runtimes.processing.outputs import ClassesOutput, DecisionOutput, TextOutput

EVERYTHING = ConvertConfig()


def make_data(
    source: Path | str | Iterable[Mapping[str, Any]], model: Model, into: Path | str,
    config: ConvertConfig = EVERYTHING, *, processing: Source | None = None,
) -> Converted:  # fmt: skip
    """Write the raw samples of ``source`` as a data set for ``model``.

    Args:
        source: a folder or a file as ``docs/data.md`` lists them, or an iterable of mappings from raw input to value.
        model: whose processing, inputs and labels are used.
        into: the folder; a data set there is replaced.
        config: which samples, from which columns, and what happens to bad ones.
        processing: in place of the model's own; what :func:`compress.processing.read_processing` reads.

    Raises:
        CompressError: if the processing does not fit the model.
        CalibrationError: naming the file and the row, if a sample cannot be used.
    """
    return convert(source, into, wanted_of(model, processing), config)


def open_data(path: Path, model: Model, *, name: str | None = None) -> CalibrationSet:
    """The data set at ``path``, or what raw samples there become, which is kept as long as the set.

    Raises:
        CalibrationError: naming the file, if it does not match the model.
    """
    if is_raw(path):
        return open_raw(path, wanted_of(model), name=name or path.resolve().name)
    return open_set(path, model.inputs, name=name)


def is_raw(path: Path) -> bool:
    """Whether there are samples to process, rather than the arrays of a model's inputs, which are ``.npz`` files."""
    if path.is_dir():
        return any(path.iterdir()) and not (path / MANIFEST).exists() and not any(path.glob("*.npz"))
    return path.is_file() and path.suffix != ".npz"


def wanted_of(model: Model, processing: Source | None = None) -> Wanted:
    """What ``model`` takes: the raw inputs of its processing, and an array for each input that it does not describe.

    One that has a default always gets that: a column of texts is rather the answers than what a caption begins with.

    Raises:
        CompressError: if the processing does not fit the model.
    """
    given = model.processing if processing is None else read_processing(processing)
    own = given or ModelProcessing(section=Processing(inputs={}, outputs={}))
    try:
        processor = Processor(SimpleNamespace(
            graphs=model.graphs, chain=None if model.chain is None else model.wiring, processing=own.section,
            read_file=lambda name: own.files[name.removeprefix(f"{FOLDER}/")]))  # fmt: skip
    except RuntimesError as error:
        raise CompressError(f"processing does not fit the model: {error}") from error
    entries = own.section.inputs
    raw = {source: RawInput(name=source, kind=entry.KIND, names=getattr(entry, "names", None) or ())
           for entry in entries.values() for source in getattr(entry, "sources", ())
           if source in processor.sources and source not in processor.defaults}
    raw |= {name: RawInput(name=name, kind="tensor") for name in processor.inputs if name not in entries}
    record = {**own.section.to_json(), "files": {name: bytes_digest(data) for name, data in own.files.items()}}
    names = _class_names(model, own.section)
    texts = names is None and any(isinstance(entry, TextOutput) for entry in own.section.outputs.values())
    return Wanted(raw=tuple(raw.values()), inputs=model.inputs, process=processor.feed, digest=json_digest(record),
                  labels=names, texts=texts)


def _class_names(model: Model, processing: Processing) -> tuple[str, ...] | None:
    """The names of the classes, where one output has any."""
    described = {name: tuple(entry.labels) for name, entry in processing.outputs.items()
                 if isinstance(entry, ClassesOutput | DecisionOutput) and entry.labels is not None}
    named = {**described, **model.labels}
    return next(iter(named.values())) if len(named) == 1 else None
