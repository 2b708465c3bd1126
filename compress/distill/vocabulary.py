"""Whether two models mean the same by a number: the class of an output, and the token of a text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from compress.errors import CompressError
from compress.model import Model
from compress.prune.tokenfile import gone


def check_meanings(pair: str, student: Model, teacher: Model) -> None:
    """Refuse models that name their classes or their tokens in different ways; ``pair`` says which they are."""
    for name in [name for name in student.labels if name in teacher.labels]:
        _check(f"{pair} mean different classes by the indices of output {name!r}", student.labels[name],
               teacher.labels[name], "class")  # fmt: skip
    ours, theirs = _vocabularies(student), _vocabularies(teacher)
    for name in [name for name in ours if name in theirs]:
        known = theirs[name]
        if "vocabulary" in student.channels:        # it has lost tokens, whose numbers no other has
            known = {number: token for number, token in known.items() if number in ours[name]}
        _check(f"{pair} have different vocabularies for {name!r}", _listed(ours[name]), _listed(known), "token")


def _check(what: str, ours: Sequence[str], theirs: Sequence[str], thing: str) -> None:
    if list(ours) == list(theirs):
        return
    odd = next((i for i, (our, their) in enumerate(zip(ours, theirs, strict=False)) if our != their), None)
    first = (f"of {len(ours)} and {len(theirs)} entries" if odd is None
             else f"{thing} {odd} is {ours[odd]!r} in the student, {theirs[odd]!r} in the teacher")  # fmt: skip
    raise CompressError(f"{what}: {first}; a teacher needs those of its student, in their order")


def _listed(tokens: Mapping[int, str]) -> list[str]:
    return [token for _, token in sorted(tokens.items())]


def _vocabularies(model: Model) -> dict[str, dict[int, str]]:
    """Input or output of a model -> what its ids stand for, where its processing says so."""
    if model.processing is None:
        return {}
    section, found = model.processing.section, {}
    for name, entry in [*section.inputs.items(), *section.outputs.items()]:
        words, file = getattr(entry, "vocabulary", None), getattr(entry, "tokenizer", None)
        if words is not None:
            found[name] = {number: word for number, word in enumerate(words.words) if word != gone(number)}
        elif file is not None:
            found[name] = _of_file(model.processing.files[file])
    return found


def _of_file(content: bytes) -> dict[int, str]:
    """The tokens of a ``tokenizer.json`` by their ids; its scores and its settings may differ."""
    record = json.loads(content)
    vocabulary: Any = record["model"].get("vocab", {})
    ids: dict[str, int] = (
        dict(vocabulary) if isinstance(vocabulary, Mapping)
        else {token: index for index, (token, *_) in enumerate(vocabulary)}     # of a unigram model: with a score each
    )  # fmt: skip
    ids |= {added["content"]: added["id"] for added in record.get("added_tokens", ())}
    return {number: token for token, number in ids.items() if token != gone(number)}
