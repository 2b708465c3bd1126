"""Raw inputs to a feed, outputs to answers, as a bundle says: what stands between a device app and a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing.outputs import Output, SimilarityOutput, TextOutput, rows_of
from runtimes.processing.record import FOLDER, Processing
from runtimes.processing.sample import Padding, Sample, stack
from runtimes.processing.text import OpenedText, ReadFile, TextInput
from runtimes.processing.values import ConstantInput, MaskInput, TensorInput, TypesInput
from runtimes.spec import Feed, TensorSpec


class Preparer(Protocol):
    """An input made of raw data, opened."""

    @property
    def sources(self) -> tuple[str, ...]: ...

    @property
    def padding(self) -> Padding | None: ...

    @property
    def prepare(self) -> Callable[..., Sample]: ...     # of one value per source, and ``mask=``


class Described(Protocol):
    """What has graphs and a processing section: a bundle, or a model on its way to one."""

    @property
    def processing(self) -> Processing | None: ...

    @property
    def graphs(self) -> Mapping[str, Any]: ...      # of what has inputs and outputs

    @property
    def chain(self) -> Any: ...                     # None, or what has inputs and outputs

    def read_file(self, name: str) -> bytes: ...


class Processor:
    """The processing of one bundle; safe to use from several threads at once.

    A raw value that is a ``list`` is a batch; anything else is one sample.

    Args:
        bundle: what :func:`runtimes.read_bundle` returned.
        graph: make the inputs and read the outputs of this graph alone; by default those of the bundle's chain, or
            where it has none of all its graphs.

    Raises:
        RuntimesError: if the section is not one for these inputs and outputs, a file of it cannot be read, or a package
            it needs is not installed.
    """

    def __init__(self, bundle: Described, graph: str | None = None) -> None:
        graphs = list(bundle.graphs.values())
        whole = graphs if bundle.chain is None else [bundle.chain]
        used = whole if graph is None else [bundle.graphs[graph]]
        self._one_graph = len(used) == 1 and (graph is not None or bundle.chain is None)
        self.inputs: dict[str, TensorSpec] = {spec.name: spec for entry in used for spec in entry.inputs}
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for entry in used for spec in entry.outputs}
        every = [*graphs, *used]
        record = bundle.processing or Processing(inputs={}, outputs={})
        _check_names(record, {s.name for e in every for s in e.inputs}, {s.name for e in every for s in e.outputs})
        def read(name: str) -> bytes:
            return bundle.read_file(f"{FOLDER}/{name}")

        self._derived = {name: entry for name, entry in record.inputs.items()
                         if name in self.inputs and isinstance(entry, MaskInput | TypesInput | ConstantInput)}
        needed = {entry.of for entry in self._derived.values() if not isinstance(entry, ConstantInput)}
        self._preparers: dict[str, Preparer] = {
            name: _opened(name, entry, self.inputs.get(name), read)
            for name, entry in record.inputs.items()
            if name in self.inputs.keys() | needed and not isinstance(entry, MaskInput | TypesInput | ConstantInput)
        }
        self.defaults = {name: entry.record.default for entry in self._preparers.values()
                         if isinstance(entry, OpenedText) and entry.record.default is not None
                         for name in entry.sources}
        self._masked = {entry.of for entry in self._derived.values() if isinstance(entry, MaskInput)}
        self._plain: dict[str, Preparer] = {
            name: TensorInput(from_=name) for name in self.inputs if name not in record.inputs
        }
        self._answers = {name: entry for name, entry in record.outputs.items() if self._has(name, entry)}
        self._readers = {name: _reader(name, entry, read)
                         for name, entry in self._answers.items() if not isinstance(entry, SimilarityOutput)}

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the raw inputs, those with a default too; what is not described may be given as arrays."""
        return tuple(dict.fromkeys(name for entry in self._preparers.values() for name in entry.sources))

    def ask(self, run: Callable[[Feed], Mapping[str, np.ndarray]], raw: Mapping[str, Any]) -> dict[str, Any]:
        """The answers to ``raw``, of a model that ``run`` runs: by output name, one, or a list for a batch.

        Raises:
            FeedError, RuntimesError: as :meth:`feed` and :meth:`answer` do, and ``run``.
        """
        answers = self.answer(run(self.feed(raw)))
        if any(isinstance(value, list) for value in raw.values()):
            return dict(answers)
        return {name: values[0] if len(values) == 1 else values for name, values in answers.items()}

    def feed(self, raw: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The feed made of raw inputs.

        Args:
            raw: raw input name -> one sample, or a list of samples.

        Raises:
            FeedError: names the raw input that is missing, unknown, or cannot be used, and what was expected.
        """
        samples = self._samples(raw)
        feed: dict[str, np.ndarray] = {}
        made: dict[str, list[Sample]] = {}
        for name, entry in {**self._plain, **self._preparers}.items():
            if not set(entry.sources) <= samples.keys():
                continue        # of an input that is not described and was not given: the session says so
            rows = zip(*(samples[source] for source in entry.sources), strict=True)
            made[name] = [self._prepare(name, entry, row) for row in rows]
            if name in self.inputs:
                arrays = [sample.array for sample in made[name]]
                feed[name] = stack(arrays, self.inputs[name], entry.padding, entry.sources[0])
        for name, samples_of in made.items():
            self._check_places(name, samples_of, made)
        for name, derived in self._derived.items():
            feed[name] = self._derive(name, derived, made, samples)
        return feed

    def answer(self, outputs: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
        """Output name (or a similarity's own) -> one answer for each sample, of plain Python values.

        Raises:
            RuntimesError: if no output is described, one is missing, not finite, or not as its record says.
        """
        if not self._answers:
            raise RuntimesError(f"the bundle does not say how to read the outputs {list(self.outputs)}: use run()")
        answers: dict[str, list[Any]] = {}
        for name, entry in self._answers.items():
            try:
                if isinstance(entry, SimilarityOutput):
                    answers[name] = entry.answer(*(self._batch(outputs, of) for of in entry.of))
                else:
                    answers[name] = rows_of(entry, self._batch(outputs, name), self._readers[name])
            except RuntimesError as error:
                raise RuntimesError(f"output {name!r} {error}") from None
        return answers

    def _samples(self, raw: Mapping[str, Any]) -> dict[str, list[Any]]:
        expected = {*self.sources, *self._plain}
        if not isinstance(raw, Mapping):
            raise FeedError(f"the raw input is a {type(raw).__name__}, expected a mapping with {sorted(expected)}")
        missing = [name for name in self.sources if name not in raw and name not in self.defaults]
        if missing or raw.keys() - expected:
            problem = f"lacks {missing[0]!r}" if missing else f"has the unknown name {min(raw.keys() - expected)!r}"
            raise FeedError(f"the raw input {problem}: expected {sorted(expected)}, got {list(raw)}")
        samples = {name: list(value) if isinstance(value, list) else [value] for name, value in raw.items()}
        count = max((len(values) for values in samples.values()), default=1)
        samples = {**{name: [value] * count for name, value in self.defaults.items()}, **samples}
        empty = [name for name, values in samples.items() if not values]
        if empty:
            raise FeedError(f"raw input {empty[0]!r} is an empty list: give at least one sample")
        sizes: dict[Any, tuple[str, int]] = {}
        for name, entry in {**self._plain, **self._preparers}.items():
            for source in entry.sources:
                if source in samples:
                    first, count = sizes.setdefault(self._batch_of(name), (source, len(samples[source])))
                    if count != len(samples[source]):
                        here = len(samples[source])
                        raise FeedError(f"raw input {source!r} has {here} samples, but {first!r} has {count}")
        return samples

    def _batch_of(self, name: str) -> Any:
        """What the batch dimension of an input is called: inputs of one graph that share it have as many samples."""
        spec = self.inputs.get(name)
        if spec is None or spec.batch_axis is None or not self._one_graph:
            return name
        return getattr(spec.shape[spec.batch_axis], "name", None)

    def _check_places(self, name: str, samples: list[Sample], made: Mapping[str, list[Sample]]) -> None:
        entry = self._preparers.get(name)
        if not isinstance(entry, OpenedText) or entry.record.expand is None or entry.record.expand.of not in made:
            return
        expand, placed = entry.record.expand, sum(sample.placed for sample in samples)
        if placed != (there := len(made[expand.of])):
            raise FeedError(
                f"raw input {entry.sources[0]!r} has {expand.token!r} {placed} times, but "
                f"{self._preparers[expand.of].sources[0]!r} has {there} samples: write it where each of these belongs")

    def _prepare(self, name: str, entry: Preparer, row: Sequence[Any]) -> Sample:
        try:
            return entry.prepare(*row, mask=name in self._masked)
        except RuntimesError as error:
            raise type(error)(f"raw input {entry.sources[0]!r} {error}") from None

    def _derive(
        self, name: str, entry: MaskInput | TypesInput | ConstantInput, made: Mapping[str, list[Sample]],
        samples: Mapping[str, list[Any]],
    ) -> np.ndarray:
        spec = self.inputs[name]
        if isinstance(entry, ConstantInput):
            count = 1 if spec.batch_axis is None else max((len(values) for values in samples.values()), default=1)
            return stack([entry.array()] * count, spec, None, name)
        source = self._preparers[entry.of]
        arrays = [sample.mask if isinstance(entry, MaskInput) else sample.types for sample in made[entry.of]]
        side = "right" if source.padding is None else source.padding.side
        found = [array for array in arrays if array is not None]
        return stack(found, spec, Padding(side=side), source.sources[0])

    def _has(self, name: str, entry: Output) -> bool:
        return set(entry.of if isinstance(entry, SimilarityOutput) else (name,)) <= self.outputs.keys()

    def _batch(self, outputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        if name not in outputs:
            raise RuntimesError(f"is not there: the outputs are {list(outputs)}")
        array, axis = np.asarray(outputs[name]), self.outputs[name].batch_axis
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise RuntimesError("has a value that is not finite: the engine does not work on this device")
        return array[None] if axis is None else np.moveaxis(array, axis, 0)


def _check_names(record: Processing, inputs: set[str], outputs: set[str]) -> None:
    for name in record.inputs:
        if name not in inputs:
            raise RuntimesError(f"processing describes input {name!r}, but the model's are {sorted(inputs)}")
    for name, entry in record.outputs.items():
        for needed in entry.of if isinstance(entry, SimilarityOutput) else (name,):
            if needed not in outputs:
                raise RuntimesError(f"processing describes output {needed!r}, but the model's are {sorted(outputs)}")


def _opened(name: str, entry: Any, spec: TensorSpec | None, read: ReadFile) -> Preparer:
    if not isinstance(entry, TextInput):
        opened: Preparer = entry
        return opened
    if spec is None:
        raise RuntimesError(f"input {name!r} is not of this graph, but another of it is derived from it")
    try:
        text: OpenedText = entry.opened(spec, read)
    except RuntimesError as error:
        raise RuntimesError(f"processing of input {name!r} {error}") from None
    return text


def _reader(name: str, entry: Any, read: ReadFile) -> Callable[[np.ndarray], Any]:
    try:
        result: Callable[[np.ndarray], Any] = entry.opened(read) if isinstance(entry, TextOutput) else entry.answer
    except RuntimesError as error:
        raise RuntimesError(f"processing of output {name!r} {error}") from None
    return result
