"""A small captioner for tests: an encoder, and a decoder with a key/value cache, as two graphs and their chain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Graph, Input, Model
from compress.saving import export_model
from runtimes.spec import Dim

PIXELS, WIDTH, HEADS, WORDS, LONGEST = 12, 16, 2, 20, 24
BEGIN, END = 1, 2
STEPS = 8
GRAPHS = {"encoder": Graph("encode", ("image",)),
          "decoder": Graph("decode", ("ids", "memory", "past_key", "past_value"))}


class Captioner(nn.Module):
    """One layer of attention to the picture, and one to the words so far, which the cache holds."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.Sequential(nn.Linear(PIXELS, WIDTH), nn.Tanh())
        self.words = nn.Embedding(WORDS, WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.join = nn.Linear(2 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def encode(self, image: Tensor) -> dict[str, Tensor]:
        """``(batch, 12)`` to ``(batch, 16)``."""
        return {"memory": self.vision(image)}

    def decode(self, ids: Tensor, memory: Tensor, past_key: Tensor, past_value: Tensor) -> dict[str, Tensor]:
        """Ids ``(batch, length)``, and the cache of those before, ``(batch, heads, past, width)`` each."""
        seen = self.words(ids)
        query, key, value = (self._heads(layer(seen)) for layer in (self.query, self.key, self.value))
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        place = torch.arange(key.shape[2])
        allowed = place <= place[-query.shape[2] :, None]
        found = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        told = torch.cat([found.transpose(1, 2).flatten(2), memory[:, None].expand(-1, ids.shape[1], -1)], -1)
        return {"logits": self.head(torch.tanh(self.join(told))), "key": key, "value": value}

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


def chain(**changes: Any) -> dict[str, Any]:
    loop = {"token": "ids", "logits": "logits", "state": {"past_key": {"from": "key"}, "past_value": {"from": "value"}},
            "start": [BEGIN], "stop": [END], "pad": 0, "max_steps": STEPS, "pick": "argmax", **changes}  # fmt: skip
    return {
        "inputs": ["image"],
        "steps": [{"graph": "encoder", "inputs": {"image": "image"}},
                  {"graph": "decoder", "inputs": {"memory": "encoder.memory"}, "loop": loop}],
        "outputs": {"caption": "decoder.tokens"},
    }  # fmt: skip


def network(seed: int = 0) -> Captioner:
    torch.manual_seed(seed)
    made = Captioner()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(2.0)        # so that the words that follow depend on the picture
    return made.eval()


def model(module: nn.Module | None = None, **given: Any) -> Model:
    """``given`` goes to ``export_model`` in place of what is usual here."""
    batch, length, past = Dim("batch", 1, 2, 16), Dim("length", 1, 1, LONGEST), Dim("past", 0, 4, LONGEST)
    cache = np.zeros((2, HEADS, 3, WIDTH // HEADS), np.float32)
    arguments: dict[str, Any] = {
        "name": "captioner", "chain": chain(),
        "example": {"image": pictures(2), "ids": np.full((2, 2), BEGIN), "memory": np.zeros((2, WIDTH), np.float32),
                    "past_key": cache, "past_value": cache},
        "inputs": {"image": Input(modality="image", dims=(batch,)), "ids": Input(modality="text", dims=(batch, length)),
                   "memory": Input(dims=(batch,)), "past_key": Input(dims=(batch, None, past)),
                   "past_value": Input(dims=(batch, None, past))},
        "graphs": GRAPHS,
    }  # fmt: skip
    return export_model(module or network(), **{**arguments, **given})


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(7).normal(size=(count, PIXELS)).astype(np.float32)


def captions(module: Captioner, image: np.ndarray, steps: int = STEPS) -> list[list[int]]:
    """The words of each picture alone, up to the last, without a cache: every word so far at each step."""
    rows: list[list[int]] = []
    nothing = torch.zeros(1, HEADS, 0, WIDTH // HEADS)
    for picture in torch.from_numpy(image):
        ids = [BEGIN]
        while len(ids) <= steps and (len(ids) == 1 or ids[-1] != END):
            with torch.no_grad():
                memory = module.encode(picture[None])["memory"]
                told = module.decode(torch.tensor([ids]), memory, nothing, nothing)
            ids.append(int(told["logits"][0, -1].argmax()))
        rows.append(ids[1:])
    return rows


def padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    longest = max(map(len, rows))
    return np.array([[*row, *[0] * (longest - len(row))] for row in rows])
