"""The schema of report.json, format ``compress.report`` version 1: every section a stage of its own may leave out.

``report.json`` is the record and the page and the tables are views of it. Sections written here are closed: a misspelt
key is an error. ``bench``, ``parity``, ``search`` and each stage's ``summary`` are what those stages wrote: what the
views read of them is checked, what else they hold is kept.

Scores are in the metric's own unit (a share, for accuracy), a *drop* is positive where something was lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from compress.bench.record import VERSION as BENCH_VERSION
from compress.bench.record import BenchRecord
from compress.errors import CompressError
from compress.metrics import find_metric
from compress.parity import ParityResult
from compress.report.summaries import SUMMARIES, Amount, Count, Positive, Search
from compress.report.units import Unit
from runtimes.errors import RuntimesError
from runtimes.spec import TensorSpec

FORMAT, VERSION = "compress.report", 1
_ADVICE = "the schema is compress/report/schema.py"


class _Closed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A section of this record: no key but these."""


class ModelComponent(_Closed, frozen=True, kw_only=True):
    parameters: Count
    macs: Count  # of one sample at the usual sizes
    size_bytes: Count


class ModelFacts(_Closed, frozen=True, kw_only=True):
    """The original model; ``inputs`` and ``outputs`` are tensor specs as ``TensorSpec.to_json`` writes them."""

    inputs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    components: dict[str, ModelComponent] = {}


class DataSet(_Closed, frozen=True, kw_only=True):
    count: Count
    digest: str
    name: str = ""


class Data(_Closed, frozen=True, kw_only=True):
    calibration: DataSet | None = None
    train: DataSet | None = None
    validation: DataSet | None = None


class Stage(_Closed, frozen=True, kw_only=True):
    """One stage as it ran; ``seconds`` and ``peak_memory_bytes`` are those of the run that did the work."""

    stage: str
    target_scheme: str | None = None
    round: Count | None = None  # of a search
    seconds: Amount | None = None
    peak_memory_bytes: Count | None = None
    reused: bool = False
    digest: str | None = None
    settings: dict[str, Any] = {}
    summary: dict[str, Any] = {}  # by stage: one of SUMMARIES, else free


class Baseline(_Closed, frozen=True, kw_only=True):
    """What a figure is to be held against: a model blind to one modality, the majority answer, a smaller network."""

    name: str
    accuracy: float | None = None
    latency_ms: Positive | None = None
    note: str = ""


class Verdict(_Closed, frozen=True, kw_only=True):
    max_drop: float | None = None  # the budget, in the metric's own unit (a share, for accuracy)
    within: bool | Literal["undecidable"] | None = None
    sentence: str = ""


class BundleFacts(_Closed, frozen=True, kw_only=True):
    path: str  # relative to report.json
    files: Count
    size_bytes: Count


class Record(_Closed, frozen=True, kw_only=True):
    """report.json. ``format``, ``version`` and ``name`` are always there; a section left out was not measured."""

    format: Literal["compress.report"]
    version: int
    name: str
    command: str | None = None  # what was typed, where it is known
    recipe: dict[str, Any] | None = None  # as run
    model: ModelFacts | None = None
    data: Data | None = None
    machine: dict[str, Any] | None = None
    versions: dict[str, str] | None = None
    stages: list[Stage] | None = None
    parity: ParityResult | None = None
    bench: BenchRecord | None = None
    search: Search | None = None
    baselines: list[Baseline] | None = None
    verdict: Verdict | None = None
    bundle: BundleFacts | None = None


def metric_of(record: Record) -> str:
    """The name of the metric that the record's scores are of."""
    if record.bench is not None:
        return record.bench.metric
    return str((record.recipe or {}).get("metric", "accuracy"))


def unit_of(metric: str, bench: BenchRecord | None = None) -> Unit:
    """How the metric called ``metric`` is told; one of the user's own as the rows of ``bench`` say."""
    known: Any = find_metric(metric)
    if known is not None:
        return Unit(share=known.is_share, lower_is_better=known.lower_is_better)
    found = next((row.accuracy for row in bench.rows if row.accuracy is not None), None) if bench else None
    return Unit(share=found.share, lower_is_better=found.lower_is_better) if found else Unit(share=False)


def validate(record: Mapping[str, Any], source: str = "the report's record") -> Record:
    """The record with every figure the views read checked and typed.

    Args:
        record: JSON values only, as ``json.load`` gives them.
        source: what the message calls the record; a file name, for one read from disk.

    Raises:
        CompressError: if it is of another format or version, or a value is missing, of a wrong type, out of its range
            or (in a closed section) unknown; names the place in the record.
    """
    if record.get("format") != FORMAT:
        raise CompressError(
            f"{source} is not a {FORMAT!r} record (its format is {record.get('format')!r}): name a report.json"
        )
    if record.get("version") != VERSION:
        raise CompressError(
            f"{source} has format version {record.get('version')!r} and this software reads version "
            f"{VERSION}: install the version of compress-edge that wrote it"
        )
    bench = record.get("bench")
    if isinstance(bench, Mapping) and bench.get("version") != BENCH_VERSION:
        raise CompressError(
            f"{source} holds a bench of format version {bench.get('version')!r} and this software reads version "
            f"{BENCH_VERSION}: run the bench again"
        )
    try:
        json.dumps(record, allow_nan=False)
        checked = msgspec.convert(record, Record)
    except (msgspec.ValidationError, TypeError, ValueError) as error:
        raise CompressError(f"{source} is not a valid report: {error}: {_ADVICE}") from error
    for spec in [*checked.model.inputs, *checked.model.outputs] if checked.model else ():
        try:
            TensorSpec.from_json(spec)
        except RuntimesError as error:
            raise CompressError(f"{source} is not a valid report: $.model: {error}") from error
    for row in checked.bench.rows if checked.bench else ():
        if row.latency_ms is not None and not row.latency_ms.p50 > 0:
            raise CompressError(
                f"{source} is not a valid report: bench row {row.name!r} has a p50 of "
                f"{row.latency_ms.p50} ms, expected more than 0"
            )
    for index, stage in enumerate(checked.stages or ()):
        summary(stage, f"{source}: $.stages[{index}].summary")
    return checked


def summary(stage: Stage, place: str = "summary") -> Any:
    """``stage.summary`` typed by the stage's name: one of SUMMARIES, or the dict itself for any other stage.

    An empty summary, of a stage that has nothing to tell, is None.
    """
    kind = SUMMARIES.get(stage.stage)
    if not stage.summary:
        return None
    if kind is None:
        return stage.summary
    try:
        return msgspec.convert(stage.summary, kind)
    except msgspec.ValidationError as error:
        raise CompressError(f"{place} of stage {stage.stage!r} is not valid: {error}: {_ADVICE}") from error


def read_record(path: Path) -> dict[str, Any]:
    """The record in a report.json.

    Raises:
        CompressError: if the file cannot be read, is not JSON, or is not a valid record; names it.
    """
    try:
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise CompressError(f"{path} cannot be read ({error.strerror}): name a report.json") from error
    except (ValueError, RecursionError) as error:
        raise CompressError(f"{path} is not JSON ({error}): name a report.json that `compress run` wrote") from error
    if not isinstance(record, dict):
        raise CompressError(f"{path} is not a {FORMAT!r} record: name a report.json")
    validate(record, str(path))
    return record
