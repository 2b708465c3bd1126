"""Texts as metrics compare them: what the outputs say by the model's processing, and the references in the targets."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np

from compress.errors import CompressError
from compress.metrics.metric import Outputs, Texts
from runtimes.errors import RuntimesError
from runtimes.processing.outputs import TextOutput
from runtimes.processing.processor import Described, Processor
from runtimes.processing.record import Processing


def reader_of(described: Described, output: str | None) -> Texts | None:
    """What reads the texts of a model's or a bundle's outputs; None where its processing has no output of kind text.

    Args:
        output: which, where there are several.

    Raises:
        CompressError: if ``output`` is no text, there are several and it is not said which, or the processing does not
            fit the model.
    """
    record = described.processing or Processing(inputs={}, outputs={})
    texts = {name: entry for name, entry in record.outputs.items() if isinstance(entry, TextOutput)}
    if output is not None and output not in texts:
        raise CompressError(f"output {output!r} has no text: the processing reads texts of {sorted(texts) or 'none'}")
    if not texts:
        return None
    if output is None and len(texts) > 1:
        raise CompressError(f"the outputs {sorted(texts)} are texts: say which is meant, as METRIC/OUTPUT")
    name = output or next(iter(texts))
    alone = SimpleNamespace(
        graphs=described.graphs, chain=described.chain, read_file=described.read_file,
        processing=Processing(inputs={}, outputs={name: texts[name]}))  # fmt: skip
    try:
        processor = Processor(alone)
    except RuntimesError as error:
        raise CompressError(f"processing does not fit the model: {error}") from error

    def read(outputs: Outputs) -> Sequence[str]:
        try:
            return processor.answer(outputs)[name]
        except RuntimesError as error:
            raise CompressError(str(error)) from error

    return read


def check(said: Sequence[str], target: np.ndarray) -> None:
    """Refuse targets that are no texts, or not one for each of ``said``."""
    if target.dtype.kind != "U":
        raise CompressError(f"the targets are {target.dtype}: give texts, as an array of strings")
    wrong = next((text for text in said if not isinstance(text, str)), None)
    if wrong is not None:
        raise CompressError(f"an answer is a {type(wrong).__name__}, expected one text for each sample")
    if len(said) != len(target):
        raise CompressError(f"there are {len(said)} texts for {len(target)} samples: these must agree")


def references(target: np.ndarray) -> list[list[str]]:
    """The references of each sample: a column each, those that are empty left out; a lone one may be empty."""
    if target.ndim == 1:
        return [[text] for text in target.tolist()]
    return [[text for text in row if text] for row in target.tolist()]
