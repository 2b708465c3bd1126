"""docs/processing.md: each example parses and runs, and every kind, step and key is there with its default."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from compress.model import ModelProcessing
from compress.processing import check_processing
from runtimes.processing import parse_processing
from runtimes.processing.audio import AudioStep
from runtimes.processing.image import ImageStep
from runtimes.processing.record import INPUTS, OUTPUTS
from runtimes.processing.spectrogram import Mel
from runtimes.processing.text import Expand, Words
from runtimes.spec import Dim, TensorSpec

TEXT = (Path(__file__).parents[2] / "docs/processing.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```json\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)
LENGTH, SIDE, SAMPLES = Dim("length", 1, 8, 16), Dim("side", 32, 384, 640), Dim("samples", 1, 16000, 320000)
SHAPES: dict[str, tuple[str, tuple[int | Dim, ...]]] = {
    "pixel_values": ("float32", (3, 224, 224)), "free_pixels": ("float32", (3, SIDE, Dim("other", 32, 384, 640))),
    "pixel_mask": ("int64", (SIDE, Dim("other", 32, 384, 640))), "input_ids": ("int64", (LENGTH,)),
    "prompt_ids": ("int64", (Dim("length", 1, 8, 64),)),
    "attention_mask": ("int64", (LENGTH,)), "token_type_ids": ("int64", (LENGTH,)),
    "input_features": ("float32", (80, 3000)), "decoder_input_ids": ("int64", (1,)),
    "clap_features": ("float32", (1, 1001, 64)), "ast_values": ("float32", (1024, 128)),
    "input_values": ("float32", (SAMPLES,)), "attention_samples": ("int32", (SAMPLES,)), "sensors": ("float32", (2,)),
    "track": ("float32", (Dim("steps", 1, 4, 9), 2)), "embedding": ("float32", (8,)),
    "logits": ("float32", (3,)), "tags": ("float32", (2,)), "brake": ("float32", (1,)), "pose": ("float32", (2,)),
    "ctc": ("float32", (Dim("time", 1, 9, 99), 5)), "caption": ("int64", (LENGTH,)),
    "image_embeds": ("float32", (4,)), "text_embeds": ("float32", (4,)),
}


def tokenizer() -> bytes:
    made = tokenizers.Tokenizer(models.WordLevel({"[pad]": 0, "[unk]": 1, "[cls]": 2, "[sep]": 3}, unk_token="[unk]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[cls] $A [sep]", pair="[cls] $A [sep] $B:1 [sep]:1", special_tokens=[("[cls]", 2), ("[sep]", 3)])
    return made.to_str().encode()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: re.findall(r'^    "(\w+)":', text, re.MULTILINE)[0])
def test_each_example_parses_and_runs(example: str) -> None:
    record = json.loads(example)
    section = parse_processing(record, "docs/processing.md")
    batch = Dim("batch", 1, 1, 8)
    wanted = {name: [*record[name]] for name in ("inputs", "outputs")}
    if "match" in wanted["outputs"]:    # made of two outputs that have no entry themselves
        wanted["outputs"] = [*wanted["outputs"][:-1], "image_embeds", "text_embeds"]
    specs = {}
    for part, names in wanted.items():
        shapes = {name: (batch, *SHAPES[name][1]) for name in names}
        specs[part] = tuple(TensorSpec(name=n, dtype=SHAPES[n][0], shape=shape) for n, shape in shapes.items())
    graphs: Any = {"forward": SimpleNamespace(**specs)}
    check_processing(ModelProcessing(section=section, files={name: tokenizer() for name in section.files}), graphs)


def test_there_are_examples_of_every_kind_and_step() -> None:
    assert len(EXAMPLES) == 15
    joined = " ".join(EXAMPLES)
    for kind in (*INPUTS, *OUTPUTS):
        assert f'"kind": "{kind.KIND}"' in joined, kind.KIND
    for step in (*typing.get_args(ImageStep), *typing.get_args(AudioStep)):
        assert f'"op": "{step.KIND}"' in joined, step.KIND


def test_every_key_is_listed() -> None:
    steps = (*typing.get_args(ImageStep), *typing.get_args(AudioStep))
    for kind in (*INPUTS, *OUTPUTS, *steps, Mel, Words, Expand):
        name = getattr(kind, "KIND", "")
        rows = [line for line in TEXT.splitlines() if line.startswith(f"| `{name}`")]
        heading = {"image": "Images", "text": "Texts", "audio": "Sounds"}.get(name)
        if kind in INPUTS and heading is not None:
            rows = [TEXT.split(f"## {heading}")[1].split("## ")[0]]
        for field in dataclasses.fields(kind):
            assert any(f"`{field.name.rstrip('_')}`" in row for row in rows or [TEXT]), (kind.__name__, field.name)
