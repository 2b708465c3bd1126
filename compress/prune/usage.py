"""How often each id of a vocabulary occurs: in a data set, a corpus of texts, labels, and in what a decoder says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from calibration import CalibrationSet
from compress.distill.forcing import loops_of
from compress.errors import CompressError
from compress.model import Model, ModelProcessing
from compress.program import model_runner
from compress.prune.tables import Vocabulary
from compress.prune.tokenfile import TokenFile
from runtimes.errors import FeedError
from runtimes.loops import Loop
from runtimes.processing.outputs import TextOutput
from runtimes.processing.text import TextInput, Tokenizer, Words, load_tokenizer, load_words
from runtimes.spec import largest_batch

SMALLEST = 256              # rows: a smaller table that no text is described for holds categories
BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Uses:
    """Where the ids of a vocabulary come from and go to, by the names that data sets and processing have."""

    inputs: tuple[str, ...]                      # of the model, which hold ids
    reads: tuple[tuple[str, TextInput], ...]     # those that are made of texts, and how
    loops: tuple[Loop, ...]                      # that pick ids
    writes: tuple[tuple[str, TextOutput | None], ...]   # outputs that hold picked ids, and how they become texts

    @property
    def entries(self) -> list[TextInput | TextOutput]:
        return [*(entry for _, entry in self.reads), *(entry for _, entry in self.writes if entry is not None)]


def uses_of(model: Model, one: Vocabulary) -> Uses | None:
    """None where the table is none of texts: no text is described for it, and it is small or of another modality."""
    section = None if model.processing is None else model.processing.section
    described = {} if section is None else section.inputs
    given = dict.fromkeys(name for graph, held in one.given if (name := _given_as(model, graph, held)) is not None)
    specs = {spec.name: spec for spec in model.inputs}
    inputs = [name for name in given if isinstance(described.get(name), TextInput)
              or (name not in described and specs[name].modality == "text" and one.size >= SMALLEST)]
    loops, writes = [], list[tuple[str, TextOutput | None]]()
    for name, step in loops_of(model).items():
        if step.loop is not None and (step.graph, step.loop.token) in one.given and one.heads:
            loops.append(step.loop)
            for output, source in ({} if model.wiring is None else model.wiring.sources).items():
                if source.step == name:
                    read = None if section is None else section.outputs.get(output)
                    writes.append((output, read if isinstance(read, TextOutput) else None))
    if not inputs and not loops:
        return None
    reads = tuple((name, entry) for name in inputs if isinstance(entry := described.get(name), TextInput))
    return Uses(inputs=tuple(inputs), reads=reads, loops=tuple(loops), writes=tuple(writes))


def _given_as(model: Model, graph: str, held: str) -> str | None:
    """What the caller calls an input of a graph; None where he does not give it."""
    if model.chain is None or (wiring := model.wiring) is None:
        return held
    sources = [step.inputs[held] for step in wiring.steps if step.graph == graph and held in step.inputs]
    return next((source.name for source in sources if source.step is None), None)


def always_kept(uses: Uses, processing: ModelProcessing | None, name: str) -> tuple[set[int], TokenFile | None]:
    """Ids that have a part of their own (padding, begin, stop, unknown, special tokens), and those any text needs.

    And the file of the tokenizer, where there is one.
    """
    kept: set[int] = set()
    files: dict[str, TokenFile] = {}
    for _, entry in uses.reads:
        kept |= {entry.pad_id, *entry.begin}
    for _, written in uses.writes:
        if written is not None:
            kept |= {number for number in (written.stop, written.blank) if number is not None}
    for loop in uses.loops:
        kept |= {*loop.start, *loop.stop, loop.pad}
    for described in uses.entries:
        if described.vocabulary is not None and described.vocabulary.unknown is not None:
            kept.add(described.vocabulary.words.index(described.vocabulary.unknown))
        if described.tokenizer is not None and processing is not None:
            files[described.tokenizer] = TokenFile(processing.files[described.tokenizer], described.tokenizer)
    if len(files) > 1:
        raise CompressError(f"prune: vocabulary: several tokenizers make the ids of {name!r} ({', '.join(files)}): "
                            "which of its rows are used cannot be told")
    file = next(iter(files.values()), None)
    return kept | (set() if file is None else set(file.always)), file


def count_ids(
    model: Model, found: list[tuple[Vocabulary, Uses]], data: CalibrationSet, corpus: Path | None, samples: int,
) -> list[np.ndarray]:
    """How often each id of each vocabulary occurs, int64 ``(ids,)``.

    Of a decoder that is what it picks on ``samples`` of the data, the labels that are texts, and the corpus.

    Raises:
        CompressError: if the corpus cannot be read, or nothing says what a decoder is to say.
    """
    counts = [np.zeros(one.size, np.int64) for one, _ in found]
    wanted = {name for _, uses in found for name in uses.inputs}
    for feed in data.batches(BATCH) if wanted else ():
        for (one, uses), count in zip(found, counts, strict=True):
            for name in uses.inputs:
                _add(count, feed[name], one.size)
    texts = [] if corpus is None else list(read_texts(corpus))
    for (one, uses), count in zip(found, counts, strict=True):
        _count_texts(model, one, uses, texts, count)
        said = [text for name, entry in uses.writes if entry is not None for text in _labels(data, name)]
        if uses.loops and not texts and not said:
            raise CompressError(
                f"prune: vocabulary: what {one.heads[0]!r} is to say is known from texts alone, and the data set has "
                "no labels that are: give a corpus of what it should be able to say (--corpus)")
        for _, entry in uses.writes:
            if entry is not None:
                tokens = _tokenizer(model, entry, special=False)
                for text in said:
                    _add(count, _said(tokens, text), one.size)
    if any(uses.writes for _, uses in found):
        _count_picked(model, found, data, samples, counts)
    return counts


def _count_picked(
    model: Model, found: list[tuple[Vocabulary, Uses]], data: CalibrationSet, samples: int, counts: list[np.ndarray],
) -> None:
    run, done = model_runner(model), 0
    for feed in data.batches(largest_batch(model.inputs, min(BATCH, samples))):
        outputs = run(feed)
        for (one, uses), count in zip(found, counts, strict=True):
            for name, _ in uses.writes:
                _add(count, outputs[name], one.size)
                done += len(outputs[name])
        if done >= samples:
            return


def _count_texts(model: Model, one: Vocabulary, uses: Uses, texts: list[str], count: np.ndarray) -> None:
    known = [(entry.template, _tokenizer(model, entry, special=entry.special)) for _, entry in uses.reads]
    speaks = [_tokenizer(model, entry, special=False) for _, entry in uses.writes if entry is not None]
    if texts and not known and not speaks:
        raise CompressError(f"prune: vocabulary: the ids of {one.name!r} have no tokenizer in the model's processing, "
                            "so a corpus says nothing of them: leave it out, or save the model with processing=")
    for text in texts:
        for template, tokens in known:
            _add(count, _encoded(tokens, template.replace("{}", text)), one.size)
        for tokens in speaks:
            _add(count, _said(tokens, text), one.size)


def read_texts(corpus: Path) -> Iterator[str]:
    """The lines of a text file, or of every ``.txt`` under a folder.

    Raises:
        CompressError: if there are none, or a file is no text.
    """
    files = sorted(corpus.rglob("*.txt")) if corpus.is_dir() else [corpus]
    count = 0
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CompressError(f"corpus {file} cannot be read as text: {error}") from error
        for line in lines:
            if line.strip():
                count += 1
                yield line.strip()
    if not count:
        raise CompressError(f"corpus {corpus} has no texts: give a text file, or a folder of .txt files")


def _labels(data: CalibrationSet, output: str) -> Iterator[str]:
    target = data.targets(output)
    if target is not None and target.dtype.kind == "U":
        yield from (str(text) for text in target.ravel() if text)


def _tokenizer(model: Model, entry: TextInput | TextOutput, *, special: bool) -> Tokenizer | Words:
    if entry.vocabulary is not None:
        return entry.vocabulary
    assert entry.tokenizer is not None and model.processing is not None  # noqa: PT018
    return load_tokenizer(model.processing.files[entry.tokenizer], entry.tokenizer, special=special)


def _encoded(tokens: Tokenizer | Words, text: str) -> Iterable[int]:
    """Of words, those that are known: a text of others is refused on the device too."""
    if not isinstance(tokens, Words):
        return tokens.encode(text, None)[0]
    return [number for word in text.split() for number in _word(tokens, word)]


def _said(tokens: Tokenizer | Words, text: str) -> Iterable[int]:
    """As a whole answer and behind another word, which are different pieces for many tokenizers."""
    return [*_encoded(tokens, text), *([] if isinstance(tokens, Words) else _encoded(tokens, f" {text}"))]


def _word(words: Words, word: str) -> list[int]:
    try:
        return load_words(words).encode(word, None)[0]
    except FeedError:
        return []


def _add(count: np.ndarray, ids: Iterable[int] | np.ndarray, size: int) -> None:
    flat = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).ravel()
    count += np.bincount(flat[(flat >= 0) & (flat < size)], minlength=size)
