"""Pictures described in a sentence: convolutions, and a transformer decoder that writes word by word, with a cache.

Two graphs. The encoder makes of a picture the keys and values that every block of the decoder attends to, once. The
decoder takes words, and the keys and values of those before them from the cache: a whole sentence at once in training,
where the cache is empty, and one word at a time on a device.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from calibration.targets import Targets
from compress.model import Graph, Input
from compress.zoo import Progress
from compress.zoo.coloured_digits import (
    BEGIN,
    END,
    LONGEST,
    PADDING,
    SIZE,
    VOCABULARY,
    draw,
    every_single,
    some_pairs,
    tokenize,
)
from compress.zoo.composed import Composed
from compress.zoo.fitting import FitConfig, fit
from compress.zoo.reference import Reference
from compress.zoo.samples import Parts, Rows, Splits
from runtimes.spec import Dim

PLACES = (SIZE // 4) ** 2       # of a picture that the decoder looks at
STEPS = LONGEST + 1             # a sentence and its end


def build(*, channels: int = 16, width: int = 64, heads: int = 4, blocks: int = 2, hidden: int = 192) -> Captioner:
    """Return the network with fresh weights.

    Args:
        channels: of the first convolution, half of the second's. width, heads, blocks: of the decoder.
        hidden: channels of a block's feed-forward layer.
    """
    return Captioner(ImageEncoder(channels, width), Decoder(width, heads, blocks, hidden, len(VOCABULARY), STEPS))


class Captioner(nn.Module):
    """An encoder, and the decoder that looks at what it saw."""

    def __init__(self, image_encoder: nn.Module, decoder: Decoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.decoder = decoder

    def encode(self, image: Tensor) -> dict[str, Tensor]:
        """Pictures f32 ``(batch, 3, 24, 24)`` in [0, 1] to keys and values ``(batch, blocks, heads, 36, width)``."""
        return self.decoder.look(self.image_encoder(image))

    def decode(
        self, words: Tensor, seen_key: Tensor, seen_value: Tensor, past_key: Tensor, past_value: Tensor
    ) -> dict[str, Tensor]:
        """Scores of the word after each of ``words``, ``(batch, length, vocabulary)``, and the cache with them.

        Args:
            words: i64 ``(batch, length)``. seen_key, seen_value: of :meth:`encode`.
            past_key, past_value: the cache of the words before them, ``(batch, blocks, heads, past, width)``.
        """
        told: dict[str, Tensor] = self.decoder(words, seen_key, seen_value, past_key, past_value)
        return told

    def forward(self, image: Tensor, words: Tensor) -> Tensor:
        """Scores of the word after each of ``words``, as :meth:`decode` gives them, of whole sentences."""
        seen = self.encode(image)
        heads = self.decoder.blocks[0].read.heads           # of its own: pruning leaves it and the other their numbers
        nothing = seen["seen_key"][:, :, :1, :0].expand(-1, -1, heads, -1, -1)
        return self.decode(words, past_key=nothing, past_value=nothing, **seen)["logits"]


class ImageEncoder(nn.Module):
    """Four convolutions, two of them with a stride of 2, and learned positions: ``(batch, 36, width)``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*(
            layer for given, made, stride in ((3, channels, 1), (channels, 2 * channels, 2), (2 * channels, width, 2),
                                              (width, width, 1))
            for layer in (nn.Conv2d(given, made, 3, stride, padding=1, bias=False), nn.BatchNorm2d(made), nn.ReLU())
        ))  # fmt: skip
        self.position = nn.Parameter(torch.randn(1, PLACES, width) * 0.3)

    def forward(self, image: Tensor) -> Tensor:
        seen: Tensor = self.convolutions(image).flatten(2).transpose(1, 2) + self.position
        return seen


class Decoder(nn.Module):
    """A transformer that reads the words so far and looks at what an encoder saw, and scores the word that comes next.

    It knows ``vocabulary`` words, and writes at most ``steps``.
    """

    def __init__(self, width: int, heads: int, blocks: int, hidden: int, vocabulary: int, steps: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(steps, width) * 0.1)
        self.blocks: Any = nn.ModuleList(Block(width, heads, hidden) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def look(self, seen: Tensor) -> dict[str, Tensor]:
        """What each block attends to of what was seen, ``(batch, places, width)``."""
        keys, values = zip(*(block.look.keys_and_values(seen) for block in self.blocks), strict=True)
        return {"seen_key": torch.stack(keys, 1), "seen_value": torch.stack(values, 1)}

    def forward(
        self, words: Tensor, seen_key: Tensor, seen_value: Tensor, past_key: Tensor, past_value: Tensor
    ) -> dict[str, Tensor]:
        past, length = past_key.shape[3], words.shape[1]
        place = torch.arange(past + length, device=words.device)
        before = place <= place[past:, None]
        told: Tensor = self.table(words) + self.position[place[past:]]
        keys, values = [], []
        for number, block in enumerate(self.blocks):
            key, value = block.read.keys_and_values(block.first(told))
            keys.append(torch.cat([past_key[:, number], key], 2))
            values.append(torch.cat([past_value[:, number], value], 2))
            told = block(told, keys[-1], values[-1], seen_key[:, number], seen_value[:, number], before)
        return {"logits": self.head(self.norm(told)), "key": torch.stack(keys, 1), "value": torch.stack(values, 1)}


class Block(nn.Module):
    """Attention to the words so far, attention to the picture, a feed-forward layer; each after a norm, and added."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.LayerNorm(width) for _ in range(3))
        self.read, self.look = Attention(width, heads), Attention(width, heads)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(
        self, told: Tensor, key: Tensor, value: Tensor, seen_key: Tensor, seen_value: Tensor, before: Tensor
    ) -> Tensor:
        told = told + self.read(self.first(told), key, value, before)
        told = told + self.look(self.second(told), seen_key, seen_value)
        changed: Tensor = told + self.down(functional.gelu(self.up(self.third(told))))
        return changed


class Attention(nn.Module):
    """Attention of several heads, whose keys and values are made apart from where they are attended to."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Of ``(batch, tokens, width)``, each ``(batch, heads, tokens, width / heads)``."""
        return self._split(self.k(context)), self._split(self.v(context))

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        found = functional.scaled_dot_product_attention(self._split(self.q(query)), key, value, attn_mask=mask)
        mixed: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return mixed

    def _split(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)


def next_word(outputs: Mapping[str, Tensor], words: Tensor) -> Tensor:
    """Cross-entropy of scores ``(batch, length, vocabulary)`` with the words that come next ``(batch, length)``."""
    return functional.cross_entropy(outputs["output"].flatten(0, 1), words.flatten(), ignore_index=PADDING)


def train(
    network: nn.Module, parts: Parts, config: FitConfig, progress: Progress | None = None, *,
    vocabulary: Sequence[str] = VOCABULARY, steps: int = STEPS,
) -> int:  # fmt: skip
    """Train ``network`` in place with :func:`next_word`, each word after the right ones before it (teacher forcing).

    Args:
        parts: pictures, and two sentences of each, of which every second picture is shown with the second.
        vocabulary, steps: of the decoder.
    """
    taught = [_taught(rows, np.asarray(target), vocabulary, steps) for rows, target in parts]
    return fit(network, taught, next_word, config, progress)


def _taught(rows: Rows, sentences: np.ndarray, vocabulary: Sequence[str], steps: int) -> tuple[Rows, np.ndarray]:
    """``rows`` with the words to read, i64 ``(pictures, steps)``, and those to say after each."""
    said = np.array([tokenize(two[number % 2], steps, vocabulary) for number, two in enumerate(sentences.tolist())])
    read = np.concatenate([np.full((len(said), 1), BEGIN), said[:, :-1]], axis=1)
    said[np.arange(len(said)), (said != PADDING).sum(axis=1)] = END
    return {**rows, "words": read}, said


@cache
def samples() -> Splits:
    """Pictures of one digit or two, and both of their sentences; no scene of two digits is in two splits."""
    rng = np.random.default_rng(0)
    single, pairs = every_single(), some_pairs(sum(two for _, two in SPLIT.values()), rng)
    splits, start = {}, 0
    for name, (one, two) in SPLIT.items():
        scenes = [*(single[number] for number in rng.integers(0, len(single), one)), *pairs[start : start + two]]
        target = np.array([scene.sentences for scene in scenes])
        splits[name] = [({"image": draw(scenes, name, rng).images}, target)]
        start += two
    return splits


SPLIT = {"train": (1600, 3200), "calibration": (60, 140), "validation": (150, 350)}     # pictures of one and of two


def unseen(rows: Rows) -> Rows:
    """Black pictures: what is left is a model of the language."""
    return {**rows, "image": np.zeros_like(rows["image"])}


def constant(
    target: Targets, count: int, *, vocabulary: Sequence[str] = VOCABULARY, steps: int = STEPS
) -> dict[str, np.ndarray]:
    """The most frequent sentence of ``target``, said ``count`` times."""
    (sentence, _), = Counter(np.asarray(target).ravel().tolist()).most_common(1)
    return {"caption": np.tile(np.array(tokenize(sentence, steps, vocabulary)), (count, 1))}


def writing(given: str, places: int, vocabulary: Sequence[str], steps: int) -> Composed:
    """The graphs of a network like :class:`Captioner` that describes its input ``given``, and their chain.

    Args:
        places: of what the encoder sees of two samples, in the example. vocabulary, steps: of the decoder.
    """
    seen, past = (np.zeros((2, 2, 4, length, 16), np.float32) for length in (places, 3))     # of what build() makes
    return Composed(
        graphs={"encoder": Graph("encode", (given,)),
                "decoder": Graph("decode", ("words", "seen_key", "seen_value", "past_key", "past_value"))},
        chain={
            "inputs": [given], "outputs": {"caption": "decoder.tokens"},
            "steps": [
                {"graph": "encoder", "inputs": {given: given}},
                {"graph": "decoder",
                 "inputs": {"seen_key": "encoder.seen_key", "seen_value": "encoder.seen_value"},
                 "loop": {"token": "words", "logits": "logits", "start": [BEGIN], "stop": [END], "pad": PADDING,
                          "state": {"past_key": {"from": "key"}, "past_value": {"from": "value"}},
                          "max_steps": steps, "pick": "argmax"}},
            ],
        },
        given={"words": np.full((2, 2), BEGIN), "seen_key": seen, "seen_value": seen, "past_key": past,
               "past_value": past},
        train=functools.partial(train, vocabulary=vocabulary, steps=steps),
        constant=functools.partial(constant, vocabulary=vocabulary, steps=steps),
        scores={"cider": "validation", "exact-match": "validation"}, loss="kl",
    )  # fmt: skip


def written(steps: int) -> dict[str, Input]:
    """What the decoder takes beside what was seen."""
    cache = Input(dims=("batch", None, None, Dim("past", 0, 4, steps)))
    return {"words": Input(modality="text", dims=("batch", Dim("length", 1, 1, steps))), "past_key": cache,
            "past_value": cache}  # fmt: skip


def read(vocabulary: Sequence[str]) -> dict[str, Any]:
    """How tokens become a sentence: the outputs of a processing."""
    return {"caption": {"kind": "text", "scores": False, "vocabulary": {"words": list(vocabulary)}, "stop": END,
                        "skip": [PADDING, BEGIN]}}  # fmt: skip


SEEN = Input(dims=("batch",))
CAPTIONING = Reference(
    name="captioning", factory="compress.zoo.captioning:build", samples=samples, metric="bleu",
    composed=writing("image", PLACES, VOCABULARY, STEPS),
    fit=FitConfig(epochs=18, batch=64, rate=3e-3), macs=0.7, blinded={"picture unseen": unseen},
    inputs={"image": Input(modality="image", dims=("batch",)), "seen_key": SEEN, "seen_value": SEEN, **written(STEPS)},
    processing={
        "inputs": {"image": {"kind": "image", "from": "image", "steps": [
            {"op": "resize", "size": [SIZE, SIZE], "resample": "box"}, {"op": "rescale", "scale": 1 / 255}]}},
        "outputs": read(VOCABULARY),
    },
)  # fmt: skip
