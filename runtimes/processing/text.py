"""Strings to token ids and back: a ``tokenizer.json`` of the tokenizers package, or a plain list of words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from runtimes.errors import FeedError, RuntimesError
from runtimes.processing.fields import in_range
from runtimes.processing.sample import Padding, Sample, Side, sample_shape
from runtimes.records import inside
from runtimes.spec import Dim, TensorSpec

MOST_CHARACTERS = 1_000_000
INSTALL = 'install tokenizers: pip install "compress-edge[text]"'

ReadFile = Callable[[str], bytes]


@dataclass(frozen=True, kw_only=True)
class Words:
    """A vocabulary: a word's id is its place in ``words``.

    A text is split at its spaces, after ``lowercase`` and after a space is set on both sides of each character of
    ``separate``. A word that is not there becomes ``unknown``, one of the words; without it, it is refused.
    """

    words: tuple[str, ...]
    unknown: str | None = None
    lowercase: bool = False
    separate: str = ""
    joiner: str = " "       # between words, when ids are made a text

    def __post_init__(self) -> None:
        twice = next((word for index, word in enumerate(self.words) if word in self.words[:index]), None) \
            if len(set(self.words)) < len(self.words) else None
        if twice is not None:
            raise RuntimesError(f"has the word {twice!r:.80} twice")
        if not self.words:
            raise RuntimesError("has no words")
        if self.unknown is not None and self.unknown not in self.words:
            raise RuntimesError(f"has the unknown word {self.unknown!r:.80}, which is not one of the words")


@dataclass(frozen=True, kw_only=True)
class Expand:
    """A ``token`` of a text stands for a sample of the input ``of``, a picture say, and becomes ``times`` of it.

    The texts of a batch have as many of them as ``of`` has samples.
    """

    token: str
    times: int
    of: str

    def __post_init__(self) -> None:
        in_range(self.times, 1, 2**20, "the times")
        if not self.token:
            raise RuntimesError("has an empty token to expand")


class Tokenizer(Protocol):
    """Encodes one text (and a second of a pair) to ids and segment ids; decodes ids."""

    def encode(self, text: str, pair: str | None) -> tuple[list[int], list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, kw_only=True)
class TextInput:
    """A string's token ids, of int64 or as the model's input has it.

    Exactly one of ``tokenizer`` (a ``tokenizer.json`` in the bundle's folder ``processing``) and ``vocabulary``.
    ``template`` has ``{}`` where the string goes; ``pair`` is the raw input of a second string. ``special`` adds the
    tokens the file's post-processor adds, ``begin`` are ids that come before all. ``max_length`` is by default what the
    model's input takes. A longer text is refused, unless ``truncate`` names the side its end is taken from. Shorter
    ones get ``pad_id`` on ``pad_side``, up to the longest of the batch or to ``max_length``, and never less than the
    model's input takes. ``default`` is taken where the app passes no string.
    """

    KIND: ClassVar[str] = "text"
    from_: str
    pad_id: int
    tokenizer: str | None = None
    vocabulary: Words | None = None
    template: str = "{}"
    pair: str | None = None
    special: bool = True
    begin: tuple[int, ...] = ()
    default: str | None = None
    expand: Expand | None = None
    max_length: int | None = None
    truncate: Literal["no", "right", "left"] = "no"
    pad_to: Literal["longest", "max_length"] = "longest"
    pad_side: Side = "right"

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.vocabulary is None):
            raise RuntimesError("needs either 'tokenizer' or 'vocabulary'")
        if self.tokenizer is not None:
            inside(self.tokenizer, "'tokenizer'")
        if self.template.count("{}") != 1:
            raise RuntimesError(f"has the template {self.template!r:.80}, expected one {{}} in it")
        if self.pair is not None and (self.vocabulary is not None or self.pair == self.from_):
            raise RuntimesError("has a 'pair', which needs a 'tokenizer' and another raw input")
        if self.pair is not None and self.default is not None:
            raise RuntimesError("has a 'pair', which goes with no 'default'")
        for number in (self.pad_id, *self.begin):
            in_range(number, 0, 2**31 - 1, "the padding id" if number == self.pad_id else "the id")
        in_range(self.max_length, 1, 2**20, "the length")

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.from_,) if self.pair is None else (self.from_, self.pair)

    @property
    def padding(self) -> Padding:
        return Padding(fill=self.pad_id, side=self.pad_side)

    def opened(self, spec: TensorSpec, read: ReadFile) -> OpenedText:
        """With its tokenizer loaded and its length bounded by the model's input ``spec``."""
        shape = sample_shape(spec)
        if len(shape) != 1 or np.dtype(spec.dtype).kind not in "iu":
            raise RuntimesError(f"is text, but the model's input is {spec.describe()}, not ids of one text a sample")
        most = shape[0].max if isinstance(shape[0], Dim) else shape[0]
        if self.max_length is not None and self.max_length > most:
            raise RuntimesError(f"has max_length {self.max_length}, but the model's input takes {most}")
        limit = self.max_length or most
        if len(self.begin) > limit:
            raise RuntimesError(f"begins with {len(self.begin)} ids, but the model's input takes {limit}")
        if self.vocabulary is not None:
            return OpenedText(self, _WordTokenizer(self.vocabulary, self.pad_id), limit)
        assert self.tokenizer is not None
        cut = limit - len(self.begin) if self.truncate != "no" else None
        side: Side = "left" if self.truncate == "left" else "right"
        tokens = load_tokenizer(read(self.tokenizer), self.tokenizer, cut=cut, side=side, special=self.special,
                                paired=self.pair is not None)
        return OpenedText(self, tokens, limit)


class OpenedText:
    """A :class:`TextInput` whose tokenizer is loaded; ``limit`` is the most tokens it gives."""

    def __init__(self, record: TextInput, tokenizer: Tokenizer, limit: int) -> None:
        self.record, self.tokenizer, self.limit = record, tokenizer, limit
        self.sources, self.padding = record.sources, record.padding

    def prepare(self, value: Any, pair: Any = None, *, mask: bool = False) -> Sample:
        """The ids ``(length,)`` of one text, with the padding to ``max_length`` where the record asks for it."""
        text = self.record.template.replace("{}", _checked(value))
        placed, expand = 0, self.record.expand
        if expand is not None:
            placed = text.count(expand.token)
            text = text.replace(expand.token, expand.token * expand.times)
        ids, types = self.tokenizer.encode(text, None if self.record.pair is None else _checked(pair))
        room = self.limit - len(self.record.begin)
        if self.record.truncate != "no" and len(ids) > room:
            ids, types = (ids[:room], types[:room]) if self.record.truncate == "right" else (
                ids[len(ids) - room :], types[len(ids) - room :])
        ids, types = [*self.record.begin, *ids], [0] * len(self.record.begin) + types
        if len(ids) > self.limit:
            raise FeedError(f"{value!r:.80} has {len(ids)} tokens, more than {self.limit}: shorten it")
        if not ids:
            raise FeedError(f"{value!r:.80} has no words")
        size = self.limit if self.record.pad_to == "max_length" else len(ids)
        held = slice(len(ids)) if self.record.pad_side == "right" else slice(size - len(ids), size)
        array, content, of = np.full(size, self.record.pad_id, np.int64), np.zeros(size, bool), np.zeros(size, np.int64)
        array[held], content[held], of[held] = ids, True, types
        return Sample(array, mask=content, types=of, placed=placed)


class _WordTokenizer:
    def __init__(self, vocabulary: Words, pad_id: int | None) -> None:
        self.vocabulary = vocabulary
        if pad_id is not None and pad_id >= len(vocabulary.words):
            raise RuntimesError(f"has the padding id {pad_id}, but {len(vocabulary.words)} words")
        self._ids = {word: index for index, word in enumerate(vocabulary.words) if index != pad_id}

    def encode(self, text: str, pair: str | None) -> tuple[list[int], list[int]]:
        text = text.lower() if self.vocabulary.lowercase else text
        for character in self.vocabulary.separate:
            text = text.replace(character, f" {character} ")
        ids = []
        for word in text.split():
            found = self._ids.get(word, self._ids.get(self.vocabulary.unknown or ""))
            if found is None:
                raise FeedError(f"{text!r:.80} has the word {word!r:.80}, which is not in the model's vocabulary")
            ids.append(found)
        return ids, [0] * len(ids)

    def decode(self, ids: Sequence[int]) -> str:
        words = self.vocabulary.words
        beyond = next((index for index in ids if not 0 <= index < len(words)), None)
        if beyond is not None:
            raise RuntimesError(f"holds the id {beyond}, but the vocabulary has {len(words)} words")
        return self.vocabulary.joiner.join(words[index] for index in ids)


class _FileTokenizer:
    def __init__(self, tokenizer: Any, special: bool) -> None:
        self._tokenizer, self._special = tokenizer, special

    def encode(self, text: str, pair: str | None) -> tuple[list[int], list[int]]:
        encoding = self._tokenizer.encode(text, pair, add_special_tokens=self._special)
        return encoding.ids, encoding.type_ids

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=self._special))


def load_words(vocabulary: Words) -> Tokenizer:
    """For decoding: every id is a word, the padding too."""
    return _WordTokenizer(vocabulary, None)


def load_tokenizer(
    data: bytes, name: str, *, special: bool, cut: int | None = None, side: Side = "right", paired: bool = False
) -> Tokenizer:
    """The tokenizer of the ``tokenizer.json`` whose bytes these are; the file's own padding and truncation are off.

    Args:
        special: whether ids get the file's special tokens, and texts lose them.
        cut: the most tokens a text keeps, special ones included, losing those on ``side``; ``None`` keeps all.

    Raises:
        RuntimesError: if tokenizers is not installed, it is no such file, or ``cut`` has no room for a token.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise RuntimesError(f"text needs the package tokenizers, which is not installed: {INSTALL}") from error
    try:
        tokenizer = tokenizers.Tokenizer.from_str(data.decode("utf-8"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if cut is not None:
            added = tokenizer.num_special_tokens_to_add(paired) if special else 0
            if cut <= added:
                raise RuntimesError(f"has max_length {cut}, no more than the {added} special tokens of {name!r}")
            tokenizer.enable_truncation(cut, direction=side)
    except RuntimesError:
        raise
    except Exception as error:  # tokenizers raises Exception itself
        raise RuntimesError(f"{name!r} is not a tokenizer.json that tokenizers {tokenizers.__version__} reads: "
                            f"{error!s:.200}") from error
    return _FileTokenizer(tokenizer, special)


def _checked(value: Any) -> str:
    if not isinstance(value, str):
        raise FeedError(f"is a {type(value).__name__}, expected a string")
    if len(value) > MOST_CHARACTERS:
        raise FeedError(f"has {len(value)} characters, more than {MOST_CHARACTERS}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FeedError(f"{value!r:.80} is not text that UTF-8 can hold ({error.reason})") from error
    return value
