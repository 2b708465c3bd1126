"""Raw samples, in the forms people have, to a data set: read, chosen, processed as the device will, written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from calibration.columns import TARGET, Columns, RawInput, choose_columns, file_names, parse_pairs, raw_value
from calibration.dataset import CalibrationSet, open_set
from calibration.errors import CalibrationError
from calibration.labels import label_of, stratum_of
from calibration.rows import Row
from calibration.shards import check_shard, shard_specs
from calibration.sources import Samples, Source
from calibration.strata import choose
from calibration.targets import stacked
from calibration.writing import writing_to
from runtimes.errors import FeedError
from runtimes.spec import Feed, TensorSpec

Process: TypeAlias = Callable[[Mapping[str, Any]], Feed]


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """How raw samples become a data set."""

    samples: int | None = field(default=None, metadata={
        "help": "Keep this many, each label by its share; default: all."})
    batch: int = field(default=1, metadata={
        "help": "Samples processed together, and padded to one shape where the model's processing pads."})
    column: tuple[str, ...] = field(default=(), metadata={
        "help": "NAME=COLUMN: where the raw input NAME is, or the labels (target; target= for none)."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave out samples that cannot be used, and say how many."})

    def __post_init__(self) -> None:
        if self.samples is not None and self.samples < 1:
            raise CalibrationError(f"samples is {self.samples}: keep at least 1")
        if self.batch < 1:
            raise CalibrationError(f"batch is {self.batch}: process at least 1 sample at a time")
        parse_pairs(self.column)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the model takes: ``process`` makes a feed of raw inputs, each a list of samples."""

    raw: tuple[RawInput, ...]
    inputs: tuple[TensorSpec, ...]
    process: Process
    labels: tuple[str, ...] | None = None       # names of the classes of the target
    texts: bool = False                         # whether the model answers in texts, and labels are such
    digest: str = ""                            # of the processing, for the record


@dataclass(frozen=True, kw_only=True)
class Converted:
    """A data set that was written; ``skipped`` has one line for each sample that was left out."""

    path: Path
    form: str
    samples: int
    source: str                     # SHA-256 over names and contents of the files that were read, in order
    skipped: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {"form": self.form, "samples": self.samples, "source": self.source, "skipped": list(self.skipped)}


def convert(source: Source, into: Path | str, wanted: Wanted, config: ConvertConfig = ConvertConfig()) -> Converted:
    """Write the raw samples of ``source`` as a data set that :func:`calibration.open_set` reads.

    Args:
        source: a folder or file of one of the forms in ``calibration/readers/``, or an iterable of mappings from raw
            input to value, which may hold a label as ``"label"`` or ``"target"``.
        into: the folder; see :func:`calibration.write`.
        wanted: the raw inputs, and how they become the model's.
        config: which samples, from which columns, and what happens to bad ones.

    Raises:
        CalibrationError: naming the file and the row, if a sample cannot be used; the column or the file, if none can.
    """
    rows = Samples(source)
    skipped: list[str] = []
    samples = 0
    with writing_to(into) as writer:
        for feed in feeds(rows, wanted, config, skipped):
            samples += len(next(iter(feed.values())))
            writer.add(feed)
        digest = rows.digest()
        writer.close({"form": rows.form, "sha256": digest, "processing_sha256": wanted.digest, **asdict(config),
                      "skipped": len(skipped)})
    return Converted(path=writer.folder, form=rows.form, samples=samples, source=digest, skipped=tuple(skipped))


def open_raw(
    source: Source, wanted: Wanted, config: ConvertConfig = ConvertConfig(), *, name: str | None = None
) -> CalibrationSet:
    """The data set that :func:`convert` would write, kept as long as it is in use."""
    rows = Samples(source)
    axes = {spec.name: spec.batch_axis or 0 for spec in wanted.inputs}
    placed = ({key: np.moveaxis(array, 0, axes.get(key, 0)) for key, array in feed.items()}
              for feed in feeds(rows, wanted, config, []))
    return open_set(placed, wanted.inputs, name=name or rows.name)


def source_digest(source: Path | str) -> str:
    """The digest that a conversion of ``source`` records; see :class:`Converted`."""
    return Samples(source).digest()


@dataclass(frozen=True)
class _Ready:
    where: str
    raw: Mapping[str, Any]
    target: np.ndarray | None


def feeds(
    source: Source | Samples, wanted: Wanted, config: ConvertConfig, skipped: list[str]
) -> Iterator[dict[str, np.ndarray]]:
    """The feeds of a conversion with the sample axis first, and labels as ``"target"``; ``skipped`` gets its lines."""
    rows = source if isinstance(source, Samples) else Samples(source)
    converter = _Converter(wanted, config, skipped)
    if config.samples is not None:
        rows.keep()
    kept = None if config.samples is None else _chosen(rows, converter, config.samples)
    group: list[_Ready] = []
    empty = True
    for index, row in enumerate(rows):
        ready = converter.ready(row) if kept is None or index in kept else None
        group += [] if ready is None else [ready]
        if len(group) == config.batch:
            for feed in converter.made(group):
                empty = False
                yield feed
            group = []
    for feed in converter.made(group) if group else ():
        empty = False
        yield feed
    if empty:
        reason = f"all {len(skipped)} were left out, the first because {skipped[0]}" if skipped else "it is empty"
        raise CalibrationError(f"{rows.name} gives no sample: {reason}")


def _chosen(rows: Iterable[Row], converter: _Converter, count: int) -> set[int]:
    indices, strata = [], []
    for index, row in enumerate(rows):
        if row.problem is not None:
            converter.bad(row.where, row.problem)
        else:
            indices.append(index)
            strata.append(stratum_of(row.values.get(converter.columns(row).target or "")))
    return {indices[i] for i in choose(strata, count)}


class _Converter:
    """Rows to feeds; the columns are chosen at the first row that can be read."""

    def __init__(self, wanted: Wanted, config: ConvertConfig, skipped: list[str]) -> None:
        self.config = config
        self._wanted = wanted
        self._skipped = skipped
        self._specs = shard_specs(wanted.inputs)
        self._columns: Columns | None = None
        self._target: np.ndarray | None = None      # the first label

    def columns(self, row: Row) -> Columns:
        if self._columns is None:
            self._columns = choose_columns(self._wanted.raw, row, parse_pairs(self.config.column))
        return self._columns

    def ready(self, row: Row) -> _Ready | None:
        """The raw inputs of a row; ``None`` where it was left out."""
        where = row.where
        if row.problem is not None:
            self.bad(where, row.problem)
            return None
        columns = self.columns(row)
        named = file_names(self._wanted.raw, row, columns)
        where += f" ({', '.join(named)})" if named else ""
        try:
            raw = {entry.name: raw_value(entry, row, columns.inputs[entry.name]) for entry in self._wanted.raw}
            target = None if columns.target is None else self._label(row.values.get(columns.target))
        except CalibrationError as error:
            self.bad(where, str(error))
            return None
        return _Ready(where, raw, target)

    def made(self, group: Sequence[_Ready]) -> Iterator[dict[str, np.ndarray]]:
        """The feed of a group, without those of it that cannot be used."""
        try:
            yield self._feed(group)
            return
        except (FeedError, CalibrationError) as error:
            if len(group) == 1:
                self.bad(group[0].where, str(error))
                return
            problem = error
        good = [ready for ready in group if self._works(ready)]
        if len(good) == len(group):
            raise CalibrationError(f"{group[0].where} to {group[-1].where} cannot be processed together ({problem}): "
                                   "process one at a time, with a batch of 1") from problem
        if good:
            yield from self.made(good)

    def _works(self, ready: _Ready) -> bool:
        try:
            self._feed([ready])
        except (FeedError, CalibrationError) as error:
            self.bad(ready.where, str(error))
            return False
        return True

    def _feed(self, group: Sequence[_Ready]) -> dict[str, np.ndarray]:
        feed = self._wanted.process({name: [ready.raw[name] for ready in group] for name in group[0].raw})
        axes = {spec.name: spec.batch_axis or 0 for spec in self._wanted.inputs}
        arrays = {name: np.moveaxis(array, axes.get(name, 0), 0) for name, array in feed.items()}
        targets = [ready.target for ready in group if ready.target is not None]
        arrays |= {TARGET: stacked(targets)} if targets else {}
        return check_shard(arrays, self._specs, source="what the processing makes of it").arrays

    def _label(self, value: Any) -> np.ndarray:
        label = label_of(value, self._wanted.labels, texts=self._wanted.texts)
        if self._target is None:
            self._target = label
        if self._wanted.texts and label.ndim == self._target.ndim:
            return label
        if (label.dtype, label.shape) != (self._target.dtype, self._target.shape):
            raise CalibrationError(f"has the label {value!r:.80} ({label.dtype}{list(label.shape)}), but those before "
                                   f"it are {self._target.dtype}{list(self._target.shape)}: write all of them alike, "
                                   "such as 1.0 for 1")
        return label

    def bad(self, where: str, problem: str) -> None:
        """Leave a sample out, or refuse it."""
        line = " ".join(f"{where}: {problem}".split())
        if not self.config.skip_bad:
            raise CalibrationError(f"{line} (skip_bad, or --skip-bad, leaves such samples out)")
        self._skipped.append(line)
