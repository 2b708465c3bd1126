"""A ``tokenizer.json`` without the pieces that a network has no row for any more; every id keeps its number.

Pieces are dropped with the merges that make them, so that a text which had them is split into smaller ones. What any
text needs stays: bytes and single characters, the unknown piece, special and other added tokens. Where a piece's id is
its place in a list (a unigram model), one that no text has stands in its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from compress.errors import CompressError

BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class TokenFile:
    """The pieces of a file: ``ids`` of each, ``always`` those that every text may need, ``unknown`` its id or None."""

    def __init__(self, data: bytes, name: str) -> None:
        self.record: dict[str, Any] = json.loads(data)
        self.model: dict[str, Any] = self.record["model"]
        self.kind = self.model.get("type") or _kind(self.model)
        if self.kind not in ("BPE", "WordPiece", "WordLevel", "Unigram"):
            raise CompressError(f"{name!r} is a tokenizer of the kind {self.kind!r}: pieces can be taken out of BPE, "
                                "WordPiece, WordLevel and Unigram")
        held = self.model["vocab"]
        self.ids: dict[str, int] = dict(held) if isinstance(held, Mapping) else {
            piece: number for number, (piece, _) in enumerate(held)}
        self.added = {token["content"]: int(token["id"]) for token in self.record.get("added_tokens") or ()}
        self.unknown = self.model.get("unk_id") if self.kind == "Unigram" else self.ids.get(
            self.model.get("unk_token") or "")
        self.parts = dict(self._parts())
        self.always = frozenset({*self.added.values(), *self._base(),
                                 *(() if self.unknown is None else (self.unknown,))})

    def with_parts(self, wanted: Iterable[int]) -> set[int]:
        """``wanted``, and the pieces that they are merged from, by whichever merge."""
        found, waiting = set[int](), list(wanted)
        while waiting:
            number = waiting.pop()
            if number not in found:
                found.add(number)
                waiting += self.parts.get(number, ())
        return found

    def without(self, kept: Collection[int]) -> bytes:
        """The file with no pieces but ``kept``, which hold all that they are merged from and what is always needed."""
        model = {**self.model}
        if self.kind == "Unigram":
            model["vocab"] = [[piece if number in kept else gone(number), score]
                              for number, (piece, score) in enumerate(self.model["vocab"])]
        else:
            # An added token that the vocabulary lacks would get the next free id: with gaps in it that is another.
            model["vocab"] = {**{piece: number for piece, number in self.ids.items() if number in kept}, **self.added}
        if self.kind == "BPE":
            model["merges"] = [merge for merge in self.model["merges"]
                               if all(self.ids[piece] in kept for piece in (*self._made(merge),))]
        return json.dumps({**self.record, "model": model}, ensure_ascii=False).encode()

    def _parts(self) -> Iterator[tuple[int, set[int]]]:
        """Of each piece that merges make, all pieces that it may be merged from."""
        found: dict[int, set[int]] = {}
        for merge in self.model["merges"] if self.kind == "BPE" else ():
            first, second, made = self._made(merge)
            found.setdefault(self.ids[made], set()).update((self.ids[first], self.ids[second]))
        yield from found.items()

    def _made(self, merge: str | list[str]) -> tuple[str, str, str]:
        """The two pieces of a merge, and the one that it makes of them."""
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        prefix = self.model.get("continuing_subword_prefix") or ""
        return first, second, first + second.removeprefix(prefix)

    def _base(self) -> Iterator[int]:
        """Bytes and characters: of BPE what no merge makes."""
        prefix = self.model.get("continuing_subword_prefix") or ""
        for piece, number in self.ids.items():
            if self.kind == "BPE":
                if number not in self.parts:
                    yield number
            elif self.kind != "WordLevel" and (len(piece.removeprefix(prefix)) == 1 or BYTE.fullmatch(piece)):
                yield number


def gone(number: int) -> str:
    """What stands for a piece or a word that is gone where ids are places in a list: no text has it."""
    return f"\uffff {number}"


def _kind(model: Mapping[str, Any]) -> str:
    """Of a file that does not say it, as older ones do not."""
    if "merges" in model:
        return "BPE"
    if not isinstance(model.get("vocab"), Mapping):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"
