"""Small networks of several graphs, with what they compute in plain numpy beside them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from runtimes.spec import Dim, TensorSpec
from tests.contracts.models import BATCH, FLOAT, INT64, Case, f32, model, value

WIDTH, VOCABULARY, LONGEST = 8, 12, 64
BEGIN, END, PAD = 1, 2, 0
LENGTH, PAST = Dim("length", 1, 1, LONGEST), Dim("past", 0, 4, LONGEST)

_random = np.random.default_rng(5)
ENCODE = _random.normal(size=(4, WIDTH)).astype(np.float32)
TABLE = _random.normal(size=(VOCABULARY, WIDTH)).astype(np.float32)
HEAD = (1.5 * _random.normal(size=(WIDTH, VOCABULARY))).astype(np.float32)
TOWER = _random.normal(size=(3, 2)).astype(np.float32)


def node(kind: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def build_encoder() -> onnx.ModelProto:
    return model([node("MatMul", "x w", "h"), node("Tanh", "h", "memory")],
                 [value("x", FLOAT, "batch", 4)], [value("memory", FLOAT, "batch", WIDTH)], w=ENCODE)


def build_decoder(cached: bool) -> onnx.ModelProto:
    """The last token asks all tokens so far, which the cache holds: their embeddings."""
    nodes = [
        node("Gather", "table ids", "embedded"),
        node("Concat", "past embedded", "present", axis=1) if cached else node("Identity", "embedded", "present"),
        node("Gather", "embedded last", "asking", axis=1),
        node("Unsqueeze", "asking one", "row"),
        node("Transpose", "present", "turned", perm=[0, 2, 1]),
        node("MatMul", "row turned", "scores"),
        node("Softmax", "scores", "weights", axis=-1),
        node("MatMul", "weights present", "found"),
        node("Squeeze", "found one", "context"),
        node("Add", "context memory", "joined"),
        node("MatMul", "joined head", "logits"),
    ]
    inputs = [value("ids", INT64, "batch", "length"), value("memory", FLOAT, "batch", WIDTH)]
    outputs = [value("logits", FLOAT, "batch", VOCABULARY)]
    if cached:
        inputs.append(value("past", FLOAT, "batch", "past", WIDTH))
        outputs.append(value("present", FLOAT, "batch", "present", WIDTH))
    return model(nodes, inputs, outputs, table=TABLE, head=HEAD, last=np.int64(-1), one=np.array([1]))


def build_tower() -> onnx.ModelProto:
    return model([node("MatMul", "pixels w", "embedding")],
                 [value("pixels", FLOAT, "batch", 3)], [value("embedding", FLOAT, "batch", 2)], w=TOWER)


def decode_step(ids: np.ndarray, memory: np.ndarray, past: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``(logits, present)`` of the decoder for ``ids`` (batch, length)."""
    present = np.concatenate([past, TABLE[ids]], axis=1)
    scores = np.einsum("bd,bld->bl", TABLE[ids[:, -1]], present)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return (np.einsum("bl,bld->bd", weights, present) + memory) @ HEAD, present


def generate(x: np.ndarray, steps: int) -> list[list[int]]:
    """The tokens of each sample alone, up to its stop token."""
    rows = []
    for sample in x:
        memory = np.tanh(sample[None] @ ENCODE)
        past, ids, row = np.zeros((1, 0, WIDTH), np.float32), np.array([[BEGIN]]), []
        for _ in range(steps):
            logits, past = decode_step(ids, memory, past)
            row.append(int(logits[0].argmax()))
            if row[-1] == END:
                break
            ids = np.array([[row[-1]]])
        rows.append(row)
    return rows


def padded(rows: list[list[int]]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.array([row + [PAD] * (longest - len(row)) for row in rows])


X = np.random.default_rng(3).normal(size=(3, 4)).astype(np.float32)
MEMORY = np.tanh(X @ ENCODE)
IDS = np.array([[3, 4], [5, 1], [2, 7]])
LOGITS, PRESENT = decode_step(IDS, MEMORY, np.zeros((3, 0, WIDTH), np.float32))
PIXELS = np.array([[1, 2, 3], [0, -1, 1]], np.float32)

_ids = TensorSpec(name="ids", dtype="int64", shape=(BATCH, LENGTH), modality="text")
_logits = f32("logits", BATCH, VOCABULARY)
ENCODER = Case(
    name="encoder", build=build_encoder, inputs=(f32("x", BATCH, 4),), outputs=(f32("memory", BATCH, WIDTH),),
    feed={"x": X}, expected={"memory": MEMORY})
CACHED = Case(
    name="cached", build=lambda: build_decoder(True),
    inputs=(_ids, f32("memory", BATCH, WIDTH), f32("past", BATCH, PAST, WIDTH)),
    outputs=(_logits, f32("present", BATCH, Dim("present", 1, 4, LONGEST + 1), WIDTH)),
    feed={"ids": IDS, "memory": MEMORY, "past": np.zeros((3, 0, WIDTH), np.float32)},
    expected={"logits": LOGITS, "present": PRESENT})
UNCACHED = Case(
    name="uncached", build=lambda: build_decoder(False), inputs=(_ids, f32("memory", BATCH, WIDTH)), outputs=(_logits,),
    feed={"ids": IDS, "memory": MEMORY}, expected={"logits": LOGITS})
IMAGE = Case(name="image", build=build_tower, inputs=(f32("pixels", BATCH, 3),), outputs=(f32("embedding", BATCH, 2),),
             feed={"pixels": PIXELS}, expected={"embedding": PIXELS @ TOWER})
