"""An image and a text into one class: convolutions, a bidirectional LSTM, late fusion by concatenation.

The image is one of scikit-learn's real handwritten digits, the text of 3 to 8 words says what to do with it, and the
answer is the number that comes of it: "add three to it", "the difference between the digit and nine". Either input
alone leaves most answers open.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import CompressError
from compress.model import Input
from compress.zoo.digits_questions import DIGITS, PROCESSING, splits
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Rows, Splits, by_shape
from compress.zoo.tasks import Task
from runtimes.spec import Dim

LABELS = (*DIGITS, "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen")
DIGIT = ("it", "the digit", "this number")      # what stands for {d}; {n} is a number from zero to nine
PHRASES: Mapping[str, Callable[[int, int], int]] = {
    "{d} plus {n}": lambda d, n: d + n, "add {n} to {d}": lambda d, n: d + n, "{n} more than {d}": lambda d, n: d + n,
    "the difference between {d} and {n}": lambda d, n: abs(d - n), "how far {n} is from {d}": lambda d, n: abs(d - n),
    "the larger of {d} and {n}": max, "{n} but {d} if that is more": max,
    "the smaller of {d} and {n}": min, "{n} but {d} if that is less": min,
}  # fmt: skip
VOCABULARY = ("[padding]", *dict.fromkeys(" ".join([*PHRASES, *DIGIT]).replace("{d}", "").replace("{n}", "").split()),
              *DIGITS)  # fmt: skip
ASKED = {"train": 7, "calibration": 2, "validation": 3}     # texts about each image


def build(*, channels: int = 32, width: int = 64, hidden: int = 256, freeze: Collection[str] = ()) -> ImageText:
    """Return the network with fresh weights.

    Args:
        channels: of the first convolution, half of the second's. width: of the LSTM in each direction, and of what each
            tower hands on. hidden: channels of the head's two layers.
        freeze: towers (``image``, ``text``) whose weights ask for no gradient: a training leaves them as they are.

    Raises:
        CompressError: if ``freeze`` names something else.
    """
    network = ImageText(channels, width, hidden)
    towers = {"image": network.image_encoder, "text": network.text_encoder}
    for name in freeze:
        if name not in towers:
            raise CompressError(f"freeze names {name!r}: expected some of {', '.join(towers)}")
        towers[name].requires_grad_(False)
    return network


class ImageText(nn.Module):
    """A tower for each modality, their outputs side by side, and a head of three layers."""

    def __init__(self, channels: int, width: int, hidden: int) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(channels, width)
        self.text_encoder = TextEncoder(width)
        self.head = nn.Sequential(nn.Linear(2 * width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                                  nn.Linear(hidden, len(LABELS)))  # fmt: skip

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        """Scores ``(batch, 19)``: images f32 ``(batch, 1, 8, 8)`` in [0, 1], words i64 ``(batch, length)``."""
        scores: Tensor = self.head(torch.cat([self.image_encoder(image), self.text_encoder(text)], dim=1))
        return scores


class ImageEncoder(nn.Module):
    """Two convolutions, the second with a stride of 2, and a layer over all places."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU(),
        )  # fmt: skip
        self.out = nn.Linear(2 * channels * 16, width)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(self.out(self.convolutions(image).flatten(1)))


class TextEncoder(nn.Module):
    """Embeddings, a bidirectional LSTM, the largest value of each channel over the words, and a layer.

    Padding changes nothing: it is embedded as zeros, and a layer without biases that begins with a state of zeros keeps
    it while it reads zeros, so the way back from the padding begins as if there were none.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(VOCABULARY), width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, bias=False, bidirectional=True, batch_first=True)
        self.out = nn.Linear(2 * width, width)

    def forward(self, text: Tensor) -> Tensor:
        words = (text != 0)[:, :, None]
        states, _ = self.lstm(self.table(text) * words)
        return torch.relu(self.out(states.masked_fill(~words, -1.0).amax(dim=1)))       # a state is above -1


@cache
def samples() -> Splits:
    """Several texts about each image, the same on every call; no image is in two splits."""
    rng = np.random.default_rng(0)
    return {name: by_shape(_asked(*held, ASKED[name], rng)) for name, held in splits().items()}


def _asked(
    images: np.ndarray, digits: np.ndarray, count: int, rng: np.random.Generator
) -> Iterator[tuple[Rows, np.ndarray]]:
    for image, digit in zip(images, digits.tolist(), strict=True):
        for chosen, name, number in rng.integers(0, [len(PHRASES), len(DIGIT), 10], (count, 3)).tolist():
            phrase = list(PHRASES)[chosen]
            words = phrase.format(d=DIGIT[name], n=DIGITS[number]).split()
            text = np.array([VOCABULARY.index(word) for word in words], np.int64)
            yield {"image": image, "text": text}, np.array(PHRASES[phrase](digit, number))


IMAGE_TEXT = Reference(
    name="image-text", factory="compress.zoo.image_text:build", samples=samples, metric="accuracy",
    tasks={"output": Task(loss="cross-entropy", labels=LABELS)}, macs=0.7,
    fit=FitConfig(epochs=14, batch=64, rate=3e-3, noise=0.05),
    inputs={"image": Input(modality="image", dims=("batch",)),
            "text": Input(modality="text", dims=("batch", Dim("length", 1, 6, 16)))},
    processing={"inputs": {
        "image": PROCESSING["inputs"]["image"],
        "text": {"kind": "text", "from": "text", "pad_id": 0,
                 "vocabulary": {"words": list(VOCABULARY), "lowercase": True}},
    }},
)  # fmt: skip
