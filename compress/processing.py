"""How raw inputs become a model's feed and outputs its answers: read from JSON, and tried on the model's specs.

The record is the section ``processing`` of a bundle's manifest (``docs/processing.md``); what a device does with it
is :mod:`runtimes.processing`, and that same code tries it here.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np

from compress.errors import CompressError
from compress.model import Model, ModelProcessing, ProgramGraph
from runtimes.errors import RuntimesError
from runtimes.processing.audio import AudioInput
from runtimes.processing.image import ImageInput
from runtimes.processing.outputs import ClassesOutput, MultilabelOutput
from runtimes.processing.processor import Processor
from runtimes.processing.record import FOLDER, Processing, parse_processing
from runtimes.processing.sample import sample_shape
from runtimes.processing.text import TextInput
from runtimes.processing.values import FeaturesInput
from runtimes.records import inside
from runtimes.spec import Dim, TensorSpec, check_feed
from runtimes.wiring import parse_chain

VERSION = 1
LARGEST_FILE = 1 << 28      # bytes of a tokenizer.json
Source: TypeAlias = "Path | str | Mapping[str, Any] | ModelProcessing"


def read_processing(source: Source) -> ModelProcessing:
    """What ``source`` says: a JSON file (with ``"version": 1``), its content, or what this function returned before.

    A ``tokenizer`` is a path, relative to the folder of the JSON file, or to the current one; its bytes are kept with
    the record, which names it by its last part from then on.

    Raises:
        CompressError: if it is no such record, or a file cannot be read; names the file and the key.
    """
    if isinstance(source, ModelProcessing):
        return source
    folder, where = Path(), "processing"
    if isinstance(source, str | Path):
        folder, where = Path(source).parent, str(source)
        source = _read_json(Path(source))
    record = json.loads(_as_json(source, where))
    files: dict[str, bytes] = {}
    for section in ("inputs", "outputs"):
        entries = record.setdefault(section, {})
        for name, entry in entries.items() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and isinstance(entry.get("tokenizer"), str):
                entry["tokenizer"] = _take(folder / entry["tokenizer"], files, f"{where}: processing of {name!r}")
    try:
        return ModelProcessing(section=parse_processing(record, where), files=files)
    except RuntimesError as error:
        raise CompressError(str(error)) from error


def section_of(
    model: Model, given: Source | None = None, chain: Mapping[str, Any] | None = None
) -> ModelProcessing | None:
    """The processing that a bundle of ``model`` gets: ``given``, or else the model's own, with the model's labels.

    ``chain`` is that section of the manifest, whose inputs and outputs may have names of their own; by default the
    model's.

    Raises:
        CompressError: if it does not fit the model.
    """
    own = model.processing if given is None else read_processing(given)
    if own is None and not model.labels:
        return None
    labelled = _labelled(own or ModelProcessing(section=Processing(inputs={}, outputs={})), model.labels)
    check_processing(labelled, model.graphs, model.chain if chain is None else chain)
    return labelled


def check_processing(
    processing: ModelProcessing, graphs: Mapping[str, ProgramGraph], chain: Mapping[str, Any] | None = None
) -> None:
    """Try it: a made-up sample of every raw input must become a feed that the specs take, and outputs be read.

    Raises:
        CompressError: names what is wrong, as the device would.
    """
    try:
        entries: Any = graphs       # what a chain is parsed with are inputs and outputs, which these have too
        described = SimpleNamespace(
            graphs=graphs, chain=None if chain is None else parse_chain(chain, entries, "the bundle"),
            processing=processing.section, read_file=lambda name: processing.files[name.removeprefix(f"{FOLDER}/")])
        processor = Processor(described)
        specs = {name: spec for name, spec in processor.inputs.items() if name in processing.section.inputs}
        count = max([1, *(_batch(spec) for spec in specs.values())])
        raw = {source: [_sample(entry, name, processor.inputs.get(name))] * count
               for name, entry in processing.section.inputs.items() for source in getattr(entry, "sources", ())}
        feed = processor.feed(raw)
        check_feed(specs.values(), {name: feed[name] for name in specs}, source="what processing makes of a sample")
        if processing.section.outputs:
            outputs = processor.outputs.items()
            processor.answer({name: np.zeros(spec.sized(), spec.dtype) for name, spec in outputs})
    except RuntimesError as error:
        raise CompressError(f"processing does not fit the model: {error}") from error


def write_files(processing: ModelProcessing, folder: Path) -> None:
    """Write the files the section names into the bundle being made in ``folder``."""
    for name, data in processing.files.items():
        (folder / FOLDER).mkdir(exist_ok=True)
        (folder / FOLDER / name).write_bytes(data)


def _labelled(processing: ModelProcessing, labels: Mapping[str, Iterable[str]]) -> ModelProcessing:
    outputs = dict(processing.section.outputs)
    for name, words in labels.items():
        entry = outputs.setdefault(name, ClassesOutput())
        if isinstance(entry, ClassesOutput | MultilabelOutput):
            if entry.labels not in (None, tuple(words)):
                raise CompressError(f"processing of {name!r} has other labels than the model: leave them out there")
            outputs[name] = dataclasses.replace(entry, labels=tuple(words))
    section = dataclasses.replace(processing.section, outputs=outputs)
    return dataclasses.replace(processing, section=section)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CompressError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(record, dict) or type(record.get("version")) is not int or record["version"] != VERSION:
        raise CompressError(f"{path} is not a processing record: it needs \"version\": {VERSION}, 'inputs', 'outputs'")
    return {key: value for key, value in record.items() if key != "version"}


def _as_json(record: Mapping[str, Any], where: str) -> str:
    try:
        return json.dumps(record, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CompressError(f"{where} is not a record that JSON can hold: {error}") from error


def _take(path: Path, files: dict[str, bytes], where: str) -> str:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CompressError(f"{where}: {path} has more than {LARGEST_FILE} bytes")
        data = path.read_bytes()
        name = inside(path.name, where)
    except OSError as error:
        raise CompressError(f"{where}: the tokenizer {path} cannot be read ({error.strerror})") from error
    except RuntimesError as error:
        raise CompressError(str(error)) from error
    if files.setdefault(name, data) != data:
        raise CompressError(f"{where}: two different files are called {name!r}: rename one")
    return name


def _batch(spec: TensorSpec) -> int:
    size = 1 if spec.batch_axis is None else spec.shape[spec.batch_axis]
    return size.min if isinstance(size, Dim) else size


def _sample(entry: Any, name: str, spec: TensorSpec | None) -> Any:
    """A raw value of the kind that ``entry`` takes."""
    if isinstance(entry, ImageInput):
        return np.arange(37 * 53 * 3).reshape(37, 53, 3).astype(np.uint8)
    if isinstance(entry, TextInput):
        words = () if entry.vocabulary is None else entry.vocabulary.words
        word = next((word for index, word in enumerate(words) if index != entry.pad_id and word.split() == [word]), "a")
        place = "" if entry.expand is None or entry.expand.token in entry.template else entry.expand.token
        return place + word
    if isinstance(entry, AudioInput):
        return np.random.default_rng(0).uniform(-0.5, 0.5, entry.rate)
    if spec is None:
        raise RuntimesError(f"input {name!r} is none of the model's")
    shape = [size.min if isinstance(size, Dim) else size for size in sample_shape(spec)]
    if isinstance(entry, FeaturesInput):
        return np.zeros(shape)
    return np.zeros(shape, spec.dtype)
