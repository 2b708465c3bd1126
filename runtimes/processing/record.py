"""The section ``processing`` of a manifest: how raw inputs become a feed, and outputs become answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Union

from runtimes.errors import RuntimesError
from runtimes.processing.audio import AudioInput
from runtimes.processing.fields import build_one_of, to_json
from runtimes.processing.image import ImageInput
from runtimes.processing.outputs import (
    ClassesOutput,
    DecisionOutput,
    MultilabelOutput,
    Output,
    SimilarityOutput,
    TextOutput,
    ValuesOutput,
)
from runtimes.processing.text import TextInput
from runtimes.processing.values import ConstantInput, FeaturesInput, MaskInput, TensorInput, TypesInput
from runtimes.records import get, typed

FOLDER = "processing"       # of a bundle, where the files that records name lie
Primary = Union[ImageInput, TextInput, AudioInput, FeaturesInput, TensorInput]  # noqa: UP007 - beside Input
Input = Union[Primary, ConstantInput, MaskInput, TypesInput]  # noqa: UP007

INPUTS: tuple[Any, ...] = (
    ImageInput, TextInput, AudioInput, FeaturesInput, TensorInput, ConstantInput, MaskInput, TypesInput
)
OUTPUTS: tuple[Any, ...] = (
    ClassesOutput, MultilabelOutput, DecisionOutput, ValuesOutput, TextOutput, SimilarityOutput
)


@dataclass(frozen=True, kw_only=True)
class Processing:
    """Model input -> how it is made; output, or a name of its own for a similarity -> how it is read."""

    inputs: Mapping[str, Input]
    outputs: Mapping[str, Output]

    def __post_init__(self) -> None:
        for name, entry in self.inputs.items():
            if isinstance(entry, TextInput) and entry.expand is not None:
                _check_places(self.inputs.get(entry.expand.of), name, entry.expand.of)
            if not isinstance(entry, MaskInput | TypesInput):
                continue
            of = self.inputs.get(entry.of)
            if isinstance(of, ConstantInput | MaskInput | TypesInput) or of is None:
                raise RuntimesError(f"input {name!r} is derived from {entry.of!r}, which is no input made of raw data")
            if isinstance(entry, TypesInput) and not isinstance(of, TextInput):
                raise RuntimesError(f"input {name!r} has the token types of {entry.of!r}, which is no text")

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are named, relative to the bundle's folder :data:`FOLDER`."""
        named = {getattr(entry, "tokenizer", None) for entry in (*self.inputs.values(), *self.outputs.values())}
        return tuple(sorted(name for name in named if name is not None))

    def to_json(self) -> dict[str, Any]:
        return {
            "inputs": {name: to_json(entry) for name, entry in self.inputs.items()},
            "outputs": {name: to_json(entry) for name, entry in self.outputs.items()},
        }


def _check_places(of: Input | None, name: str, given: str) -> None:
    if of is None or isinstance(of, TextInput | ConstantInput | MaskInput | TypesInput):
        raise RuntimesError(f"input {name!r} has places for {given!r}, which is no picture, sound or array")


def parse_processing(record: Mapping[str, Any], where: str) -> Processing:
    """The section ``record``, parsed strictly; ``where`` names the file.

    Raises:
        RuntimesError: on an unknown key, kind or step, a missing key, a value of the wrong type or out of range.
    """
    unknown = sorted(record.keys() - {"inputs", "outputs"})
    if unknown:
        raise RuntimesError(f"{where}: 'processing' has the unknown key {unknown[0]!r}, not 'inputs' or 'outputs'")
    sections: dict[str, dict[str, Any]] = {}
    for key, kinds in (("inputs", INPUTS), ("outputs", OUTPUTS)):
        entries = get(record, key, dict, f"{where}: 'processing'")
        sections[key] = {
            name: build_one_of(kinds, typed(entry, dict, f"{where}: processing of {name!r}"), "kind",
                               f"{where}: processing of {name!r}")
            for name, entry in entries.items()
        }
    try:
        return Processing(inputs=sections["inputs"], outputs=sections["outputs"])
    except RuntimesError as error:
        raise RuntimesError(f"{where}: processing: {error}") from None
