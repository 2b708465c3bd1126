"""The tokenizer of a folder, as the library reads it: a ``tokenizer.json`` and the entries of a record that use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from compress.errors import CompressError
from compress.huggingface.folder import Folder
from compress.huggingface.library import LOCAL, first_line, library
from compress.model import Input
from runtimes.spec import Dim

FILE = "tokenizer.json"
SOURCES = (FILE, "vocab.txt", "vocab.json")


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """A tokenizer; ``length`` is the most tokens of a text that it and the network take."""

    data: bytes                 # the file tokenizer.json
    length: int
    pad_id: int
    pad_side: str
    vocabulary: int             # rows of the network's embedding

    def entry(self, *, padded: bool = False) -> dict[str, Any]:
        """Of token ids, from the raw input ``text``; ``padded`` to the full length, else to the batch's longest."""
        return {"kind": "text", "from": "text", "tokenizer": FILE, "pad_id": self.pad_id, "pad_side": self.pad_side,
                "max_length": self.length, "pad_to": "max_length" if padded else "longest"}  # fmt: skip

    def example(self, count: int, *, full: bool = False) -> torch.Tensor:
        """Some ids ``(count, length)``: no text, but in the vocabulary."""
        length = self.length if full else min(8, self.length)
        return torch.randint(0, self.vocabulary, (count, length), generator=torch.Generator().manual_seed(0))


def read_tokens(folder: Folder, config: Any, *, reader: str = "AutoTokenizer", reserved: int = 0) -> Tokens:
    """The folder's tokenizer, read by the library's class ``reader``, for the text network of ``config``.

    Of the network's positions ``reserved`` are never a token's.

    Raises:
        CompressError: if there is none, it is not of the tokenizers package, has no padding, or gives ids that the
            network's embedding lacks.
    """
    tokenizer = read_tokenizer(folder, reader)
    data = tokenizer_file(folder, tokenizer, config.vocab_size)
    if tokenizer.pad_token_id is None:
        raise CompressError(f"{folder.path}: its tokenizer has no padding token: set its pad_token, save it again")
    return Tokens(
        data=data, pad_id=tokenizer.pad_token_id, pad_side=tokenizer.padding_side,
        length=min(int(tokenizer.model_max_length), config.max_position_embeddings - reserved),
        vocabulary=config.vocab_size,
    )  # fmt: skip


def read_tokenizer(folder: Folder, reader: str = "AutoTokenizer") -> Any:
    """The tokenizer object of the library."""
    if not any((folder.path / name).is_file() for name in SOURCES):
        raise CompressError(f"{folder.path} has no tokenizer: expected {FILE} beside config.json")
    try:
        return getattr(library(), reader).from_pretrained(str(folder.path), **LOCAL)
    except Exception as error:  # files that do not fit each other fail anywhere in the library's classes
        raise CompressError(f"{folder.path}: its tokenizer cannot be read: {first_line(error)}") from error


def tokenizer_file(folder: Folder, tokenizer: Any, vocabulary: int) -> bytes:
    """The ``tokenizer.json`` of a tokenizer object, for a network that knows the ids below ``vocabulary``.

    Raises:
        CompressError: if it is not of the tokenizers package, or gives ids that the network lacks.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise CompressError(
            f"{folder.path}: its {type(tokenizer).__name__} is none of the tokenizers package: save it as {FILE}"
        )
    largest = max(tokenizer.get_vocab().values())
    if largest >= vocabulary:
        raise CompressError(
            f"{folder.path}: the tokenizer gives ids up to {largest}, but the embedding has {vocabulary} rows "
            "(vocab_size): the tokenizer is of another model"
        )
    data: bytes = backend.to_str().encode()
    return data


def text_input(batch: Dim, length: Dim | None) -> Input:
    """Of ids, a mask or types ``(batch, length)``; without ``length`` that is fixed."""
    return Input(modality="text", dims=(batch, length))
