"""Visual question answering: an LSTM reads the question, its states look at the image, a decoder gives the answer.

The image shows four of scikit-learn's real handwritten digits, one in each corner; a question of 7 to 14 words asks
which digit one of them is, or whether it is even or odd. The words have to find the corner that they mean:
cross-attention of the text's states onto the places of the image.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from compress.model import Input
from compress.zoo.digits_questions import DIGITS, splits
from compress.zoo.fitting import FitConfig
from compress.zoo.reference import Reference
from compress.zoo.samples import Rows, Splits, by_shape
from compress.zoo.tasks import Task
from runtimes.spec import Dim

SIZE = 16                       # pixels a side, two digits
CORNERS = ("upper left", "upper right", "lower left", "lower right")
ANSWERS = (*DIGITS, "even", "odd")
QUESTIONS: Mapping[bool, tuple[str, ...]] = {    # whether they ask for the digit, or even or odd
    True: ("what is the {} digit ?", "which digit is in the {} corner ?", "what number do you see at the {} ?"),
    False: ("is the {} digit even or odd ?", "do you see an even or an odd number at the {} ?"),
}
VOCABULARY = ("[padding]", *dict.fromkeys(" ".join([*QUESTIONS[True], *QUESTIONS[False], *CORNERS]).replace("{}", "")
              .split()))  # fmt: skip
SCENES = {"train": (2000, 4), "calibration": (60, 3), "validation": (400, 3)}       # and questions about each


def build(*, channels: int = 32, width: int = 64, text: int = 96, heads: int = 4, hidden: int = 128) -> AttentionVQA:
    """Return the network with fresh weights.

    Args:
        channels: of the first convolution. width: of the image's places. text: of the LSTM's states. heads: of the
            cross-attention. hidden: channels of the decoder's layer.
    """
    return AttentionVQA(channels, width, text, heads, hidden)


class AttentionVQA(nn.Module):
    """Image encoder, text encoder, cross-attention and a decoder over the vocabulary of answers."""

    def __init__(self, channels: int, width: int, text: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(channels, width)
        self.text_encoder = TextEncoder(text)
        self.attention = nn.MultiheadAttention(text, heads, kdim=width, vdim=width, batch_first=True)
        self.decoder = nn.Sequential(nn.Linear(2 * text, hidden), nn.ReLU(), nn.Linear(hidden, len(ANSWERS)))

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        """Scores ``(batch, 12)``: images f32 ``(batch, 1, 16, 16)`` in [0, 1], words i64 ``(batch, length)``."""
        words = (question != 0)[:, :, None]
        states, places = self.text_encoder(question), self.image_encoder(image)
        seen, _ = self.attention(states, places, places, need_weights=False)
        both = torch.cat([states, seen], dim=2)
        scores: Tensor = self.decoder((both * words).sum(dim=1) / words.sum(dim=1))     # the mean over the words
        return scores


class ImageEncoder(nn.Module):
    """Convolutions to ``width`` channels at each of 4 x 4 places, and where each place is: ``(batch, 16, width)``."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * channels, 2 * channels, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(2 * channels, width, 3, padding=1),
        )  # fmt: skip
        for layer in self.convolutions:
            if isinstance(layer, nn.Conv2d):        # PyTorch's own start drowns the pixels in the positions
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        self.position = nn.Parameter(0.5 * torch.randn(1, 16, width))

    def forward(self, image: Tensor) -> Tensor:
        places: Tensor = self.convolutions(image).flatten(2).transpose(1, 2) + self.position
        return places


class TextEncoder(nn.Module):
    """Embeddings and an LSTM: a state a word, ``(batch, length, width)``, which padding behind it does not change."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(VOCABULARY), width)
        self.lstm = nn.LSTM(width, width, batch_first=True)

    def forward(self, question: Tensor) -> Tensor:
        states: Tensor = self.lstm(self.table(question))[0]
        return states


@cache
def samples() -> Splits:
    """Scenes of four digits and questions about them, the same on every call; no digit is in two splits."""
    rng = np.random.default_rng(0)
    return {name: by_shape(_scenes(*held, *SCENES[name], rng)) for name, held in splits().items()}


def _scenes(
    images: np.ndarray, digits: np.ndarray, count: int, asked: int, rng: np.random.Generator
) -> Iterator[tuple[Rows, np.ndarray]]:
    for _ in range(count):
        chosen = rng.integers(0, len(images), 4)
        upper_left, upper_right, lower_left, lower_right = images[chosen, 0]
        image = np.block([[upper_left, upper_right], [lower_left, lower_right]])[None]
        for corner, share, which in rng.random((asked, 3)):
            place, what = int(corner * 4), share < 0.6
            phrases = QUESTIONS[what]
            words = phrases[int(which * len(phrases))].format(CORNERS[place]).split()
            digit = int(digits[chosen[place]])
            question = np.array([VOCABULARY.index(word) for word in words], np.int64)
            yield {"image": image, "question": question}, np.array(digit if what else 10 + digit % 2)


ATTENTION_VQA = Reference(
    name="attention-vqa", factory="compress.zoo.attention_vqa:build", samples=samples, metric="accuracy",
    tasks={"output": Task(loss="cross-entropy", labels=ANSWERS)}, macs=0.7,
    fit=FitConfig(epochs=7, batch=64, rate=2e-3, noise=0.05),
    inputs={"image": Input(modality="image", dims=("batch",)),
            "question": Input(modality="text", dims=("batch", Dim("length", 1, 8, 16)))},
    processing={"inputs": {
        "image": {"kind": "image", "from": "image", "mode": "L", "steps": [
            {"op": "resize", "size": [SIZE, SIZE], "resample": "box"}, {"op": "rescale", "scale": 1 / 255}]},
        "question": {"kind": "text", "from": "question", "pad_id": 0,
                     "vocabulary": {"words": list(VOCABULARY), "lowercase": True, "separate": "?"}},
    }},
)  # fmt: skip
