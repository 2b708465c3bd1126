"""BERT: a text tower, alone or with a classifier of the whole text."""

from __future__ import annotations

import torch

from compress.huggingface.checkpoint import build
from compress.huggingface.folder import Folder
from compress.huggingface.parts import Parts, Tower, classifier, record, tower_components
from compress.huggingface.tokens import FILE, read_tokens, text_input
from compress.saving import BATCH
from runtimes.spec import Dim

ARCHITECTURES = ("BertModel", "BertForSequenceClassification")


def read(folder: Folder, architecture: str) -> Parts:
    """One graph: ids, mask and types ``(batch, length)`` to ``logits``, or to the states and the pooled one."""
    config = folder.built_config("BertConfig")
    tokens = read_tokens(folder, config)
    model = build(folder, architecture, config)
    classifies = architecture == "BertForSequenceClassification"
    answers, labels = classifier(folder, config) if classifies else ({"pooler_output": {"kind": "values"}}, {})
    ids = tokens.example(2)
    mask = torch.ones_like(ids)
    mask[1, ids.shape[1] // 2 + 1 :] = 0
    inputs = {
        "input_ids": tokens.entry(),
        "attention_mask": {"kind": "mask", "of": "input_ids"},
        "token_type_ids": {"kind": "token_types", "of": "input_ids"},
    }
    length = Dim("length", 1, min(32, tokens.length), tokens.length)
    return Parts(
        module=Tower(model, ["logits"] if classifies else ["last_hidden_state", "pooler_output"]),
        example={"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)},
        inputs={name: text_input(BATCH, length) for name in inputs},
        components=tower_components(model, "text_encoder"),
        labels=labels,
        processing=record(folder, inputs, answers, {FILE: tokens.data}),
    )
